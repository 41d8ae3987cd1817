"""A film: the mask of the current task while samples denoise, and a still of five moments."""

__all__ = ["TITLE", "Moments", "denoise", "draw", "needs"]

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from analysis.drawing.animation import Film
from analysis.drawing.fonts import short
from analysis.drawing.mask_tables import COLORS, enlarged, show
from analysis.drawing.style import WIDE, Drawing, caption, new_figure, of_one, styled
from analysis.figures.samples import rgb
from analysis.measure.load import load
from analysis.read.runs import Finished
from analysis.read.settings import settings
from dtr_lightning.config.registry import instantiate
from dtr_lightning.data import Data
from dtr_lightning.diffusion import FlowMatching, Process
from dtr_lightning.diffusion.samplers import DDIM, Euler, IndexedNoise, guided
from dtr_lightning.errors import UserError
from dtr_lightning.models import evaluation_mode
from dtr_lightning.routing import Router

TITLE = "One sample on its way"
FRAMES = 60  # denoising steps
HELD = 12  # frames that the end is shown for
CLASSES = 4
STILLS = 5
CURSOR = {"color": "#D55E00", "linewidth": 1.4, "clip_on": False}
BLOCK = 0  # whose mask is shown


class Moments(NamedTuple):
    """F moments of N samples that denoise together, from t = T - 1 down; images uint8."""

    t: list[float]  # F
    x: Tensor  # x_t (F, N, C, H, W)
    x0: Tensor  # what the network takes for the clean image at that t, alike
    labels: Tensor  # (N,)


def _clean(process: Process, output: Tensor, x: Tensor, t: Tensor) -> Tensor:
    """Returns the predicted x_0 (N, C, H, W) from the network's output at x = x_t."""
    if isinstance(process, FlowMatching):
        return x - process.tau(t)[:, None, None, None] * output[:, : x.shape[1]].float()
    return process.p_mean_variance(output.float(), x, t).x0


@torch.no_grad()
def denoise(
    module: torch.nn.Module,
    data: Data,
    labels: Tensor,
    protocol: Any,
    clip: bool = True,
) -> Moments:
    """Returns the moments of samples of these classes (N,), by 60 steps of DDIM or Euler.

    `data` are those of the training; guidance and seed are those of the run's protocol, a class
    starts from the noise of the index that is its label. `clip` limits every predicted x_0 to
    [-1, 1].
    """
    process, device = module.diffusion, module.device
    y = labels.to(device)
    network = guided(module.model, protocol.guidance, module.model.null, protocol.guidance_channels)
    times, seen, clean = [], [], []

    def watched(x: Tensor, t: Tensor) -> Tensor:
        output = network(x, t, condition)
        times.append(float(t[0]))
        seen.append(data.codec.decode(x).cpu())
        clean.append(data.codec.decode(_clean(process, output, x, t)).cpu())
        return output

    steps = min(FRAMES, process.T)
    sampler = (Euler if isinstance(process, FlowMatching) else DDIM)(steps, clip=clip)
    noise = IndexedNoise(protocol.seed, labels.tolist(), data.shape)
    with evaluation_mode(module):
        condition = module.condition(y, torch.zeros_like(y))
        sampler(watched, noise().to(device), process, lambda: noise().to(device))
    return Moments(times, torch.stack(seen), torch.stack(clean), labels)


def _routed(run: Finished) -> bool:
    """Returns whether the run's router has a table of masks."""
    config = run.config
    if run.choice("router") in ("", "NoRouting") or "data" not in config:
        return False
    steps = int(run.flat.get("trainer.max_steps", 1))
    router: Router = instantiate(Router, config["router"], seed=run.seed, steps=steps)
    router.bind(int(run.flat.get("diffusion.T", 1000)), [64], 64)
    return router.table(BLOCK) is not None


def _candidates(runs: Sequence[Finished]) -> list[Finished]:
    """Returns the runs that could be filmed: DTR first, then by score."""
    sound = [run for run in runs if math.isfinite(run.score) and run.last.is_file()]
    order = sorted(sound, key=lambda run: (run.choice("router") != "DTR", run.score))
    return [run for run in order if _routed(run)]


def needs(runs: Sequence[Finished]) -> str | None:
    """Says what is missing: a finished run with a checkpoint and a router that has masks."""
    if _candidates(runs):
        return None
    return "no finished run has a checkpoint and a router with a table of masks"


def _strip(ax: Axes, row: np.ndarray) -> Any:
    """Draws the mask bool[channels] of one task; returns the picture."""
    window = {"aspect": "auto", "extent": (0, len(row), 1, 0), "interpolation": "nearest"}
    shown = ax.imshow(enlarged(row[None], 1), cmap=COLORS, vmin=0, vmax=1, **window)
    ax.grid(False)
    ax.spines[:].set_visible(False)
    ax.set(yticks=[], xticks=[])
    return shown


def _table(ax: Axes, table: np.ndarray) -> None:
    """Draws the masks bool[tasks, channels]."""
    show(ax, torch.from_numpy(table))
    ax.set(xlabel="channel", ylabel="task t  (0 = cleanest)")


def _picture(ax: Axes, image: np.ndarray) -> Any:
    """Draws an image uint8[H, W, 3] without axes; returns the picture."""
    ax.set_axis_off()
    return ax.imshow(image, interpolation="nearest")


def _film(table: np.ndarray, moments: Moments, title: str, names: Sequence[str]) -> Film:
    """Returns the film: masks with a cursor at t, x_t above the predicted x_0."""
    figure = new_figure(6.4, 2.9)
    columns = len(moments.labels)
    grid = figure.add_gridspec(6, columns + 2, width_ratios=[1.1, 1.1, *[1] * columns])
    masks, top = figure.add_subplot(grid[1:, :2]), figure.add_subplot(grid[0, :2])
    _table(masks, table)
    cursor = masks.axhline(0, **CURSOR)
    strip = _strip(top, table[0])
    clock = top.set_title("", family="DejaVu Sans Mono", fontsize=7, loc="left")
    rows = [moments.x, moments.x0]
    pictures = []
    for part, images in zip((slice(0, 3), slice(3, 6)), rows, strict=True):
        for j in range(columns):
            ax = figure.add_subplot(grid[part, 2 + j])
            pictures.append((images, j, _picture(ax, rgb(images[0, j].numpy()))))
            if j == 0:
                what = "x$_t$, what the network sees" if images is moments.x else "x$_0$, its guess"
                ax.set_title(what, fontsize=8, loc="left", parse_math=True)
            if images is moments.x0:
                ax.text(0.5, -0.12, names[j], transform=ax.transAxes, fontsize=7, ha="center")
    figure.suptitle(title, fontsize=8)

    def show(i: int) -> None:
        t = moments.t[i]
        row = table[round(t)]
        cursor.set_ydata([t + 0.5, t + 0.5])
        strip.set_data(enlarged(row[None], 1))
        clock.set_text(f"t = {t:3.0f}: {row.sum()} of {len(row)} channels")
        for images, j, picture in pictures:
            picture.set_data(rgb(images[i, j].numpy()))

    last = len(moments.t) - 1
    return Film(figure, show, [*range(last + 1), *[last] * HELD])


def _still(table: np.ndarray, moments: Moments, title: str) -> Figure:
    """Returns a figure of five moments: masks, and per moment x_t beside the predicted x_0."""
    frames = np.linspace(0, len(moments.t) - 1, STILLS).round().astype(int).tolist()
    count, _, height, width = moments.x.shape[1:]
    figure = new_figure(WIDE, 0.75 + max(1.1, 0.46 * count * height / width))
    left, right = figure.subfigures(1, 2, width_ratios=[1.7, STILLS])
    grid = right.add_gridspec(9, STILLS)
    masks = left.subplots()
    _table(masks, table)
    for column, i in enumerate(frames):
        t = moments.t[i]
        masks.axhline(t + 0.5, **CURSOR)
        top = right.add_subplot(grid[0, column])
        _strip(top, table[round(t)])
        top.set_title(f"t = {t:.0f}", fontsize=7)
        pairs = torch.stack([moments.x[i], moments.x0[i]], 1)  # (N, 2, C, H, W)
        sheet = [np.concatenate([_framed(image) for image in pair], 1) for pair in pairs.numpy()]
        ax = right.add_subplot(grid[1:, column])
        _picture(ax, np.concatenate(sheet))
        ax.set_anchor("N")
        for place, name in ((0.25, "x$_t$"), (0.75, "guess of x$_0$")):
            above: dict[str, Any] = {"xytext": (0, 2), "textcoords": "offset points"}
            above |= {"ha": "center", "parse_math": True}
            ax.annotate(name, (place, 1), xycoords="axes fraction", **above, fontsize=6)
    figure.suptitle(title, fontsize=8)
    return figure


def _framed(image: np.ndarray) -> np.ndarray:
    """Returns an image uint8[C, H, W] as uint8[H', W', 3] with a white frame."""
    gap = max(1, image.shape[-1] // 16)
    return np.pad(rgb(image), ((gap, gap), (gap, gap), (0, 0)), constant_values=255)


def _numbers(run: Finished, table: np.ndarray, moments: Moments) -> pd.DataFrame:
    rows = []
    for frame, t in enumerate(moments.t):
        active = np.flatnonzero(table[round(t)])
        mask = {"active": len(active), "first": active.min(), "last": active.max()}
        for label in moments.labels.tolist():
            row = {"run": run.path.name, "seed": run.seed, "index": label, "label": label}
            rows.append(row | {"frame": frame, "t": t} | mask)
    return pd.DataFrame(rows)


@styled
def draw(runs: Sequence[Finished]) -> Drawing:
    """Draws five moments, and films all, of samples of one run: DTR's best, else the best routed.

    Name a run's directory to film that. The masks are those of the first block; x_0 is what the
    network predicts from x_t, out of range where a schedule leaves no signal. The numbers hold the
    active channels of every frame.
    """
    run, *others = _candidates(runs)
    trained = load(run)
    data, experiment = trained.experiment.data, trained.experiment
    masks = trained.module.model.router.table(BLOCK)
    assert masks is not None  # of a candidate
    table = masks.cpu().numpy()
    count = min(CLASSES, data.num_classes)
    labels = torch.arange(count) * data.num_classes // count
    if data.image_shape[0] not in (1, 3):
        raise UserError(f"film: images of {data.image_shape[0]} channels cannot be shown")
    clip = getattr(experiment.sampler, "clip", True)
    moments = denoise(trained.module, data, labels, experiment.protocol, clip)
    title = settings([run])[0].label
    if table.sum(1).min() < 1:
        raise UserError(f"film: {run.path.name} has tasks without any active channel")
    note = f"of {run.path.name}; name another run to film that" if others else ""
    figure, numbers = _still(table, moments, title), _numbers(run, table, moments)
    names = [short(data.class_names[label], 14) for label in labels.tolist()]
    caption(figure, of_one([run]), note)
    return Drawing(figure, numbers, note, _film(table, moments, title, names))
