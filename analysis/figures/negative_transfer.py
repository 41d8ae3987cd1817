"""Negative transfer: held-out loss of experts for ranges of the timeline, beside the joint model.

The gap of Go et al., *Addressing Negative Transfer in Diffusion Models*, 2023, is one of FID, see
`transfer`; this one is of the loss, which runs have recorded: no sampling.
"""

__all__ = ["TITLE", "compared", "draw", "intervals", "needs", "pairs"]

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from analysis.drawing.style import (
    WIDE,
    Drawing,
    as_label,
    caption,
    legend,
    lines,
    new_figure,
    of_seeds,
    panel_title,
    range_ticks,
    styled,
)
from analysis.figures.tasks import losses_of
from analysis.read.runs import Finished
from analysis.read.settings import settings
from analysis.read.statistics import t_interval
from dtr_lightning.diffusion.clusters import Interval, ranges
from dtr_lightning.errors import UserError

TITLE = "Experts against one network"
OWN = ("experts", "trainer.max_steps")  # what an expert run and its joint run may differ in


def intervals(run: Finished) -> list[Interval]:
    """Returns the ranges [low, high) of a run's experts, one for a joint run."""
    try:
        return ranges(int(run.flat.get("diffusion.T", 1000)), run.flat.get("experts", 1))
    except (UserError, TypeError, ValueError):
        return []


def pairs(runs: Sequence[Finished]) -> list[tuple[Finished, Finished]]:
    """Returns (run of experts, joint run of the same seed).

    They are equal in all but the number of experts and the steps; of several joint runs, the one
    with the most steps.
    """
    joint = sorted(
        (run for run in runs if len(intervals(run)) == 1),
        key=lambda run: run.flat.get("trainer.max_steps", 0),
    )
    twins = {run.hash_without(*OWN): run for run in joint}
    experts = [run for run in runs if len(intervals(run)) > 1]
    return [(run, twin) for run in experts if (twin := twins.get(run.hash_without(*OWN)))]


def _recorded(runs: Sequence[Finished]) -> list[tuple[Finished, Finished]]:
    """Returns the pairs of which both have held-out losses per eighth."""
    return pairs([run for run in runs if losses_of(run)])


def needs(runs: Sequence[Finished]) -> str | None:
    """Says what is missing: a run of experts and a joint run, both with validation losses."""
    if _recorded(runs):
        return None
    if not any(len(intervals(run)) > 1 for run in runs):
        return "needs a run of experts: --experts 4"
    return "needs a joint run that differs from the experts' in experts and steps alone"


def _gaps(experts: Finished, joint: Finished) -> Iterator[dict]:
    """Yields a row per eighth, and per expert whose range is a union of eighths: its mean."""
    mine, theirs = losses_of(experts), losses_of(joint)
    eighths = sorted(mine.keys() & theirs.keys())
    spans = [("eighth", first, last, [(first, last)]) for first, last in eighths]
    for low, high in intervals(experts):
        inside = [(first, last) for first, last in eighths if low <= first and last < high]
        if sum(last - first + 1 for first, last in inside) == high - low:
            spans.append(("interval", low, high - 1, inside))
    for what, first, last, parts in spans:
        expert = np.average([mine[p] for p in parts], weights=[b - a + 1 for a, b in parts])
        whole = np.average([theirs[p] for p in parts], weights=[b - a + 1 for a, b in parts])
        row = {"what": what, "t_first": first, "t_last": last, "loss_expert": float(expert)}
        row |= {"loss_joint": float(whole), "gap": float(expert - whole)}
        yield row | {"percent": float(100 * (expert / whole - 1)) if whole else math.nan}


def _over_seeds(pairs: Sequence[tuple[Finished, Finished]]) -> pd.DataFrame:
    """Returns the means over seeds of every range, and the t interval of the percents."""
    rows = pd.DataFrame([row for pair in pairs for row in _gaps(*pair)])
    means = []
    for key, each in rows.groupby(["what", "t_first", "t_last"]):
        row = dict(zip(("what", "t_first", "t_last"), key, strict=True))
        row |= each[["loss_expert", "loss_joint", "gap", "percent"]].mean().to_dict()
        low, high = t_interval([*each.percent])
        means.append(row | {"low": low, "high": high, "seeds": len(each)})
    return pd.DataFrame(means)


def compared(run: Finished, joint: Finished) -> str:
    """Returns two lines: how long the experts, and the joint model, were trained."""
    each, whole = (r.flat.get("trainer.max_steps", 0) for r in (run, joint))
    return f"{len(intervals(run))} experts, {each:,} steps each\njoint: {whole:,} steps"


@styled
def draw(runs: Sequence[Finished]) -> Drawing:
    """Draws 100 (loss of the expert / loss of the joint model - 1), a bar per range of an expert.

    Dots are the eighths within, on the same images, tasks and noise; below zero the specialist is
    better: negative transfer. Error bars are 95 % t intervals over seeds.
    """
    twins = {run.path: joint for run, joint in _recorded(runs)}
    groups = settings([run for run in runs if run.path in twins])
    panels = defaultdict(list)
    for setting in groups:
        first = setting.runs[0]
        panels[compared(first, twins[first.path])].append(setting)
    figure = new_figure(WIDE, 2.5)
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    figure.get_layout_engine().set(wspace=0.06)
    numbers, several = [], any(len(members) > 1 for members in panels.values())
    for ax, (name, members) in zip(axes, panels.items(), strict=True):
        styles = lines([setting.router if several else "DTR" for setting in members])
        for i, (setting, style) in enumerate(zip(members, styles, strict=True)):
            table = _over_seeds([(run, twins[run.path]) for run in setting.runs])
            row = {"setting": setting.label, "experts": len(intervals(setting.runs[0]))}
            row |= {
                "steps": setting.runs[0].flat.get("trainer.max_steps"),
                "against": name.replace("\n", "; "),
            }
            numbers.append(pd.DataFrame(row | {c: table[c] for c in table}))
            bars = table[table.what == "interval"]
            wide = (bars.t_last - bars.t_first + 1) / len(members)
            start = bars.t_first + i * wide
            edge = {"align": "edge", "alpha": 0.5, "edgecolor": "white"}
            label = f"{as_label(setting.label)}: " * several
            edge["label"] = f"{label}range of an expert"
            ax.bar(start, bars.percent, wide, color=style["color"], **edge)
            ends = {"color": "black", "linewidth": 0.8}
            ax.vlines(start + wide / 2, bars.low, bars.high, **ends, zorder=4)
            dots = table[table.what == "eighth"]
            middle = (dots.t_first + dots.t_last + 1) / 2
            ax.plot(middle, dots.percent, **(style | {"linestyle": "none"}), label=f"{label}eighth")
        ax.axhline(0, color="black", linewidth=0.8)
        edges = {edge for interval in intervals(members[0].runs[0]) for edge in interval}
        range_ticks(ax, {*edges, 0, int(table.t_last.max()) + 1}, most=8 // len(panels) + 1)
        ax.set_xlabel("timestep t (0 = cleanest)")
        panel_title(ax, *name.split("\n"), width=36)
    axes[0].set_ylabel(
        "held-out loss of specialists\nagainst the joint model (%)\nbelow 0: negative transfer"
    )
    legend(figure)
    table = pd.concat(numbers, ignore_index=True)
    bars = "bars: 95 % t interval" * bool(table.seeds.max() > 1)
    caption(figure, of_seeds(table.seeds), bars)
    return Drawing(figure, table)
