"""Samples beside the training images nearest to them: copies are seen at once."""

__all__ = ["NAME", "Nearest", "Reference", "draw", "nearest", "needs"]

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

from analysis.fonts import short
from analysis.runs import Finished
from analysis.samples import arrays_of, rgb
from analysis.settings import Setting, settings
from analysis.style import WIDE, Drawing, caption, new_figure, of_one, styled
from dtr_lightning.bar import Bar
from dtr_lightning.building import build
from dtr_lightning.data import Data
from dtr_lightning.metrics import Copies, Features, copies

NAME = "neighbours"
SAMPLES = 8  # rows: those nearest to a training image
NEIGHBOURS = 5  # columns
SETTINGS = 3
STEP = 1.36  # from row to row, in widths of an image: room for a distance below it
BATCH = 256
COPY = "#D55E00"
TEXT = {"ha": "center", "va": "center", "fontsize": 5.5}


class Reference(NamedTuple):
    """The images that a run is scored against: training images, their features, rule of copies."""

    data: Data
    index: Tensor  # (N,), of the training split
    features: Features
    vectors: Tensor  # (N, D)
    copies: Copies

    @classmethod
    def of(cls, run: Finished) -> "Reference":
        """Returns those of a run; UserError where its data or features cannot be had."""
        data: Data = build(Data, run.config["data"])
        features: Features = build(Features, run.config["features"])
        features.to("cuda" if torch.cuda.is_available() else "cpu").eval()
        limit = int(run.flat.get("evaluation.reference") or 0) or None
        size = len(data.split("train"))
        count = min(size, limit or size)
        rows, vectors = [], []
        with Bar(NAME) as bar:
            for images, _ in data.train_images(limit):
                rows.append(copies.thumbnails(images))
                vectors.append(_vectors(features, images))
                bar(sum(map(len, rows)), count, f"{NAME} features of training images")
        held_out = torch.cat([copies.thumbnails(x) for x, _ in data.heldout_images(limit)])
        rule = Copies(torch.cat(rows), held_out)
        return cls(data, torch.arange(count) * size // count, features, torch.cat(vectors), rule)

    @property
    def rms(self) -> float:
        """What makes an L2 distance of thumbnails the root mean square over their values."""
        return self.copies.train.shape[1] ** -0.5


class Nearest(NamedTuple):
    """Of n samples the k training images nearest in features, and what the rule of copies reads."""

    index: Tensor  # (n, k), of the training split
    features: Tensor  # (n, k), L2
    pixels: Tensor  # (n, k), L2 in grey levels of thumbnails
    closest: Tensor  # (n,), the least such distance to any training image


@torch.no_grad()
def _vectors(features: Features, images: Tensor) -> Tensor:
    """Returns the features (N, D) of uint8 images (N, C, H, W), on the CPU."""
    device = next(features.parameters()).device
    return torch.cat([features(part.to(device)).cpu() for part in images.split(BATCH)])


def nearest(images: Tensor, reference: Reference, k: int = NEIGHBOURS) -> Nearest:
    """Returns the k training images nearest to each of the uint8 images (n, C, H, W)."""
    gaps = torch.cdist(_vectors(reference.features, images), reference.vectors)
    values, index = gaps.topk(min(k, gaps.shape[1]), largest=False)
    rows, train = copies.thumbnails(images), reference.copies.train
    pixels = (rows[:, None].float() - train[index].float()).norm(dim=2)
    return Nearest(reference.index[index], values, pixels, copies.nearest(rows, train))


def _usable(run: Finished) -> bool:
    return arrays_of(run) is not None and {"data", "features"} <= run.config.keys()


def needs(runs: Sequence[Finished]) -> str | None:
    """Says what is missing: stored samples, and the data and features to compare them by."""
    if any(map(_usable, runs)):
        return None
    return "no finished run has stored samples (uint8, 1 or 3 channels) and names its data"


def _shown(runs: Sequence[Finished]) -> tuple[list[Setting], str]:
    """Returns no routing and the best other settings, and a line on those that are left out."""
    found = settings([run for run in runs if _usable(run)])
    ranked = sorted(found, key=lambda s: math.inf if math.isnan(s.score) else s.score)
    plain = [s for s in ranked if s.router == "NoRouting"][:1]
    kept = [*plain, *(s for s in ranked if s not in plain)][:SETTINGS]
    left = len(found) - len(kept)
    return kept, f"{left} other settings are not shown; name their runs to do so" if left else ""


def _image(ax: Axes, image: np.ndarray, column: float, row: int, copied: bool) -> None:
    """Draws an image uint8[C, H, W] at a place of the sheet, framed if it is (of) a copy."""
    top, left = row * STEP, column
    ax.imshow(rgb(image), extent=(left, left + 0.92, top + 0.92, top), interpolation="nearest")
    if copied:
        frame = {"fill": False, "edgecolor": COPY, "linewidth": 1.6}
        ax.add_patch(Rectangle((left, top), 0.92, 0.92, **frame))


def _block(ax: Axes, setting: Setting, reference: Reference) -> pd.DataFrame:
    """Draws a setting's samples that are nearest to training images; returns all numbers of it."""
    run = setting.runs[0]
    images, labels = arrays_of(run)
    found = nearest(torch.from_numpy(images), reference)
    copied = found.closest <= reference.copies.threshold
    threshold = float(reference.copies.threshold) * reference.rms
    closest, pixels = found.closest * reference.rms, found.pixels * reference.rms
    order = found.closest.argsort(stable=True)[:SAMPLES].tolist()
    train, numbers = reference.data.split("train"), []
    for row, i in enumerate(order):
        _image(ax, images[i], 0, row, bool(copied[i]))
        ax.text(0.46, row * STEP + 1.12, f"{closest[i]:.1f}", **TEXT)
        for j, index in enumerate(found.index[i].tolist()):
            near, gap = float(pixels[i, j]), float(found.features[i, j])
            same = bool(found.pixels[i, j] <= reference.copies.threshold)
            image, label = train[index]
            _image(ax, np.asarray(image), 1.3 + j, row, same)
            ax.text(1.76 + j, row * STEP + 1.12, f"{gap:.1f}", **TEXT)
            one = {"sample": i, "label": int(labels[i]), "closest_rms_grey": float(closest[i])}
            one |= {"threshold_rms_grey": threshold, "copy": bool(copied[i]), "rank": j + 1}
            one |= {"train_index": index, "train_label": int(label)}
            numbers.append(one | {"feature_distance": gap, "rms_grey": near})
    ax.set(xlim=(-0.05, 1.3 + found.index.shape[1]), ylim=(len(order) * STEP, -0.05))
    rows = f"rows: the {len(order)} closest of {len(images)} samples"
    share = f"{int(copied.sum())} of {len(images)} samples copy, threshold {threshold:.1f}"
    ax.set_title(f"{fill(short(setting.label, 72), 36)}\n{rows}\n{share}", fontsize=7)
    ax.set_axis_off()
    row = {"run": run.path.name, "setting": setting.label, "seed": run.seed}
    return pd.DataFrame([row | one for one in numbers])


@styled
def draw(runs: Sequence[Finished]) -> Drawing:
    """Draws, for up to three settings, the samples nearest to training images and their neighbours.

    Below a sample: its difference from the closest training image, which the rule of copies
    compares with the threshold (see metrics.Copies): the root mean square over the pixels and
    channels of their thumbnails, in grey levels of 0 to 255. Below a neighbour: its distance in
    features. A frame is a copy, and the training images that it copies. A setting shows its
    lowest seed.
    """
    kept, note = _shown(runs)
    references: dict[str, Reference] = {}
    block = WIDE / SETTINGS
    figure = new_figure(block * len(kept), 0.45 + SAMPLES * STEP * block / 6.7)
    axes = figure.subplots(1, len(kept), squeeze=False)[0]
    numbers = []
    for ax, setting in zip(axes, kept, strict=True):
        config = setting.runs[0].config
        limit = setting.runs[0].flat.get("evaluation.reference")
        key = json.dumps([config["data"], config["features"], limit], sort_keys=True)
        if key not in references:
            references[key] = Reference.of(setting.runs[0])
        numbers.append(_block(ax, setting, references[key]))
    told = [
        "left: samples, below them the root-mean-square difference per pixel from the closest "
        "training image, in grey levels of 0 to 255",
        "right: nearest training images, below them the distance in features; framed: a copy",
    ]
    caption(figure, *told, of_one([setting.runs[0] for setting in kept]), note)
    return Drawing(figure, pd.concat(numbers, ignore_index=True), note)
