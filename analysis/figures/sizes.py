"""Table 5 as a figure: score against parameters and against multiply-adds, a line per router."""

__all__ = ["TITLE", "draw", "needs"]

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace

import pandas as pd
from matplotlib.ticker import FuncFormatter, NullLocator

from analysis.drawing.style import (
    NARROW,
    WIDE,
    Drawing,
    as_label,
    caption,
    legend,
    lines,
    new_figure,
    of_seeds,
    score_axis,
    score_name,
    styled,
)
from analysis.read.runs import Finished
from analysis.read.settings import Setting, largest, settings
from analysis.read.statistics import t_interval

TITLE = "Score against cost (Table 5)"
COSTS = {
    "parameters": "parameters (log scale)",
    "macs": "multiply-adds per evaluation\n(GFLOPs in the papers; log scale)",
}


def _line(run: Finished) -> str:
    return run.hash_without("model", "seed")


def _sized(runs: Sequence[Finished]) -> list[Finished]:
    return [r for r in runs if math.isfinite(r.score) and r.number("parameters") > 0]


def _comparable(run: Finished) -> tuple:
    return *run.protocol, run.hash_without("model", "router", "seed")


def _several_sizes(runs: Sequence[Finished]) -> tuple[list[Finished], str]:
    """Returns the runs of routers that were trained in several sizes, and who is left out."""
    sized = _sized(runs)
    sizes = defaultdict(set)
    for run in sized:
        sizes[_line(run), run.protocol].add(run.hash_without("router", "seed"))
    several = [run for run in sized if len(sizes[_line(run), run.protocol]) > 1]
    if not several:
        return [], ""
    return largest(
        several, _comparable, "differs from most runs in more than size, router and seed"
    )


def needs(runs: Sequence[Finished]) -> str | None:
    """Says what is missing: a router in two sizes of the model."""
    if _several_sizes(runs)[0]:
        return None
    return "needs finished runs of one router in two sizes of the model, equal in all else"


def _short(count: float, _: object = None) -> str:
    for unit, letter in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if count >= unit:
            return f"{count / unit:.3g}{letter}"
    return f"{count:g}"


def _without_size(setting: Setting) -> Setting:
    """Returns a setting without the options of the model in its name."""
    (run, *_), prefixes = setting.runs, ("model", "model.")
    options = {key.rsplit(".", 1)[-1] for key in run.flat if key.startswith(prefixes)}
    words = [w for w in setting.other.split() if w.split("=")[0] not in options]
    words = [word for word in words if word != run.choice("model")]
    return replace(setting, other=" ".join(words))


def _apart(costs: Iterable[float]) -> list[float]:
    """Returns the costs to label on a logarithmic axis, each half as much again as the last one."""
    ticks: list[float] = []
    for cost in sorted(set(costs)):
        if not ticks or cost > 1.5 * ticks[-1]:
            ticks.append(cost)
    return ticks


@styled
def draw(runs: Sequence[Finished]) -> Drawing:
    """Draws mean scores against cost, all axes logarithmic; bars: 95 % t intervals.

    What a router adds counts: Switch has experts of its own.
    """
    selected, note = _several_sizes(runs)
    by_line = defaultdict(list)
    for run in selected:
        by_line[_line(run)].append(run)
    # a line has the name of its first run
    named = [_without_size(s) for s in settings([line_runs[0] for line_runs in by_line.values()])]
    names = {
        _line(setting.runs[0]): (setting, style)
        for setting, style in zip(named, lines([s.router for s in named]), strict=True)
    }

    numbers = []
    for setting, _ in names.values():
        rows = []
        for each in settings(by_line[_line(setting.runs[0])]):
            low, high = t_interval(each.scores)
            row = {"setting": setting.label, "router": each.router, "alpha": each.alpha}
            row |= {"beta": each.beta, "parameters": int(each.runs[0].number("parameters"))}
            row |= {"macs": each.runs[0].number("macs"), "seeds": len(each.scores)}
            rows.append(row | {"score": each.score, "low": low, "high": high})
        numbers.append(pd.DataFrame(rows).sort_values("parameters"))
    table = pd.concat(numbers, ignore_index=True)
    costs = [cost for cost in COSTS if (table[cost] > 0).all()]  # older records hold no MACs

    figure = new_figure(WIDE if len(costs) > 1 else NARROW, 2.6)
    axes = figure.subplots(1, len(costs), sharey=True, squeeze=False)[0]
    for ax, cost in zip(axes, costs, strict=True):
        for (setting, style), rows in zip(names.values(), numbers, strict=True):
            ax.plot(rows[cost], rows.score, **style, label=as_label(setting.label), zorder=3)
            ax.vlines(rows[cost], rows.low.clip(lower=1e-9), rows.high, color=style["color"])
        ax.set_xscale("log")
        ax.set_xticks(_apart(table[cost]))
        ax.xaxis.set_major_formatter(FuncFormatter(_short))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.set_xlabel(COSTS[cost])
    log = score_axis(axes[0], [*0.7 * table.score, *1.3 * table.score], log=True)
    name, n = selected[0].protocol
    axes[0].set_ylabel(score_name(name, n, f"{'log scale, ' * log}lower is better"))
    legend(figure)
    bars = "bars: 95 % t interval" * bool(table.seeds.max() > 1)
    caption(figure, of_seeds(table.seeds, (name, n)), bars, note)
    return Drawing(figure, table, note)
