"""The figures of the findings: effects seed by seed, and the curves that some claims are about."""

__all__ = ["cka_matrices", "effects", "eighths", "gains", "on_the_way", "overlap", "ratios"]

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MultipleLocator, StrMethodFormatter, SymmetricalLogLocator

from analysis.drawing.style import (
    NARROW,
    WIDE,
    Drawing,
    caption,
    count_seeds,
    legend,
    line_style,
    lines,
    log_ticks,
    new_figure,
    styled,
    task_ticks,
)
from analysis.findings.archive import cka_of
from analysis.findings.claims import CURVE
from analysis.findings.cost import SAME_SPEED, Cost
from analysis.findings.judge import Judged
from analysis.findings.measures import evaluations
from analysis.findings.orders import Curve
from analysis.read.runs import Finished
from analysis.read.statistics import t_interval

MEAN = {"fmt": "D", "color": "black", "markersize": 4, "capsize": 2.5, "elinewidth": 1, "zorder": 3}
SEED = {"s": 9, "color": "#0072B2", "alpha": 0.55, "linewidths": 0, "zorder": 2}
STEP = 0.14  # from one of equal dots to the next, in rows
WIDE_RANGE, LINEAR = 20, 1.0  # effects this far apart have a scale that is linear to LINEAR alone
BAND = {"color": "#E69F00", "alpha": 0.18, "linewidth": 0, "zorder": 0}


@styled
def effects(judged: Sequence[Judged]) -> Drawing:
    """Draws the difference of every seed, their mean and its interval, a row per comparison.

    Comparisons of one measure share a panel; ranks have one of their own.
    """
    panels: dict[str, list[Judged]] = {}
    for each in judged:
        panels.setdefault(_unit(each), []).append(each)
    pitches = [max(1.0, 0.4 + STEP * max(map(_tallest, rows))) for rows in panels.values()]
    heights = [p * len(rows) for p, rows in zip(pitches, panels.values(), strict=True)]
    figure = new_figure(WIDE, 0.55 * len(panels) + 0.3 * sum(heights))
    axes = figure.subplots(len(panels), 1, squeeze=False, height_ratios=[h + 0.6 for h in heights])
    for ax, pitch, (unit, rows) in zip(axes[:, 0], pitches, panels.items(), strict=True):
        sizes = [abs(each.effect) for each in rows]
        if max(sizes) > WIDE_RANGE * min(sizes):
            ax.set_xscale("symlog", linthresh=LINEAR)
            ticks = SymmetricalLogLocator(base=10, linthresh=LINEAR, subs=[1, 2, 5])
            ax.xaxis.set_major_locator(ticks)
            ax.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        places = pitch * np.arange(len(rows))[::-1]
        for y, each in zip(places, rows, strict=True):
            ax.errorbar(each.effect, y - 0.12, xerr=_bars(each), **MEAN)
            ax.scatter([*each.differences.values()], y + 0.14 + STEP * _stacked(each), **SEED)
        ax.axvline(0, color="0.3", linewidth=0.8, zorder=1)
        if within := rows[0].comparison.within:
            ax.axvspan(-within, within, **BAND)
        names = [f"{e.comparison.label}  ({e.comparison.data.name})" for e in rows]
        ax.set(yticks=places, yticklabels=names, ylim=(-0.5, places[0] + pitch - 0.3))
        scale = f", log scale beyond {LINEAR:g}" if ax.get_xscale() == "symlog" else ""
        ax.set_xlabel(unit + scale)
        ax.grid(False, axis="y")
    marks = f"dots: seeds; diamond: mean, with its {_level(judged)} t interval"
    side = "left of zero: the first is better" if _lower_is_better(judged[0]) else ""
    shade = "shaded: what counts as no difference" if judged[0].comparison.within else ""
    caption(figure, "; ".join(filter(None, [marks, side, shade])))
    numbers = [_numbers(each) for rows in panels.values() for each in rows]
    return Drawing(figure, pd.concat(numbers, ignore_index=True))


def _stacked(judged: Judged) -> np.ndarray:
    """Returns how many dots each seed's stands on: equal differences would hide each other."""
    seen = Counter()
    levels = []
    for value in judged.differences.values():
        levels.append(seen[value])
        seen[value] += 1
    return np.array(levels)


def _tallest(judged: Judged) -> int:
    return 1 + int(_stacked(judged).max())


def _unit(judged: Judged) -> str:
    comparison = judged.comparison
    sides = len(comparison.plus) + len(comparison.minus)
    if judged.ranked:
        return f"difference in rank of {comparison.measure.name}, among {sides * judged.n} runs"
    return f"difference in {comparison.measure.name}"


def _lower_is_better(judged: Judged) -> bool:
    comparison = judged.comparison
    one_of_each = len(comparison.plus) == len(comparison.minus) == 1
    return one_of_each and comparison.measure.family in ("score", "loss", "steps")


def _level(judged: Iterable[Judged]) -> str:
    """Returns the levels of intervals, of which data sets where there are two."""
    levels = {
        each.comparison.data.name.split(",")[0]: each.comparison.data.level for each in judged
    }
    if len({*levels.values()}) == 1:
        return f"{100 * next(iter(levels.values())):g} %"
    return " or ".join(f"{100 * level:g} % ({name})" for name, level in levels.items())


def _bars(judged: Judged) -> list[list[float]] | None:
    if not math.isfinite(judged.low):
        return None
    return [[judged.effect - judged.low], [judged.high - judged.effect]]


def _numbers(judged: Judged) -> pd.DataFrame:
    comparison = judged.comparison
    row: dict[str, Any] = {"data": comparison.data.name, "comparison": comparison.label}
    row |= {"measure": comparison.measure.name, "ranks": judged.ranked}
    row |= {"seed": [*judged.differences], "difference": [*judged.differences.values()]}
    row |= {"mean": judged.effect, "low": judged.low, "high": judged.high}
    return pd.DataFrame(row)


@styled
def on_the_way(runs: Mapping[str, Mapping[int, Finished]], n: int) -> Drawing:
    """Draws score over steps, the mean of {name: {seed: run}} over seeds with its 95 % interval."""
    figure = new_figure(NARROW * 1.3, 2.6)
    ax = figure.subplots()
    tables = []
    for name, seeds in runs.items():
        frame = pd.DataFrame([evaluations(run) for run in seeds.values()])
        bounds = [t_interval(frame[step].tolist()) for step in frame]
        low, high = np.array(bounds).T
        style = line_style(next(iter(seeds.values())).choice("router"))
        ax.plot(frame.columns, frame.mean(), label=name, **style)
        ax.fill_between(frame.columns, low, high, color=style["color"], alpha=0.15, linewidth=0)
        table = {"router": name, "step": frame.columns, "score": frame.mean()}
        tables.append(pd.DataFrame(table | {"low": low, "high": high, "seeds": len(frame)}))
    log_ticks(ax)
    ax.set_xlabel("training steps")
    ax.set_ylabel(f"score of {n} samples, log scale")
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    legend(figure)
    caption(figure, "bands: 95 % t interval of the mean over seeds")
    return Drawing(figure, pd.concat(tables, ignore_index=True))


@styled
def overlap(curve: Curve) -> Drawing:
    """Draws the score over the share of channels that two tasks read both; SharedCore is a line."""
    figure = new_figure(WIDE * 0.8, 3.2)
    ax = figure.subplots()
    rows = []
    for name, (x, scores) in curve.points.items():
        values = [score for score in scores.values() if math.isfinite(score)]
        low, high = t_interval(values)
        row = {"setting": name, "router": CURVE[name].options["router"], "overlap": x}
        rows.append(row | {"score": float(np.mean(values))})
        rows[-1] |= {"low": low, "high": high, "seeds": len(values)}
        rows[-1] |= {"diverged": len(scores) - len(values)}
    frame = pd.DataFrame(rows)
    core = frame.setting.str.startswith("core ") | (frame.setting == "SharedCore")
    line = frame[core].sort_values("overlap")
    others = frame[~core]
    shared, *styles = lines(["SharedCore", *others.router])
    if len(line):
        ax.plot(line.overlap, line.score, label="SharedCore, six cores", zorder=3, **shared)
        _whiskers(ax, line, shared["color"])
    for row, style in zip(others.itertuples(), styles, strict=True):
        ax.plot(row.overlap, row.score, **style | {"linestyle": ""}, label=row.setting, zorder=4)
    _whiskers(ax, others, "0.4")
    log_ticks(ax)
    ax.xaxis.set_major_locator(MultipleLocator(0.05))
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:.0%}"))
    ax.set_xlabel("channels that two tasks both read, mean over pairs")
    ax.set_ylabel("score, log scale, lower is better")
    legend(figure)
    caption(figure, f"digits; means over {count_seeds(frame.seeds)}; whiskers: 95 % t interval")
    return Drawing(figure, frame)


def _whiskers(ax: Axes, frame: pd.DataFrame, color: Any) -> None:
    bounds = frame[frame.low > 0]
    ax.vlines(bounds.overlap, bounds.low, bounds.high, color=color, linewidth=0.8, zorder=2)


@styled
def gains(points: Mapping[str, Mapping[float, Judged]], label: str) -> Drawing:
    """Draws the effect of DTR over a quantity (a size, a length), for {data: {x: effect}}."""
    figure = new_figure(NARROW, 2.3)
    ax = figure.subplots()
    rows = []
    for i, (data, effects) in enumerate(points.items()):
        x = [*effects]
        mean = [each.effect for each in effects.values()]
        bars = np.array([_bars(each) or [[0], [0]] for each in effects.values()])[..., 0].T
        style = {"color": ("#0072B2", "#D55E00")[i], "marker": "os"[i], "capsize": 2.5}
        ax.errorbar(x, mean, yerr=bars, label=data, linestyle=("-", "--")[i], **style)
        rows += [_numbers(each).assign(x=at) for at, each in effects.items()]
    ax.axhline(0, color="0.3", linewidth=0.8)
    ax.set_xticks(sorted({x for effects in points.values() for x in effects}))
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    ax.set_xlabel(label)
    ax.set_ylabel("score of DTR less that of none\nbelow zero DTR is better")
    if len(points) > 1:
        legend(figure)
    shown = [each for effects in points.values() for each in effects.values()]
    caption(figure, f"mean over seeds with its {_level(shown)} t interval")
    return Drawing(figure, pd.concat(rows, ignore_index=True))


@styled
def cka_matrices(runs: Mapping[str, Sequence[Finished]]) -> Drawing:
    """Draws the CKA of every block, mean over seeds, for {router: runs}."""
    means = {}
    for name, members in runs.items():
        measured = [cka for run in members if (cka := cka_of(run)) is not None]
        means[name] = measured[0] | {"cka": np.mean([each["cka"] for each in measured], axis=0)}
    blocks = next(iter(means.values()))["blocks"]
    figure = new_figure(0.9 + 1.5 * len(blocks), 0.5 + 1.45 * len(means))
    axes = figure.subplots(len(means), len(blocks), squeeze=False, sharex=True, sharey=True)
    low = min(0.0, *(float(each["cka"].min()) for each in means.values()))
    tables = []
    for j, (row, (name, each)) in enumerate(zip(axes, means.items(), strict=True)):
        t = each["t"]
        tasks = int(t[1] - t[0]) * len(t)
        for i, ax in enumerate(row):
            scale = {"vmin": low, "vmax": 1, "cmap": "viridis", "extent": (0, tasks, tasks, 0)}
            image = ax.imshow(each["cka"][i], **scale)
            ax.grid(False)
            task_ticks(ax, tasks, "x")
            task_ticks(ax, tasks, "y")
            if j == 0:
                ax.set_title(str(blocks[i]))
            if j == len(means) - 1:
                ax.set_xlabel("t")
            upper = np.triu_indices(len(t))
            numbers = {"router": name, "block": str(blocks[i]), "t": t[upper[0]], "t2": t[upper[1]]}
            tables.append(pd.DataFrame(numbers | {"cka": each["cka"][i][upper].round(6)}))
        row[0].set_ylabel(f"{name}\nt")
    figure.colorbar(image, ax=axes, shrink=0.6, pad=0.02).set_label("CKA")
    seeds = count_seeds(map(len, runs.values()))
    caption(figure, f"digits; means over {seeds}, unbiased HSIC")
    return Drawing(figure, pd.concat(tables, ignore_index=True))


@styled
def ratios(cost: Cost) -> Drawing:
    """Draws the ratio of steps per second of every round, their mean and its interval."""
    figure = new_figure(NARROW, 1.1)
    ax = figure.subplots()
    ax.scatter(cost.ratios, np.zeros(len(cost.ratios)), **SEED)
    ax.errorbar(cost.ratio, 0, xerr=[[cost.ratio - cost.low], [cost.high - cost.ratio]], **MEAN)
    ax.axvspan(1 - SAME_SPEED, 1 + SAME_SPEED, **BAND)
    ax.axvline(1, color="0.3", linewidth=0.8, zorder=1)
    ax.set(yticks=[], ylim=(-0.5, 0.5), xlabel="steps per second, DTR / no routing")
    caption(figure, "dots: rounds; diamond: mean, 95 % interval; shaded: within 2 %")
    frame = {"round": range(1, len(cost.ratios) + 1), "ratio": cost.ratios, "mean": cost.ratio}
    return Drawing(figure, pd.DataFrame(frame | {"low": cost.low, "high": cost.high}))


@styled
def eighths(judged: Sequence[Judged]) -> Drawing:
    """Draws the difference in held-out loss per eighth of the timeline, a panel per data set."""
    panels: dict[str, dict[str, list[Judged]]] = {}
    for each in judged:
        comparison = each.comparison
        panels.setdefault(comparison.data.name, {}).setdefault(comparison.label, []).append(each)
    figure = new_figure(min(WIDE, 2.6 * len(panels) + 0.4), 2.4)
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for ax, (data, compared) in zip(axes, panels.items(), strict=True):
        for i, (label, parts) in enumerate(compared.items()):
            x = np.arange(len(parts)) + 0.5 + 0.16 * (i - 0.5 * (len(compared) - 1))
            bars = np.array([_bars(each) or [[0], [0]] for each in parts])[..., 0].T
            router = "RTR" if label.startswith("R-TR") else "DTR"
            style = line_style(router) | {"linestyle": "none", "capsize": 2}
            ax.errorbar(x, [each.effect for each in parts], yerr=bars, label=label, **style)
        ax.axhline(0, color="0.3", linewidth=0.8)
        ax.set_title(data)
        ax.set_xticks(range(0, 9, 2))
        ax.set_xticklabels(
            [f"{edge / 8:g} T".removeprefix("1 ") if edge else "0" for edge in range(0, 9, 2)]
        )
        ax.set_xlabel("timestep t")
    axes[0].set_ylabel("held-out loss, difference\nin % (100 ln of the ratio)")
    legend(figure)
    caption(figure, f"mean over seeds with its {_level(judged)} t interval, uncorrected")
    return Drawing(figure, pd.concat(map(_numbers, judged), ignore_index=True))
