"""Figure 5: score over training steps, and the steps that a router takes to the baseline's end."""

__all__ = ["NAME", "draw", "needs"]

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.ticker import StrMethodFormatter

from analysis.runs import Finished
from analysis.settings import Setting, chosen, largest, settings
from analysis.statistics import t_interval
from analysis.style import (
    GREY,
    NARROW,
    Drawing,
    count_seeds,
    legend,
    lines,
    log_ticks,
    new_figure,
    score_name,
    styled,
)

NAME = "convergence"


def _points(run: Finished) -> pd.DataFrame:
    """Returns step, n and score of every evaluation; the final one has another n as a rule."""
    during = [
        {"step": r["step"], "n": r.get("eval/n", 0), "score": r["eval/score"]}
        for r in run.records
        if r.get("eval/score") is not None
    ]
    steps = run.results.get("steps")
    if steps is not None and during:
        during.append({"step": steps, "n": run.protocol[1], "score": run.score})
    found = pd.DataFrame(during, columns=["step", "n", "score"]).drop_duplicates("step")
    return found[found.score.map(math.isfinite)]


def _protocol(run: Finished) -> tuple[str, int]:
    """Returns the score's name and the commonest n of the evaluations during training."""
    return run.protocol[0], int(_points(run).n.mode().iloc[0])


def needs(runs: Sequence[Finished]) -> str | None:
    """Says what is missing: an evaluation during training with a finite score."""
    if any(len(_points(run)) for run in runs):
        return None
    return "no finished run was evaluated during training: set evaluation.every and every_n"


def _curve(setting: Setting, n: int) -> pd.DataFrame:
    """Returns the mean score over seeds at every step, for this n only, and its t interval."""
    points = pd.concat([_points(run) for run in setting.runs])
    rows = []
    for step, scores in points[points.n == n].groupby("step").score:
        low, high = t_interval([*scores])
        row = {"step": step, "score": scores.mean(), "low": low, "high": high}
        rows.append(row | {"lowest": scores.min(), "highest": scores.max(), "seeds": len(scores)})
    return pd.DataFrame(rows)


def _reaches(points: pd.DataFrame, level: float) -> float:
    """Returns the first step with a score at or below a level, linear between evaluations.

    nan if there is none.
    """
    points = points.sort_values("step")
    steps, scores = points.step.to_numpy(float), points.score.to_numpy(float)
    below = np.flatnonzero(scores <= level)
    if not len(below):
        return math.nan
    i = below[0]
    if i == 0:
        return float(steps[0])
    part = (scores[i - 1] - level) / (scores[i - 1] - scores[i])
    return float(steps[i - 1] + part * (steps[i] - steps[i - 1]))


def _to_baseline(setting: Setting, runs: Sequence[Finished], n: int) -> dict[str, float]:
    """Returns the mean step at which this setting has the final score of no routing, over seeds.

    A run is compared with the last score on the way of the no-routing run of its own seed that is
    equal otherwise. `reached` of `pairs` seeds get there; the mean and its t interval [low, high]
    are over those.
    """
    plain = {r.hash_without("router"): r for r in runs if r.choice("router") == "NoRouting"}
    steps = []
    for run in setting.runs:
        twin = plain.get(run.hash_without("router"))
        if twin is None or setting.router == "NoRouting":
            continue
        mine, theirs = (p[p.n == n] for p in (_points(run), _points(twin)))
        if len(mine) and len(theirs):
            final = theirs.sort_values("step").score.iloc[-1]
            steps.append(_reaches(mine, float(final)))
    there = [step for step in steps if math.isfinite(step)]
    low, high = t_interval(there)
    mean = float(np.mean(there)) if there else math.nan
    row = {"to_baseline": mean, "to_baseline_low": low, "to_baseline_high": high}
    return row | {"reached": len(there), "pairs": len(steps)}


def _told(reach: dict[str, float]) -> str:
    """Returns ` (820 ± 40)`, ` (-)` if no seed gets there; nothing without a baseline."""
    if not reach["pairs"]:
        return ""
    if not reach["reached"]:
        return " (-)"
    half = reach["to_baseline_high"] - reach["to_baseline"]
    few = reach["reached"] < reach["pairs"]
    return (
        f" ({reach['to_baseline']:,.0f}"
        + (f" ± {half:,.0f}" if math.isfinite(half) else "")
        + (f", {reach['reached']} of {reach['pairs']} seeds)" if few else ")")
    )


@styled
def draw(runs: Sequence[Finished]) -> Drawing:
    """Draws means over seeds (band: 95 % t interval), a few settings coloured, the rest grey.

    A number in the legend is the steps that the setting takes to the final score of no routing.
    """
    evaluated = [run for run in runs if len(_points(run))]
    what = "its evaluations during training have another score or N"
    kept, note = largest(evaluated, _protocol, what)
    name, n = _protocol(kept[0])
    found = settings(kept)
    front = chosen(found)
    looks = {id(setting): style for setting, style in zip(front, lines(front), strict=True)}

    figure = new_figure(NARROW, 3.0)
    ax = figure.subplots()
    numbers, told = [], False
    for setting in found:
        curve, reach = _curve(setting, n), _to_baseline(setting, kept, n)
        style = looks.get(id(setting))
        row = {"setting": setting.label, "router": setting.router, "alpha": setting.alpha}
        row |= {"beta": setting.beta, "n": n, "coloured": style is not None}
        numbers.append(pd.DataFrame(row | {column: curve[column] for column in curve} | reach))
        if style is None:
            ax.plot(curve.step, curve.score, **GREY, zorder=1)
            continue
        label = setting.label + _told(reach)
        told |= label != setting.label
        ax.plot(curve.step, curve.score, **style, label=label, zorder=3)
        band = {"color": style["color"], "alpha": 0.15, "linewidth": 0}
        ax.fill_between(curve.step, curve.low.clip(lower=1e-9), curve.high, **band)
    if rest := len(found) - len(front):
        ax.plot([], [], **GREY, label=f"{rest} other settings")
    table = pd.concat(numbers, ignore_index=True)

    steps = sorted(set(table.step))
    if len(steps) <= 6:
        ax.set_xticks(steps)
    else:
        ax.locator_params(axis="x", nbins=6)
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    # the intervals of two seeds may reach far: the axis cuts them
    ax.set_ylim(0.9 * table.lowest.min(), 1.1 * table.highest.max())
    log_ticks(ax)
    reached = "\n(steps to no routing's final score; -: never)" if told else ""
    seeds = count_seeds(table.seeds)
    over = f"\nmean of {seeds}, 95 % t band" if seeds else ""
    ax.set(xlabel=f"training steps{over}{reached}")
    ax.set(ylabel=score_name(name, n, "log scale, lower is better"))
    legend(figure)
    return Drawing(figure, table, note)
