"""Figure 4: score over alpha, one line per beta, beside no routing, R-TR and the floor."""

__all__ = ["TITLE", "draw", "needs"]

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.markers import CARETDOWN, CARETUP

from analysis.drawing.style import (
    GREY,
    NARROW,
    NOISE,
    Drawing,
    as_label,
    caption,
    count_seeds,
    legend,
    lines,
    new_figure,
    of_seeds,
    score_axis,
    score_name,
    styled,
)
from analysis.figures.heatmap import comparable, searched
from analysis.read.runs import Finished
from analysis.read.settings import ALPHA, Setting, largest, settings
from analysis.read.statistics import t_interval

TITLE = "Score over alpha (Figure 4)"
MOST = 8  # lines in colour
TRIANGLE = "\N{BLACK UP-POINTING TRIANGLE}"


def _with_alphas(runs: Sequence[Finished]) -> list[Finished]:
    """Returns DTR's runs with a finite score, of the largest comparable group with two alphas."""
    groups = defaultdict(list)
    for run in runs:
        if run.choice("router") == "DTR" and math.isfinite(run.score):
            groups[comparable(run)].append(run)
    several = [rs for rs in groups.values() if len({r.option("router.alpha") for r in rs}) > 1]
    return max(several, key=len, default=[])


def needs(runs: Sequence[Finished]) -> str | None:
    """Says what is missing: finite scores of DTR at two alphas, on a grid."""
    if not (dtr := _with_alphas(runs)):
        sound = [r for r in runs if r.choice("router") == "DTR" and math.isfinite(r.score)]
        alphas = ", ".join(f"{a:g}" for a in sorted({r.option("router.alpha") for r in sound}))
        there = f"; there is alpha {alphas}" if alphas else ""
        return (
            "needs finished runs of DTR with two alphas, equal in all else but beta and seed: "
            f"--router DTR --router.alpha 4{there}"
        )
    if searched(settings(dtr)):
        return (
            "needs a grid of alphas and betas; alphas and betas of a search are drawn as points: "
            "see heatmap"
        )
    return None


def _numbers(shown: Sequence[Setting]) -> pd.DataFrame:
    """Returns a row for every mean, with its 95 % t interval [low, high], and for every seed.

    One seed has a row of its mean alone.
    """
    rows = []
    for s in shown:
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

    Intervals of two or three seeds can be so long that all means would look equal.
    """
    low, high = means.score.min(), means.score.max()
    span = max(high - low, 0.1 * abs(high))
    least = max(low - span, 0.7 * low)
    ends = [*means.low.clip(lower=least), *means.high.clip(upper=high + span)]
    return [end for end in ends if math.isfinite(end)]


def _cut(ax: Axes, means: pd.DataFrame, color: Any) -> bool:
    """Marks intervals that the axis cuts by a triangle at its edge; returns whether it cuts any."""
    bottom, top = ax.get_ylim()
    here = means[means.score.between(bottom, top)]
    above, below = here[here.high > top], here[here.low < bottom]
    for rows, marker, edge in ((above, CARETUP, 1), (below, CARETDOWN, 0)):
        style = {"marker": marker, "color": color, "linestyle": "none", "markersize": 5}
        level = rows.alpha.isna()
        x = rows.alpha.where(~level, 0.96)  # a level has no alpha: beside the right end
        for places, transform in ((x[~level], ax.get_xaxis_transform()), (x[level], ax.transAxes)):
            if len(places):
                ax.plot(places, [edge] * len(places), transform=transform, **style, zorder=4)
    return len(above) + len(below) > 0


def _draw_line(ax: Axes, numbers: pd.DataFrame, style: dict, label: str | None) -> bool:
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


def _noise(ax: Axes, numbers: pd.DataFrame, protocol: tuple[str, int]) -> None:
    """Shades the known noise of one seed around no routing."""
    plain = numbers[(numbers.router == "NoRouting") & (numbers.what == "mean")]
    noise = NOISE.get(protocol)
    if noise and len(plain) == 1 and plain.seeds.iloc[0] == 1:
        level = plain.score.iloc[0]
        band = {
            "color": "0.9",
            "linewidth": 0,
            "zorder": 0,
            "label": f"± {noise:g}: noise of a seed",
        }
        ax.axhspan(level - noise, level + noise, **band)


@styled
def draw(runs: Sequence[Finished]) -> Drawing:
    """Draws mean scores over a log2 alpha axis; with several seeds, single ones as small points.

    The score begins at zero, or is logarithmic where it spans a factor of ten. Bars are 95 % t
    intervals over seeds, bands those of routers without alpha, which are levels; a triangle marks
    where the axis cuts one. Runs that differ from most in more than router
    and seed are left out; diverged ones have no point.
    """
    what = "differs from most runs in more than router and seed"
    selected, note = largest(runs, comparable, what, among=_with_alphas(runs))
    if diverged := sum(not math.isfinite(run.score) for run in selected):
        note = "; ".join(filter(None, [note, f"{diverged} diverged and have no point"]))
    numbers = _numbers([s for s in settings(selected) if math.isfinite(s.score)])
    floors = [run.number("floor") for run in selected if math.isfinite(run.number("floor"))]
    floor_n = selected[0].results.get("floor_n")
    means = numbers[numbers.what == "mean"]
    near = means[means.alpha.notna() | (means.router == "NoRouting")]

    figure = new_figure(NARROW, 2.9)
    ax = figure.subplots()
    scores = [*means.score, *_ends(near)]
    log = score_axis(ax, scores) and all(floor > 0 for floor in floors)
    score_axis(ax, [*scores, *floors[:1]], log)
    by_line = dict([*numbers.groupby("line", sort=False)])
    shown = list(by_line)[:MOST]
    styles = lines([rows.router.iloc[0] for rows in by_line.values()])
    cut = False
    for (line, rows), style in zip(by_line.items(), styles, strict=True):
        style = style if line in shown else GREY | {"marker": "none"}
        label = as_label(line) if line in shown else None
        cut |= _draw_line(ax, rows, style, label)
    if rest := len(by_line) - len(shown):
        ax.plot([], [], **GREY, label=f"others ({rest})")
    if floors:
        label = f"floor: real images{f', N = {floor_n:,}' if floor_n else ''}"
        ax.axhline(floors[0], color="0.6", linewidth=0.7, label=label)
        floor = {"line": "floor", "router": "floor", "what": "floor", "score": floors[0]}
        numbers = pd.concat([numbers, pd.DataFrame([floor])], ignore_index=True)
    _noise(ax, numbers, selected[0].protocol)

    alphas = sorted(means.alpha.dropna().unique())
    ax.set_xscale("log", base=2)
    ax.set_xticks(_apart(alphas), [f"{alpha:g}" for alpha in _apart(alphas)])
    ax.minorticks_off()
    ax.set_xlim(alphas[0] / 1.25, alphas[-1] * 1.25)
    ax.set_xlabel(f"{ALPHA} (log scale)")
    name, n = selected[0].protocol
    ax.set_ylabel(score_name(name, n, f"{'log scale, ' * log}lower is better"))
    legend(figure)
    seeds = of_seeds(means.seeds, selected[0].protocol)
    caption(figure, seeds, _over_seeds(means, cut), note)
    return Drawing(figure, numbers, note)


def _apart(alphas: Sequence[float]) -> list[float]:
    """Returns the alphas to label: a twelfth of the axis or more above the last one."""
    least, named = (alphas[-1] / alphas[0]) ** (1 / 12), [alphas[0]]
    for alpha in alphas[1:]:
        if alpha >= least * named[-1]:
            named.append(alpha)
    return named


def _over_seeds(means: pd.DataFrame, cut: bool) -> str:
    """Returns what is drawn over seeds; nothing where every mean is of one seed."""
    if not count_seeds(means.seeds):
        return ""
    levels = means[means.seeds > 1].alpha.isna()
    dots = ["dots: seeds"] * (not levels.all())
    drawn = ["bars"] * (not levels.all()) + ["bands"] * bool(levels.any())
    triangle = [f"{TRIANGLE}: the interval is cut off"] * cut
    return "; ".join([*dots, f"{', '.join(drawn)}: 95 % t interval", *triangle])
