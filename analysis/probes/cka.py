"""Figure 6: how alike the features of tasks are, block by block and router by router (CKA)."""

__all__ = ["CONFIG", "TITLE", "CKAConfig", "draw", "measure", "needs"]

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from textwrap import fill
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
import torch
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
from analysis.measure.probe import OnProgress, Probe, at_least, measured, needs, to_measure
from analysis.measure.similarity import LEAST, Estimator, Minibatches, gram
from analysis.read.runs import Finished
from dtr_lightning.errors import UserError, choices
from dtr_lightning.models import evaluation_mode

TITLE = "Similarity of representations (Figure 6)"
MOST_COLUMNS = 12  # of blocks, as in the paper
Feature = Literal["output", "update"]
Tokens = Literal["flat", "mean"]


@dataclass(frozen=True)
class CKAConfig:
    """What is compared: images of the data, timesteps i T / timesteps, and a block's features.

    Args:
        images: of the data, at least 4.
        timesteps: how many are compared, at least 2.
        batch: images of a minibatch of the HSIC, at least.
        estimator: of the HSIC.
        feature: a block's output z^{l+1}, or its update z^{l+1} - z^l, which the residual stream
            does not dominate.
        tokens: all of an image as one vector (flat), or their mean.
        seed: of the noise and the order of the images.
    """

    images: int = 512
    timesteps: int = 50
    batch: int = 128
    estimator: Estimator = "unbiased"
    feature: Feature = "output"
    tokens: Tokens = "flat"
    seed: int = 0

    def __post_init__(self) -> None:
        at_least(self, images=LEAST, timesteps=2, batch=LEAST, seed=0)
        for name, kind in {"estimator": Estimator, "feature": Feature, "tokens": Tokens}.items():
            if (value := getattr(self, name)) not in get_args(kind):
                raise choices(name, value, get_args(kind))


CONFIG = CKAConfig


def blocks(model: nn.Module) -> dict[str, nn.Module]:
    """Returns the blocks to compare, by name: a DiT's, or the routed stages of an ADM.

    UserError for a backbone that has neither.
    """
    if _convolutional(model):
        stages = {f"in {i}": block for i, block in enumerate(model.input_blocks, 1)}
        stages["middle"] = model.middle_block
        stages |= {f"out {i}": block for i, block in enumerate(model.output_blocks, 1)}
        return {name: block for name, block in stages.items() if block.reads}
    if isinstance(listed := getattr(model, "blocks", None), nn.ModuleList):
        return {f"block {i}": block for i, block in enumerate(listed, 1)}
    raise UserError(f"{type(model).__name__} has no list `blocks` whose outputs can be compared")


def _convolutional(model: nn.Module) -> bool:
    """Returns whether it is an ADM; its class is not asked, which would import Lightning."""
    return hasattr(model, "middle_block")


def _reader(
    features: list[Tensor], config: CKAConfig, channel_dim: int
) -> Callable[[nn.Module, Any, Tensor], None]:
    """Returns a forward hook that appends the Gram matrix (n, n) of a block's features."""

    def read(block: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        if config.feature == "update":
            if inputs[0].shape != output.shape:
                raise UserError("feature update needs blocks that keep their shape; valid: output")
            output = output - inputs[0]
        if config.tokens == "mean":
            dims = [dim for dim in range(1, output.ndim) if dim != channel_dim % output.ndim]
            output = output.mean(dims)
        features.append(gram(output.float()))

    return read


@torch.no_grad()
def measure(probe: Probe, config: CKAConfig, on_progress: OnProgress) -> Mapping[str, np.ndarray]:
    """Returns t (m,), block names, number of images, CKA [blocks, m, m] by either estimator."""
    model, process = probe.module.model, probe.module.diffusion
    named = blocks(model)
    at = torch.arange(config.timesteps) * process.T // config.timesteps
    if at.unique().numel() < len(at):
        raise UserError(f"timesteps must be at most T = {process.T}; got {config.timesteps}")
    sums = {kind: [Minibatches(kind) for _ in named] for kind in get_args(Estimator)}
    parts = list(probe.minibatches(config.batch))
    read: list[Tensor] = []
    reader = _reader(read, config, 1 if _convolutional(model) else -1)
    hooks = [block.register_forward_hook(reader) for block in named.values()]
    try:
        for i, part in enumerate(parts):
            n = len(part.x0)
            grams = torch.empty(len(named), len(at), n, n, dtype=torch.float64)
            for j, t in enumerate(at.tolist()):
                read.clear()
                tasks = part.tasks(t)
                with evaluation_mode(model):
                    model(process.q_sample(part.x0, tasks, part.noise), tasks, part.y)
                grams[:, j] = torch.stack(read)
                on_progress((i + (j + 1) / len(at)) / len(parts))
            for minibatches in sums.values():
                for block, own_grams in zip(minibatches, grams, strict=True):
                    block.add(own_grams)
    finally:
        for hook in hooks:
            hook.remove()
    cka = {kind: torch.stack([b.cka() for b in each]).numpy() for kind, each in sums.items()}
    images = np.array(len(probe.x0))
    return {"t": at.numpy(), "blocks": np.array(list(named)), "images": images, **cka}


@styled
def draw(runs: Sequence[Finished], config: CKAConfig | None = None) -> Drawing:
    """Draws CKA [t, t] for every block (columns) and setting (rows, the lowest seed of each).

    All see the same images and noise, at all t. The numbers hold t <= t2: CKA is symmetric.
    """
    config = config or CKAConfig()
    selected, lines = to_measure(runs)
    # Both estimators are stored together, whichever is shown.
    stored = replace(config, estimator="unbiased")
    numbers, failed = measured("cka", [s.runs[0] for s in selected], stored, measure)
    rows = [s for s in selected if s.runs[0].path in numbers]
    if not rows:
        raise UserError(f"cka: nothing to draw: {'; '.join(failed)}")
    arrays = [numbers[s.runs[0].path] for s in rows]
    columns = [_spaced(len(each["blocks"])) for each in arrays]
    count = max(map(len, columns))
    panel = min(1.1, (WIDE - 1.1) / count)
    figure = new_figure(min(WIDE, 1.3 + panel * count), 0.45 + (panel + 0.12) * len(rows))
    grid = figure.subplots(len(rows), count, squeeze=False, sharex=True, sharey=True)
    low = min(0.0, *(float(np.nanmin([*each[config.estimator].flat, 0])) for each in arrays))
    alike = all(list(each["blocks"]) == list(arrays[0]["blocks"]) for each in arrays)
    tables = []
    for setting, each, numbered, axes in zip(rows, arrays, columns, grid, strict=True):
        t, cka = each["t"], each[config.estimator]
        tasks = int(setting.runs[0].flat.get("diffusion.T", 1000))
        for ax in axes[len(numbered) :]:
            ax.set_visible(False)
        for ax, i in zip(axes, numbered, strict=False):
            image = ax.imshow(cka[i], vmin=low, vmax=1, extent=(0, tasks, tasks, 0), cmap="viridis")
            ax.grid(False)
            task_ticks(ax, tasks, "x", middle=count <= 6)
            task_ticks(ax, tasks, "y", middle=count <= 6)
            if setting is rows[0] or not alike:
                ax.set_title(str(each["blocks"][i]), fontsize=7)
            if setting is rows[-1]:
                ax.set_xlabel("t")
                # the last of a panel and the first of the next share the room
                for i, label in enumerate(ax.get_xticklabels() if count > 6 else ()):
                    label.set_ha("right" if i else "left")
            upper = np.triu_indices(len(t))
            row = {"setting": setting.label, "run": setting.runs[0].path.name}
            row |= {"block": str(each["blocks"][i]), "t": t[upper[0]], "t2": t[upper[1]]}
            tables.append(pd.DataFrame(row | {"cka": cka[i][upper].round(6)}))
        letters = 16 if count <= 6 else 10  # as high as a panel
        axes[0].set_ylabel(f"{fill(short(setting.label, 3 * letters), letters)}\nt", fontsize=7)
    bar = figure.colorbar(image, ax=grid, shrink=min(1.0, 1.6 / len(rows)), aspect=18, pad=0.02)
    bar.set_label(f"CKA ({config.estimator})\n{count_images(arrays, config.images)}", fontsize=7)
    note = "; ".join([*lines, *failed])
    caption(figure, of_one([s.runs[0] for s in rows]), note)
    return Drawing(figure, pd.concat(tables, ignore_index=True), note)


def _spaced(blocks: int) -> list[int]:
    """Returns the blocks that have a column, first and last included."""
    return np.linspace(0, blocks - 1, min(blocks, MOST_COLUMNS)).round().astype(int).tolist()
