"""Channels that two tasks share, for every router among the runs, and Appendix B's expectation."""

__all__ = ["TITLE", "draw", "needs"]

from collections.abc import Sequence

import numpy as np
import pandas as pd
from torch import Tensor

from analysis.drawing.mask_tables import SMOOTH, Masks, enlarged, few_periods, mask_tables, of_masks
from analysis.drawing.style import (
    NARROW,
    WIDE,
    Drawing,
    caption,
    new_figure,
    panel_title,
    styled,
    task_ticks,
)
from analysis.read.runs import Finished

TITLE = "Channels that two tasks share"
SHOWN = 50  # tasks whose pairs are in the numbers, equally spaced; all are drawn


def needs(runs: Sequence[Finished]) -> str | None:
    """Masks follow from formulas: no run is needed."""
    return None


def _shared(table: Tensor) -> np.ndarray:
    """Returns |A_i and A_j| / C, float64[tasks, tasks]."""
    active = table.double()
    return (active @ active.T / table.shape[1]).numpy()


def _mean(shared: np.ndarray) -> float:
    """Returns the mean over pairs of different tasks."""
    tasks = len(shared)
    return float((shared.sum() - np.trace(shared)) / (tasks * (tasks - 1)))


def _numbers(masks: Masks, shared: np.ndarray, at: np.ndarray) -> pd.DataFrame:
    i, j = np.triu_indices(len(at))
    tasks = {"task": at[i], "other_task": at[j], "overlap": shared[at[i], at[j]]}
    expected = (masks.row["active"] / masks.row["channels"]) ** 2
    return pd.DataFrame(masks.row | {"mean": _mean(shared), "expected_random": expected} | tasks)


@styled
def draw(runs: Sequence[Finished]) -> Drawing:
    """Draws |A_i and A_j| / C for all tasks i, j, in one colour scale, with the mean of i != j.

    Independent random masks of C_beta channels share C_beta^2 / C in expectation (Appendix B). A
    row of the numbers is a pair of SHOWN tasks; `mean` is over all pairs.
    """
    shown, note = mask_tables(runs)
    columns = min(4, len(shown))
    rows = -(-len(shown) // columns)
    shared = [_shared(masks.table) for masks in shown]
    low = min(float(each.min()) for each in shared)
    high = max(float(each.max()) for each in shared)
    figure = new_figure(max(NARROW, WIDE * columns / 4), 0.5 + 1.75 * rows)
    axes = figure.subplots(rows, columns, squeeze=False)
    parts = any(few_periods(masks.table)[1] for masks in shown)  # whose axes are not as others'
    numbers = []
    for i, (ax, masks, each) in enumerate(zip(axes.ravel(), shown, shared, strict=False)):
        tasks, (drawn, repeats) = len(each), few_periods(masks.table)
        at = np.unique(np.linspace(0, tasks - 1, min(SHOWN, tasks)).round().astype(int))
        numbers.append(_numbers(masks, each, at))
        side = len(drawn)
        picture = {"cmap": "cividis", "vmin": low, "vmax": high, "extent": (0, side, side, 0)}
        small = enlarged(enlarged(each[:side, :side], 0), 1)
        image = ax.imshow(small.astype(np.float32), **picture, **SMOOTH)
        ax.grid(False)
        task_ticks(ax, side, "x")
        task_ticks(ax, side, "y")
        lines = [f"mean {_mean(each):.3f}", *filter(None, [repeats])]
        if masks.setting.router == "RTR":
            lines.append(f"expected {numbers[-1].expected_random.iloc[0]:.3f}")
        panel_title(ax, masks.name, *lines, width=24)
        if i % columns and not parts:
            ax.set_yticklabels([])
        if not i % columns:
            ax.set_ylabel("task i")
        if i + columns >= len(shown):
            ax.set_xlabel("task j")
    for ax in axes.ravel()[len(shown) :]:
        ax.set_axis_off()
    bar = figure.colorbar(image, ax=axes, aspect=15 * rows, pad=0.01)
    bar.set_label("channels that both read / C")
    random = "expected of random masks: $C_\\beta^2 / C$ of C channels (Appendix B)"
    title = "mean: over tasks i ≠ j"
    if any(masks.setting.router == "RTR" for masks in shown):
        title += f"{'; ' if columns > 2 else chr(10)}{random}"
    figure.suptitle(title, fontsize=7, parse_math=True)
    caption(figure, of_masks(runs), note)
    return Drawing(figure, pd.concat(numbers, ignore_index=True), note)
