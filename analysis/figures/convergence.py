"""Figure 5: score over training steps, and when a router reaches the baseline's final score."""

__all__ = ["TITLE", "draw", "needs"]

import math
from collections.abc import Sequence

import pandas as pd
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from analysis.drawing.style import (
    GREY,
    NARROW,
    Drawing,
    as_label,
    band,
    caption,
    legend,
    lines,
    new_figure,
    of_bands,
    of_seeds,
    score_axis,
    score_name,
    styled,
)
from analysis.read.runs import Finished
from analysis.read.settings import Setting, highlighted, largest, settings
from analysis.read.statistics import t_interval

TITLE = "Score over training (Figure 5)"
BANDS = 6  # more would hide each other


def _points(run: Finished) -> pd.DataFrame:
    """Returns step, n and score of every evaluation; the final one usually has another n."""
    during = [
        {"step": r["step"], "n": r.get("eval/n", 0), "score": r["eval/score"]}
        for r in run.records
        if r.get("eval/score") is not None
    ]
    steps = run.results.get("steps")
    if steps is not None and during:
        during.append({"step": steps, "n": run.protocol[1], "score": run.score})
    points = pd.DataFrame(during, columns=["step", "n", "score"]).drop_duplicates("step")
    return points[points.score.map(math.isfinite)]


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
    """Returns the step of the first evaluation with a score at or below a level; nan if none is."""
    return float(points[points.score <= level].step.min())


def _to_baseline(setting: Setting, runs: Sequence[Finished], n: int) -> dict[str, float]:
    """Returns the step at which this setting reaches the final score of no routing, over seeds.

    A run is compared with the last score during training of the no-routing run of its own seed
    that is equal otherwise. `reached` of `pairs` seeds reach it; the steps of the middle one (the
    later of two), the first and the last are nan for fewer than two pairs. Steps are those of
    evaluations.
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
    there = sorted(step for step in steps if math.isfinite(step))
    ends = (there[0], there[len(there) // 2], there[-1]) if there and len(steps) > 1 else None
    first, middle, last = ends or [math.nan] * 3
    row = {"to_baseline": middle, "to_baseline_first": first, "to_baseline_last": last}
    return row | {"reached": len(there), "pairs": len(steps)}


def _reached(reach: dict[str, float]) -> str:
    """Returns `: 300-600 steps (2 of 3 seeds)`, `: never (0 of 3 seeds)`; empty for one seed."""
    if reach["pairs"] < 2:
        return ""
    of = f"({reach['reached']} of {reach['pairs']} seeds)"
    if not reach["reached"]:
        return f": never {of}"
    ends = dict.fromkeys((reach["to_baseline_first"], reach["to_baseline_last"]))
    return f": {'-'.join(f'{step:,.0f}' for step in ends)} steps {of}"


@styled
def draw(runs: Sequence[Finished]) -> Drawing:
    """Draws means over seeds with bands, a few settings coloured, the rest grey.

    A band is the 95 % t interval, of two seeds what lies between them.

    The legend has the steps at which the first and the last seed of a setting reach the final score
    of no routing, and how many seeds do. With more than BANDS coloured settings the bands are in
    the numbers only.
    """
    evaluated = [run for run in runs if len(_points(run))]
    what = "its evaluations during training have another score or N"
    selected, note = largest(evaluated, _protocol, what)
    name, n = _protocol(selected[0])
    every = settings(selected)
    front = highlighted(every)
    styles = dict(zip(map(id, front), lines([s.router for s in front]), strict=True))

    figure = new_figure(NARROW, 2.8)
    ax = figure.subplots()
    numbers, explained = [], False
    for setting in every:
        curve, reach = _curve(setting, n), _to_baseline(setting, selected, n)
        style = styles.get(id(setting))
        row = {"setting": setting.label, "router": setting.router, "alpha": setting.alpha}
        row |= {"beta": setting.beta, "n": n, "coloured": style is not None}
        numbers.append(pd.DataFrame(row | {column: curve[column] for column in curve} | reach))
        if style is None:
            ax.plot(curve.step, curve.score, **GREY, zorder=1)
            continue
        when = _reached(reach)
        explained |= bool(when)
        ax.plot(curve.step, curve.score, **style, label=as_label(setting.label) + when, zorder=3)
        if len(front) <= BANDS:
            curve["low"] = curve.low.clip(lower=1e-9)  # the axis is logarithmic
            band(ax, curve.step, curve, style["color"])
    if rest := len(every) - len(front):
        ax.plot([], [], **GREY, label=f"others ({rest})")
    table = pd.concat(numbers, ignore_index=True)

    steps = sorted(set(table.step))
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    if len(steps) <= 5:
        ax.set_xticks(steps)
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    # the intervals of two seeds may reach far: the axis cuts them
    coloured = table[table.coloured]
    log = score_axis(ax, [*coloured.lowest, *coloured.highest], log=True)
    ax.set_xlabel("training steps")
    ax.set_ylabel(score_name(name, n, f"{'log scale, ' * log}lower is better"))
    legend(figure)
    when = "steps: where the first and the last seed reach the final score of no routing"
    bands = of_bands(table.seeds) if len(front) <= BANDS else f"no bands of {len(front)} lines"
    caption(figure, of_seeds(table.seeds, (name, n), f"; {bands}"), when * explained, note)
    return Drawing(figure, table, note)
