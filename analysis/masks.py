"""Figure 2: which channels each task may read, for random routing and DTR at three alphas."""

__all__ = ["NAME", "draw", "needs"]

from collections.abc import Sequence

import pandas as pd
import torch
from matplotlib.colors import ListedColormap
from torch import Tensor

from analysis.runs import ALPHA, Finished
from analysis.style import WIDE, Drawing, new_figure, styled
from dtr_lightning import masks

NAME = "masks"
BETA = 0.8
WIDTHS = {"DiT_S": 384, "DiT_B": 768, "DiT_L": 1024, "DiT_XL": 1152}
PANELS = {
    "random": None,
    f"0 < {ALPHA} < 1  ({ALPHA} = 0.5)": 0.5,
    f"{ALPHA} = 1": 1.0,
    f"{ALPHA} > 1  ({ALPHA} = 4)": 4.0,
}
COLORS = ListedColormap(["#440154", "#FDE725"])  # off, active


def needs(runs: Sequence[Finished]) -> str | None:
    """Masks follow from formulas: no run is needed."""
    return None


def _width(run: Finished) -> int | None:
    width = run.flat.get("model.hidden_size", WIDTHS.get(run.choice("model")))
    return None if width is None else int(width)


def _offsets(table: Tensor, panel: str, alpha: float | None) -> pd.DataFrame:
    """Returns the stretches of tasks with an equal mask; random masks have no window to tell."""
    row = {"panel": panel, "alpha": alpha, "beta": BETA, "channels": table.shape[1]}
    active = int(table[0].sum())
    if alpha is None:
        everything = {"task_first": 0, "task_last": len(table) - 1, "active": active}
        return pd.DataFrame([row | everything | {"seed": 0}])
    start = pd.Series(table.int().argmax(dim=1).numpy())
    first = start.index[start.diff().ne(0)]
    last = [*(first[1:] - 1), len(start) - 1]
    offset = start[first].to_numpy()
    windows = {"task_first": first, "task_last": last, "active": active}
    return pd.DataFrame(row | windows | {"start": offset, "stop": offset + active})


@styled
def draw(runs: Sequence[Finished]) -> Drawing:
    """Draws four tables bool[tasks, channels]; C and T are the first run's, else 768 and 1000.

    The numbers are the window [start, stop) of every stretch of tasks.
    """
    flat = runs[0].flat if runs else {}
    channels = next(filter(None, map(_width, runs)), 768)
    tasks = int(flat.get("diffusion.T", 1000))
    figure = new_figure(WIDE, 2.05)
    axes = figure.subplots(1, len(PANELS), sharey=True)
    numbers = []
    for ax, (panel, alpha) in zip(axes, PANELS.items(), strict=True):
        if alpha is None:
            table = masks.random(tasks, channels, BETA, torch.Generator().manual_seed(0))
        else:
            table = masks.dtr(tasks, channels, alpha, BETA)
        window = {"aspect": "auto", "extent": (0, channels, tasks, 0)}
        ax.imshow(table, cmap=COLORS, vmin=0, vmax=1, **window, interpolation="nearest")
        ax.grid(False)
        ax.set(title=panel, xlabel="channel", xticks=[0, channels // 2, channels])
        numbers.append(_offsets(table, panel, alpha))
    axes[0].set_ylabel("task t  (0 = cleanest)")
    ax.set_yticks([0, tasks // 2, tasks])
    figure.suptitle(f"yellow: active (β = {BETA} of {channels} channels)", fontsize=8)
    return Drawing(figure, pd.concat(numbers, ignore_index=True))
