"""Figure 2: which channels each task may read, for every router among the runs."""

__all__ = ["TITLE", "draw", "needs"]

from collections.abc import Sequence

import numpy as np
import pandas as pd
from torch import Tensor

from analysis.drawing.mask_tables import Masks, few_periods, mask_tables, of_masks, show
from analysis.drawing.style import NARROW, WIDE, Drawing, caption, new_figure, panel_title, styled
from analysis.read.runs import Finished

TITLE = "Masks (Figure 2)"
MOST = 5_000  # intervals of channels that the numbers of one table may take


def needs(runs: Sequence[Finished]) -> str | None:
    """Masks follow from formulas: no run is needed."""
    return None


def _intervals(row: Tensor) -> str:
    """Returns the active channels of a mask, first to last: `0-50`, or `0-31 44-47`."""
    edges = np.flatnonzero(np.diff(row.numpy().astype(int), prepend=0, append=0))
    return " ".join(f"{low}-{high - 1}" for low, high in edges.reshape(-1, 2))


def _numbers(masks: Masks) -> pd.DataFrame:
    """Returns the stretches of tasks with an equal mask, and its active channels.

    One row without channels where that would take more than MOST intervals, as with random masks.
    """
    table = masks.table
    first = np.flatnonzero(np.r_[True, (table[1:] != table[:-1]).any(1).numpy()])
    last = np.r_[first[1:] - 1, len(table) - 1]
    starts = int((table[first, 1:] & ~table[first, :-1]).sum() + table[first, 0].sum())
    if starts > MOST:
        first, last, read = first[:1], last[-1:], [""]
    else:
        read = [_intervals(table[t]) for t in first]
    seed = masks.setting.runs[0].seed if masks.setting.runs else 0
    row = masks.row | {"block": 0, "seed": seed}
    return pd.DataFrame(row | {"task_first": first, "task_last": last, "read": read})


@styled
def draw(runs: Sequence[Finished]) -> Drawing:
    """Draws tables bool[tasks, channels], those of the paper's figure if no run has any.

    Masks that change in training are shown at the first and the last step; of masks that differ
    between blocks, those of block 0; of masks that repeat themselves, a few periods.
    """
    shown, note = mask_tables(runs)
    columns = min(4, len(shown))
    rows = -(-len(shown) // columns)
    figure = new_figure(max(NARROW, WIDE * columns / 4), 0.45 + 1.6 * rows)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    parts = any(few_periods(masks.table)[1] for masks in shown)  # whose axes are not as others'
    for i, (ax, masks) in enumerate(zip(axes, shown, strict=False)):
        table, repeats = few_periods(masks.table)
        show(ax, table)
        panel_title(ax, masks.name, "(block 0)" * masks.differs, repeats)
        if i % columns and not parts:
            ax.set_yticklabels([])
        if not i % columns:
            ax.set_ylabel("task t")
        if i + columns >= len(shown):
            ax.set_xlabel("channel")
    for ax in axes[len(shown) :]:
        ax.set_axis_off()
    figure.suptitle("yellow: channels that a task reads (t = 0 is the cleanest)", fontsize=7)
    caption(figure, of_masks(runs), note)
    return Drawing(figure, pd.concat(map(_numbers, shown), ignore_index=True), note)
