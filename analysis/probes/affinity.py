"""Task affinity: cosine similarity of the gradients of tasks, over t and over log-SNR.

The measure is that of Go et al., *Addressing Negative Transfer in Diffusion Models*, 2023.
Clusters by affinity read it: each run gets artifacts/affinity.npy.
"""

__all__ = ["CONFIG", "FILE", "TITLE", "AffinityConfig", "draw", "measure", "needs"]

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from textwrap import fill
from typing import Literal, get_args

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from torch import Tensor, nn

from analysis.drawing.fonts import short
from analysis.drawing.style import (
    WIDE,
    Drawing,
    caption,
    count_images,
    new_figure,
    of_one,
    styled,
    task_ticks,
)
from analysis.measure.probe import (
    OnProgress,
    Probe,
    artifact,
    at_least,
    measured,
    needs,
    to_measure,
)
from analysis.measure.similarity import PARTS, Projection, cosines, interpolated
from analysis.read.runs import Finished
from dtr_lightning.errors import UserError, choices
from dtr_lightning.models import evaluation_mode
from dtr_lightning.rundir.atomic import writing

TITLE = "Similarity of the tasks' gradients"
FILE = "affinity.npy"
BATCH = 128  # images of one backward pass; it changes the memory, not the result
EXACT = 2**28  # float32 numbers, 1 GiB: the gradients of all timesteps that are held at once
COLUMNS = 4
COLOURS = {"cmap": "RdBu_r", "vmin": -1, "vmax": 1}
Method = Literal["auto", "exact", "projected"]


@dataclass(frozen=True)
class AffinityConfig:
    """Gradients of mse + vb, unweighted, mean over images: at timesteps from 0 to T - 1, evenly.

    The network is in evaluation mode and no label is dropped. (Go et al. measure in training mode,
    in which a gradient depends on what happened to be dropped.)

    Args:
        images: of the data, at least 1.
        timesteps: how many are compared, at least 2.
        method: exact holds all gradients, projected a random projection of each; auto is exact up
            to 1 GiB.
        size: numbers of a projected gradient.
        seed: of the noise, the order of the images and the projection.
    """

    images: int = 512
    timesteps: int = 50
    method: Method = "auto"
    size: int = 16_384
    seed: int = 0

    def __post_init__(self) -> None:
        at_least(self, images=1, timesteps=2, size=PARTS, seed=0)
        if self.size % PARTS:
            raise UserError(f"size must be a multiple of {PARTS}; got {self.size}")
        if self.method not in get_args(Method):
            raise choices("method", self.method, get_args(Method))


CONFIG = AffinityConfig


def _gradient(probe: Probe, parameters: list[nn.Parameter], t: int) -> list[Tensor]:
    """Returns the gradient of the mean loss of all images at t, one tensor per parameter."""
    total = [torch.zeros_like(p) for p in parameters]
    for part in probe.minibatches(BATCH):
        with evaluation_mode(probe.module):
            losses = probe.module.losses(part.x0, part.tasks(t), part.y, part.noise)
            loss = (losses.mse + losses.vb).sum() / len(probe.x0)
            gradient = torch.autograd.grad(loss, parameters, materialize_grads=True)
        for summed, new in zip(total, gradient, strict=True):
            summed += new
    return total


def _exact(gradients: Tensor) -> Tensor:
    """Returns the inner products float64 (m, m) of gradients float32 (m, P)."""
    products = torch.zeros(len(gradients), len(gradients), dtype=torch.float64)
    for chunk in gradients.split(2**20, 1):
        products += (wide := chunk.double()) @ wide.T
    return products


def measure(
    probe: Probe, config: AffinityConfig, on_progress: OnProgress
) -> Mapping[str, np.ndarray]:
    """Returns t (m,), log-SNR of all T tasks, cosines [m, m], the projection's error, images.

    The error is rms and largest over pairs of different t: of the projection against the exact
    cosines or, if only the projection is held, the standard error of the mean of its parts.
    """
    process = probe.module.diffusion
    if config.timesteps > process.T:
        raise UserError(f"timesteps must be at most T = {process.T}; got {config.timesteps}")
    at = torch.linspace(0, process.T - 1, config.timesteps, dtype=torch.float64).round().long()
    parameters = [p for p in probe.module.model.parameters() if p.requires_grad]
    count = sum(p.numel() for p in parameters)
    exact = config.method == "exact" or (config.method == "auto" and count * len(at) <= EXACT)
    held = torch.empty(len(at) if exact else 0, count)
    project = Projection(config.size, config.seed)
    parts = torch.empty(len(at), PARTS, config.size // PARTS, dtype=torch.float64)
    for i, t in enumerate(at.tolist()):
        gradient = _gradient(probe, parameters, t)
        parts[i] = project(gradient)
        if exact:
            held[i] = torch.cat([piece.flatten() for piece in gradient]).cpu()
        on_progress((i + 1) / len(at))
    affinity = cosines((flat := parts.flatten(1)) @ flat.T)
    if exact:
        projected, affinity = affinity, cosines(_exact(held))
        error = projected - affinity
    else:
        each = torch.stack([cosines(part @ part.T) for part in parts.unbind(1)])
        error = each.std(0) / PARTS**0.5
    error = error[~torch.eye(len(at), dtype=torch.bool)]
    return {
        "t": at.numpy(),
        "log_snr": process.log_snr().cpu().numpy(),
        "affinity": affinity.numpy(),
        "exact": np.array(exact),
        "images": np.array(len(probe.x0)),
        "error": np.array([error.square().mean().sqrt(), error.abs().max()]),
    }


@styled
def draw(runs: Sequence[Finished], config: AffinityConfig | None = None) -> Drawing:
    """Draws the affinity of every setting (its lowest seed), over t and below over log-SNR.

    Every run gets artifacts/affinity.npy, float32 [T, T]: between measured timesteps the unit
    gradient is interpolated linearly (`similarity.interpolated`). The numbers hold t <= t2.
    """
    config = config or AffinityConfig()
    selected, lines = to_measure(runs)
    numbers, failed = measured("affinity", [s.runs[0] for s in selected], config, measure)
    rows = [s for s in selected if s.runs[0].path in numbers]
    if not rows:
        raise UserError(f"affinity: nothing to draw: {'; '.join(failed)}")
    columns = min(COLUMNS, len(rows))
    pairs = -(-len(rows) // columns)
    figure = new_figure(min(WIDE, 1.1 + 1.5 * columns), 3.4 * pairs)
    grid = figure.subplots(2 * pairs, columns, squeeze=False)
    tables = []
    for ax in grid.flat:
        ax.set_visible(False)
    for i, setting in enumerate(rows):
        run = setting.runs[0]
        arrays = numbers[run.path]
        affinity, t, log_snr = arrays["affinity"], arrays["t"], arrays["log_snr"]
        full = interpolated(torch.from_numpy(affinity), torch.from_numpy(t), len(log_snr)).float()
        with writing(artifact(run, FILE)) as part:
            np.save(part, full.numpy())
        over_t, over_snr = grid[2 * (i // columns) : 2 * (i // columns) + 2, i % columns]
        image = _panel(over_t, t, affinity, (0, len(log_snr)))
        for axis in "xy":
            task_ticks(over_t, len(log_snr), axis)
        over_t.set(title=fill(short(setting.label, 66), 22), xlabel="t")
        _panel(over_snr, log_snr[t], affinity, (log_snr[0], log_snr[-1]))
        over_snr.set(xlabel="log SNR", xlim=_within(over_snr.get_xlim()))
        over_snr.set_ylim(_within(over_snr.get_ylim()))
        if not i % columns:
            over_t.set_ylabel("t")
            over_snr.set_ylabel("log SNR")
        upper = np.triu_indices(len(t))
        row = {"setting": setting.label, "run": run.path.name, "t": t[upper[0]], "t2": t[upper[1]]}
        row |= {"log_snr": log_snr[t][upper[0]], "log_snr2": log_snr[t][upper[1]]}
        row |= {"affinity": affinity[upper], "method": "exact" if arrays["exact"] else "projected"}
        row |= {"projection_rms": arrays["error"][0], "projection_max": arrays["error"][1]}
        tables.append(pd.DataFrame(row).round(6))
    bar = figure.colorbar(image, ax=grid, shrink=1 / pairs, aspect=24, pad=0.02)
    of = count_images([numbers[s.runs[0].path] for s in rows], config.images)
    bar.set_label(f"cosine of gradients, {of}", fontsize=7)
    table = pd.concat(tables, ignore_index=True)
    notes = [_accuracy(table, config.size), f"clusters read each run's artifacts/{FILE}"]
    note = "; ".join([*notes, *lines, *failed])
    caption(figure, of_one([s.runs[0] for s in rows]), "; ".join([*lines, *failed]))
    return Drawing(figure, table, note)


def _accuracy(table: pd.DataFrame, size: int) -> str:
    """Returns how far the projection is off, of the runs that it was used for if there are any."""
    used = table[table.method == "projected"]
    of = used if len(used) else table
    error = f"off by {of.projection_rms.max():.4f} rms, {of.projection_max.max():.4f} at most"
    if len(used):
        return f"gradients projected to {size:,} numbers, {error}, as its parts show"
    return f"exact gradients; projected to {size:,} numbers they would be {error}"


def _within(limits: tuple[float, float]) -> list[float]:
    """Returns limits of log-SNR, cut at +-10: a schedule's last steps span half of its range."""
    return np.clip(limits, -10, 10).tolist()


def _panel(ax: Axes, x: np.ndarray, affinity: np.ndarray, ends: Sequence[float]) -> object:
    """Draws affinities [m, m] at x (m,) between two ends, from the clean one to the noisy one.

    Colours diverge from 0: red agree, blue pull apart.
    """
    middle = (x[1:] + x[:-1]) / 2
    edges = np.concatenate([[1.0 * ends[0]], middle, [ends[1]]])
    ax.set_visible(True)
    ax.grid(False)
    image = ax.pcolormesh(edges, edges, affinity, rasterized=True, **COLOURS)
    ax.set(xlim=(edges[0], edges[-1]), ylim=(edges[-1], edges[0]), box_aspect=1)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(4))  # the same ticks on both
    return image
