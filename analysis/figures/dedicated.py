"""Which tenth of the timeline gets channels of its own, for every router among the runs."""

__all__ = ["TITLE", "draw", "needs"]

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch

from analysis.drawing.mask_tables import Masks, mask_tables, of_masks
from analysis.drawing.style import (
    GREY,
    WIDE,
    Drawing,
    as_label,
    caption,
    legend,
    lines,
    new_figure,
    score_axis,
    styled,
    task_ticks,
)
from analysis.read.runs import Finished
from analysis.read.settings import highlighted

TITLE = "Channels of one part of the timeline"
TENTHS = 10
PANELS = {
    "switched_on": "switched on: read in this tenth\nand not in the one before",
    "own": "its own: of the tasks that read it,\nover half are in this tenth",
}


def needs(runs: Sequence[Finished]) -> str | None:
    """Masks follow from formulas: no run is needed."""
    return None


def _numbers(masks: Masks) -> pd.DataFrame:
    """Returns counts of channels per tenth; a tenth reads what any of its tasks reads.

    `switched_on` are read here and not in the tenth before, `switched_off` the reverse (both 0 for
    the first); `own` have over half of their tasks in this tenth, `only` are read in no other.
    """
    table = masks.table
    tenth = torch.arange(len(table)) * TENTHS // len(table)
    read = np.stack([table[tenth == i].any(0).numpy() for i in range(TENTHS)])
    before = np.concatenate([read[:1], read[:-1]])
    edges = [int((tenth < i).sum()) for i in range(TENTHS + 1)]
    counts = {"switched_on": (read & ~before).sum(1), "switched_off": (before & ~read).sum(1)}
    tasks = np.stack([table[tenth == i].sum(0).numpy() for i in range(TENTHS)])
    counts |= {"own": (2 * tasks > tasks.sum(0)).sum(1)}
    counts |= {"only": (read & (read.sum(0) == 1)).sum(1)}
    place = {"t_first": edges[:-1], "t_last": np.array(edges[1:]) - 1}
    return pd.DataFrame(masks.row | place | counts)


@styled
def draw(runs: Sequence[Finished]) -> Drawing:
    """Draws the channels that each tenth of the timeline switches on, and those that are its own.

    The first are DTR's task weights: by how many channels its window moves (Section 4.3). Routers
    of eight clusters do not switch in every tenth. Of masks that differ between blocks, block 0 is
    counted.
    """
    shown, note = mask_tables(runs)
    numbers = [_numbers(masks) for masks in shown]
    figure = new_figure(WIDE, 2.5)
    axes = figure.subplots(1, 2, sharey=True)
    front = {id(setting) for setting in highlighted([masks.setting for masks in shown])}
    coloured = [masks for masks in shown if id(masks.setting) in front]
    styles = iter(lines([masks.setting.router for masks in coloured]))
    wider = min(0.7, 3 / max(1, len(coloured)))  # what lies under another line shows beside it
    under = len(coloured)
    for masks, rows in zip(shown, numbers, strict=True):
        style = GREY | {"zorder": 1}
        if id(masks.setting) in front:
            under -= 1
            style = next(styles) | {"label": as_label(masks.name), "clip_on": False, "zorder": 3}
            style |= {"linewidth": 1.2 + under * wider, "markersize": 4 + 1.5 * under * wider}
        for ax, column in zip(axes, PANELS, strict=True):
            ax.plot((rows.t_first + rows.t_last + 1) / 2, rows[column], **style)
    if rest := sum(id(masks.setting) not in front for masks in shown):
        axes[0].plot([], [], **GREY, label=f"others ({rest})")
    tasks = max(len(masks.table) for masks in shown)
    table = pd.concat(numbers, ignore_index=True)
    score_axis(axes[0], [*table.switched_on, *table.own], log=False)
    axes[0].set_ylim(bottom=-0.04 * axes[0].get_ylim()[1])  # lines at 0 lie beside the axis
    for ax, title in zip(axes, PANELS.values(), strict=True):
        ax.set_title(title, fontsize=7)
        task_ticks(ax, tasks)
        ax.set_xlabel("timestep t (0 = cleanest), in tenths")
    widths = sorted({masks.table.shape[1] for masks in shown})
    axes[0].set_ylabel(f"channels of {', '.join(map(str, widths))}")
    legend(figure)
    caption(figure, of_masks(runs), note)
    return Drawing(figure, table, note)
