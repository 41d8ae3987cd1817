"""Figure 4: score over alpha, one line per beta, beside no routing, R-TR and the floor."""

__all__ = ["NAME", "draw", "needs"]

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.markers import CARETDOWN, CARETUP

from analysis.heatmap import searched
from analysis.runs import Finished
from analysis.settings import ALPHA, Setting, largest, settings
from analysis.statistics import t_interval
from analysis.style import (
    NARROW,
    Drawing,
    count_seeds,
    legend,
    log_ticks,
    look,
    new_figure,
    score_name,
    styled,
)

NAME = "ablation"
TRIANGLE = "\N{BLACK UP-POINTING TRIANGLE}"


def _with_alpha(runs: Sequence[Finished]) -> list[Finished]:
    return [run for run in runs if run.choice("router") == "DTR" and math.isfinite(run.score)]


def needs(runs: Sequence[Finished]) -> str | None:
    """Says what is missing: a finished run of DTR with a finite score, and alphas on a grid."""
    if not (dtr := _with_alpha(runs)):
        return "needs a finished run of DTR: --router DTR --router.alpha 4"
    if searched(settings(largest(dtr, _comparable, "")[0])):
        return (
            "needs a grid of alphas and betas; alphas and betas of a search are drawn as points: "
            "see heatmap"
        )
    return None


def _comparable(run: Finished) -> tuple:
    return *run.protocol, run.hash_without("router", "seed")


def _numbers(found: Sequence[Setting]) -> pd.DataFrame:
    """Returns a row for every mean, with its 95 % t interval [low, high], and for every seed.

    One seed has a row of its mean alone.
    """
    rows = []
    for s in found:
        row = {"line": s.line, "router": s.router, "alpha": s.alpha, "beta": s.beta}
        low, high = t_interval(s.scores)
        mean = {"what": "mean", "seeds": len(s.scores), "score": s.score}
        rows.append(row | mean | {"low": low, "high": high})
        if len(s.scores) > 1:
            single = [{"what": "seed", "seeds": 1, "score": score} for score in s.scores]
            rows += [row | each for each in single]
    return pd.DataFrame(rows)


def _ends(means: pd.DataFrame) -> list[float]:
    """Returns the ends of intervals as far as the axis should show them.

    Those of two or three seeds can be so long that the means could not be told apart.
    """
    low, high = means.score.min(), means.score.max()
    span = max(high - low, 0.1 * abs(high))
    least = max(low - span, 0.7 * low)
    ends = [*means.low.clip(lower=least), *means.high.clip(upper=high + span)]
    return [end for end in ends if math.isfinite(end)]


def _wide(main: Sequence[float]) -> bool:
    return max(main) > 5 * min(main) > 0


def _strips(main: Sequence[float], others: Sequence[float]) -> list[tuple[float, float]]:
    """Returns the y intervals to show, from the top: the axis is broken round the lines' own.

    A value further from `main` than 1.5 times its span would flatten it: it gets its own strip.
    Where `main` itself spans more than a factor of five there is one interval, for a log axis.
    """
    low, high = min(main), max(main)
    if _wide(main):
        return [(0.8 * min(*main, *others), 1.25 * max(*main, *others))]
    span = max(high - low, 0.05 * abs(high))
    above = [x for x in others if x > high + 1.5 * span]
    below = [x for x in others if x < low - 1.5 * span]
    near = [*main, *(x for x in others if x not in above and x not in below)]
    strips = []
    for values in (above, near, below):
        if values:
            pad = 0.35 * span if values is not near else 0.12 * (max(near) - min(near) or span)
            bottom = min(values) - pad
            strips.append((max(bottom, 0) if min(values) >= 0 else bottom, max(values) + pad))
    if any(upper[0] <= lower[1] for upper, lower in pairwise(strips)):
        return [(strips[-1][0], strips[0][1])]
    return strips


def _panels(figure: Figure, strips: Sequence[tuple[float, float]], main: float) -> list[Axes]:
    """Makes an axes per strip with break marks between; the strip that holds `main` is tall."""
    ratios = [4 if low <= main <= high else 1 for low, high in strips]
    grid = {"height_ratios": ratios, "hspace": 0.04}
    axes = list(figure.subplots(len(strips), 1, sharex=True, squeeze=False, gridspec_kw=grid)[:, 0])
    mark = {"marker": [(-1, -0.5), (1, 0.5)], "markersize": 6, "linestyle": "none", "color": "k"}
    for ax, strip in zip(axes, strips, strict=True):
        ax.set_ylim(*strip)
        if not strip[0] <= main <= strip[1]:
            ax.locator_params(axis="y", nbins=2)
    for upper, lower in pairwise(axes):
        upper.spines.bottom.set_visible(False)
        upper.tick_params(bottom=False)
        upper.plot([0], [0], transform=upper.transAxes, clip_on=False, **mark)
        lower.plot([0], [1], transform=lower.transAxes, clip_on=False, **mark)
    return axes


def _cut(ax: Axes, means: pd.DataFrame, color: Any) -> bool:
    """Marks the intervals that the axis of their mean cuts by a triangle at the edge, if any."""
    bottom, top = ax.get_ylim()
    here = means[means.score.between(bottom, top)]
    above, below = here[here.high > top], here[here.low < bottom]
    for rows, marker, edge in ((above, CARETUP, 1), (below, CARETDOWN, 0)):
        style = {"marker": marker, "color": color, "linestyle": "none", "markersize": 5}
        level = rows.alpha.isna()
        x = rows.alpha.where(~level, 0.96)  # a level has no alpha: beside the right end
        for own, transform in ((x[~level], ax.get_xaxis_transform()), (x[level], ax.transAxes)):
            if len(own):
                ax.plot(own, [edge] * len(own), transform=transform, **style, zorder=4)
    return len(above) + len(below) > 0


def _draw_line(ax: Axes, numbers: pd.DataFrame, style: dict, label: str) -> bool:
    """Draws one router and beta: over alpha, or as a level where the router has no alpha.

    Returns whether the axis cuts an interval.
    """
    means = numbers[numbers.what == "mean"]
    single = numbers[numbers.what == "seed"]
    if means.alpha.isna().all():
        style = style | {"marker": "none", "linewidth": 1.0}
        ax.axhline(means.score.iloc[0], **style, label=label)
        if len(single):
            ax.axhspan(
                means.low.iloc[0], means.high.iloc[0], color=style["color"], alpha=0.12, lw=0
            )
    else:
        ax.plot(means.alpha, means.score, **style, label=label, zorder=3)
        bars = {"color": style["color"], "linewidth": 0.7}
        ax.vlines(means.alpha, means.low, means.high, **bars, zorder=2)
        dots = {"marker": style["marker"], "color": style["color"], "alpha": 0.45, "s": 5}
        ax.scatter(single.alpha, single.score, **dots, linewidths=0, zorder=2)
    return _cut(ax, means, style["color"])


@styled
def draw(runs: Sequence[Finished]) -> Drawing:
    """Draws mean scores over a log2 alpha axis; with several seeds, single ones as small points.

    Bars are 95 % t intervals over seeds, bands those of routers without alpha, which are levels;
    where the axis cuts them is a triangle, the numbers are whole. Runs that differ from most in
    more than router and seed are left out; diverged ones have no point.
    """
    what = "differs from most runs in more than router and seed"
    kept, note = largest(runs, _comparable, what, among=_with_alpha(runs))
    if diverged := sum(not math.isfinite(run.score) for run in kept):
        note = "; ".join(filter(None, [note, f"{diverged} diverged and have no point"]))
    numbers = _numbers([s for s in settings(kept) if math.isfinite(s.score)])
    floors = [run.number("floor") for run in kept if math.isfinite(run.number("floor"))]
    floor_n = kept[0].results.get("floor_n")
    curves = numbers[numbers.alpha.notna()]
    levels = numbers[numbers.alpha.isna()]

    baseline = levels[levels.router == "NoRouting"].score
    near = numbers[numbers.alpha.notna() | (numbers.router == "NoRouting")]
    main = [*curves.score, *baseline, *_ends(near)]
    others = [*levels[levels.router != "NoRouting"].score, *floors[:1]]
    figure = new_figure(NARROW, 3.1)
    axes = _panels(figure, _strips(main, others), float(np.mean(curves.score)))
    if _wide(main):
        log_ticks(axes[0])
    seen: dict[str, int] = {}
    cut = False
    for line, rows in numbers.groupby("line", sort=False):
        router = rows.router.iloc[0]
        style = look(router, seen.setdefault(router, 0))
        seen[router] += 1
        for ax in axes:
            cut |= _draw_line(ax, rows, style, line)
    if floors:
        for ax in axes:
            label = f"floor: real images{f', N = {floor_n:,}' if floor_n else ''}"
            ax.axhline(floors[0], color="0.6", linewidth=0.7, label=label)
        floor = {"line": "floor", "router": "floor", "what": "floor", "score": floors[0]}
        numbers = pd.concat([numbers, pd.DataFrame([floor])], ignore_index=True)

    alphas = sorted(curves.alpha.unique())
    axes[-1].set_xscale("log", base=2)
    axes[-1].set_xticks(alphas, [f"{alpha:g}" for alpha in alphas])
    axes[-1].minorticks_off()
    axes[-1].set_xlim(alphas[0] / 1.25, alphas[-1] * 1.25)
    axes[-1].set_xlabel(f"{ALPHA} (log scale){_over_seeds(numbers, cut)}")
    name, n = kept[0].protocol
    scale = "log scale, " if _wide(main) else ""
    label = figure.supylabel(
        score_name(name, n, f"{scale}lower is better"), fontsize=8, ma="center"
    )
    legend(figure)
    figure.draw_without_rendering()  # tells where the axes are
    label.set_y((axes[0].get_position().y1 + axes[-1].get_position().y0) / 2)
    return Drawing(figure, numbers, note)


def _over_seeds(numbers: pd.DataFrame, cut: bool) -> str:
    """Returns lines that tell what is over seeds; nothing where every mean is of one seed."""
    means = numbers[numbers.what == "mean"]
    if not (seeds := count_seeds(means.seeds)):
        return ""
    levels = means[means.seeds > 1].alpha.isna()
    drawn = ["bars"] * (not levels.all()) + ["bands"] * bool(levels.any())
    dots = "" if levels.all() else "; dots: seeds"
    triangle = f" ({TRIANGLE}: cut off)" if cut else ""
    return f"\nmean of {seeds}{dots}\n{', '.join(drawn)}: 95 % t interval{triangle}"
