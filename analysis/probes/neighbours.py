"""Samples beside the training images nearest to them: copies are seen at once."""

__all__ = ["TITLE", "Nearest", "Reference", "draw", "nearest", "needs"]

import json
import math
from collections.abc import Sequence
from textwrap import fill
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from torch import Tensor

from analysis.drawing.fonts import short
from analysis.drawing.style import WIDE, Drawing, caption, new_figure, of_one, styled
from analysis.figures.samples import arrays_of, rgb
from analysis.read.runs import Finished
from analysis.read.settings import Setting, not_shown, settings
from dtr_lightning.cli.progress_bar import Bar
from dtr_lightning.config.registry import instantiate
from dtr_lightning.data import Data
from dtr_lightning.metrics import BoundedRows, Copies, Features, copies

TITLE = "Samples beside their nearest training images"
SAMPLES = 8  # rows: those nearest to a training image
NEIGHBOURS = 5  # columns
SETTINGS = 3
STEP = 1.36  # from row to row, in widths of an image: room for a distance below it
BATCH = 256
COPY = "#D55E00"
TEXT = {"ha": "center", "va": "center", "fontsize": 5.5}


class Reference(NamedTuple):
    """The images that a run is scored against: training images, features, rule of copies."""

    data: Data
    limit: int | None  # of training images; all by default
    features: Features
    copies: Copies

    @classmethod
    def of(cls, run: Finished) -> "Reference":
        """Returns those of a run; UserError where its data or features cannot be had."""
        data: Data = instantiate(Data, run.config["data"])
        features: Features = instantiate(Features, run.config["features"])
        features.to("cuda" if torch.cuda.is_available() else "cpu").eval()
        limit = int(run.flat.get("evaluation.reference") or 0) or None
        train, val = BoundedRows(copies.TRAIN), BoundedRows()
        for kept, images in (
            (train, data.image_batches("train", limit)),
            (val, data.image_batches("val", limit)),
        ):
            for part, _ in images:
                kept.update(copies.thumbnails(part))
        return cls(data, limit, features, Copies(train.compute(), val.compute()))

    @property
    def size(self) -> int:
        """The number of training images."""
        size = len(self.data.split("train"))
        return min(size, self.limit or size)

    def indices(self, places: Tensor) -> Tensor:
        """Returns where the images of these places are in the training split."""
        return places * len(self.data.split("train")) // self.size

    @property
    def rms(self) -> float:
        """What makes an L2 distance of thumbnails the root mean square over their values."""
        return self.copies.train.shape[1] ** -0.5


class Nearest(NamedTuple):
    """Of n samples the k training images nearest in features, and what the rule of copies reads."""

    indices: Tensor  # (n, k), of the training split
    features: Tensor  # (n, k), L2
    pixels: Tensor  # (n, k), L2 in grey levels of thumbnails
    closest: Tensor  # (n,), the least such distance to any training image


@torch.no_grad()
def _vectors(features: Features, images: Tensor) -> Tensor:
    """Returns the features (N, D) of uint8 images (N, C, H, W), on the CPU."""
    device = next(features.parameters()).device
    return torch.cat([features(part.to(device)).cpu() for part in images.split(BATCH)])


def nearest(images: Tensor, reference: Reference, k: int = NEIGHBOURS) -> Nearest:
    """Returns the k training images nearest to each of the uint8 images (n, C, H, W).

    The training images go by in batches, and only the nearest ones stay.
    """
    vectors, rows = _vectors(reference.features, images), copies.thumbnails(images)
    gaps = pixels = torch.empty(len(images), 0)
    places, done = torch.empty(len(images), 0, dtype=torch.long), 0
    with Bar("neighbours") as bar:
        for part, _ in reference.data.image_batches("train", reference.limit):
            place = torch.arange(done, done + len(part)).expand(len(images), -1)
            gaps = torch.cat([gaps, torch.cdist(vectors, _vectors(reference.features, part))], 1)
            pixels = torch.cat([pixels, _differences(rows, copies.thumbnails(part))], 1)
            gaps, best = gaps.topk(min(k, gaps.shape[1]), largest=False)
            places = torch.cat([places, place], 1).gather(1, best)
            pixels = pixels.gather(1, best)
            done += len(part)
            bar(done, reference.size, "neighbours features of training images")
    closest = copies.nearest(rows, reference.copies.train)
    return Nearest(reference.indices(places), gaps, pixels, closest)


def _differences(a: Tensor, b: Tensor) -> Tensor:
    """Returns the L2 distances (n, m) of thumbnails (n, D) and (m, D), exactly 0 between copies."""
    return torch.cdist(a.float(), b.float(), compute_mode="donot_use_mm_for_euclid_dist")


def _usable(run: Finished) -> bool:
    return arrays_of(run) is not None and {"data", "features"} <= run.config.keys()


def needs(runs: Sequence[Finished]) -> str | None:
    """Says what is missing: stored samples, and the data and features to compare them by."""
    if any(map(_usable, runs)):
        return None
    return "no finished run has stored samples (uint8, 1 or 3 channels) and names its data"


def _samples(run: Finished) -> tuple[np.ndarray, np.ndarray]:
    """Returns the stored samples of a run that is usable, and their labels."""
    arrays = arrays_of(run)
    assert arrays is not None
    return arrays


def _shown(runs: Sequence[Finished]) -> tuple[list[Setting], str]:
    """Returns no routing and the best other settings, and a line on those that are left out."""
    usable = settings([run for run in runs if _usable(run)])
    ranked = sorted(usable, key=lambda s: math.inf if math.isnan(s.score) else s.score)
    plain = [s for s in ranked if s.router == "NoRouting"][:1]
    shown = [*plain, *(s for s in ranked if s not in plain)][:SETTINGS]
    return shown, not_shown(len(usable) - len(shown))


def _image(ax: Axes, image: np.ndarray, column: float, row: int, copied: bool) -> None:
    """Draws an image uint8[C, H, W] at a place of the sheet, framed if it is (of) a copy."""
    top, left = row * STEP, column
    ax.imshow(rgb(image), extent=(left, left + 0.92, top + 0.92, top), interpolation="nearest")
    if copied:
        frame = {"fill": False, "edgecolor": COPY, "linewidth": 1.6}
        ax.add_patch(Rectangle((left, top), 0.92, 0.92, **frame))


def _block(ax: Axes, setting: Setting, reference: Reference, nearest: Nearest) -> pd.DataFrame:
    """Draws a setting's samples that are nearest to training images; returns all numbers of it."""
    run = setting.runs[0]
    images, labels = _samples(run)
    copied = nearest.closest <= reference.copies.threshold
    threshold = float(reference.copies.threshold) * reference.rms
    closest, pixels = nearest.closest * reference.rms, nearest.pixels * reference.rms
    order = nearest.closest.argsort(stable=True)[:SAMPLES].tolist()
    train, numbers = reference.data.split("train"), []
    for row, i in enumerate(order):
        _image(ax, images[i], 0, row, bool(copied[i]))
        ax.text(0.46, row * STEP + 1.12, f"{closest[i]:.1f}", **TEXT)
        for j, index in enumerate(nearest.indices[i].tolist()):
            near, gap = float(pixels[i, j]), float(nearest.features[i, j])
            same = bool(nearest.pixels[i, j] <= reference.copies.threshold)
            image, label = train[index]
            _image(ax, np.asarray(image), 1.3 + j, row, same)
            ax.text(1.76 + j, row * STEP + 1.12, f"{gap:.1f}", **TEXT)
            one = {"sample": i, "label": int(labels[i]), "closest_rms_grey": float(closest[i])}
            one |= {"threshold_rms_grey": threshold, "copy": bool(copied[i]), "rank": j + 1}
            one |= {"train_index": index, "train_label": int(label)}
            numbers.append(one | {"feature_distance": gap, "rms_grey": near})
    ax.set(xlim=(-0.05, 1.3 + nearest.indices.shape[1]), ylim=(len(order) * STEP, -0.05))
    rows = f"rows: the {len(order)} closest of {len(images)} samples"
    share = f"{int(copied.sum())} of {len(images)} samples copy, threshold {threshold:.1f}"
    ax.set_title(f"{fill(short(setting.label, 72), 36)}\n{rows}\n{share}", fontsize=7)
    ax.set_axis_off()
    ax.set_anchor("N")  # where a panel is lower than its place the title has its room above it
    row = {"run": run.path.name, "setting": setting.label, "seed": run.seed}
    return pd.DataFrame([row | one for one in numbers])


def _nearest_of(shown: Sequence[Setting]) -> list[tuple[Reference, Nearest]]:
    """Returns of each setting its reference, and what is nearest to the samples of its first run.

    Training images that several settings are scored against are read once for all of them.
    """
    runs = [setting.runs[0] for setting in shown]
    keys = [
        json.dumps(
            [run.config["data"], run.config["features"], run.flat.get("evaluation.reference")],
            sort_keys=True,
        )
        for run in runs
    ]
    results = {}
    for key in dict.fromkeys(keys):
        alike = [run for run, other in zip(runs, keys, strict=True) if other == key]
        reference = Reference.of(alike[0])
        images = [torch.from_numpy(_samples(run)[0]) for run in alike]
        parts = (x.split([*map(len, images)]) for x in nearest(torch.cat(images), reference))
        for run, part in zip(alike, zip(*parts, strict=True), strict=True):
            results[run.path] = reference, Nearest(*part)
    return [results[run.path] for run in runs]


@styled
def draw(runs: Sequence[Finished]) -> Drawing:
    """Draws, for up to three settings, the samples nearest to training images and their neighbours.

    Below a sample: its difference from the closest training image, which the rule of copies
    compares with the threshold (see metrics.Copies): the root mean square over the pixels and
    channels of their thumbnails, in grey levels of 0 to 255. Below a neighbour: its distance in
    features. A frame is a copy, and the training images that it copies. A setting shows its
    lowest seed.
    """
    shown, note = _shown(runs)
    block = WIDE / SETTINGS
    figure = new_figure(block * len(shown), 0.45 + SAMPLES * STEP * block / 6.7)
    axes = figure.subplots(1, len(shown), squeeze=False)[0]
    numbers = [
        _block(ax, setting, *result)
        for ax, setting, result in zip(axes, shown, _nearest_of(shown), strict=True)
    ]
    legend = [
        "left: samples, below them the root-mean-square difference per pixel from the closest "
        "training image, in grey levels of 0 to 255",
        "right: nearest training images, below them the distance in features; framed: a copy",
    ]
    caption(figure, *legend, of_one([setting.runs[0] for setting in shown]), note)
    return Drawing(figure, pd.concat(numbers, ignore_index=True), note)
