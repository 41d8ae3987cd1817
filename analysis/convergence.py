"""Figure 5: score over training steps, from evaluations during training."""

__all__ = ["NAME", "draw", "needs"]

import math
from collections.abc import Sequence

import pandas as pd
from matplotlib.ticker import StrMethodFormatter

from analysis.runs import Finished, Setting, chosen, largest, settings
from analysis.style import GREY, NARROW, Drawing, legend, lines, log_ticks, new_figure, styled

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
    """Returns mean, lowest and highest score over seeds at every step, for this n only."""
    points = pd.concat([_points(run) for run in setting.runs])
    scores = points[points.n == n].groupby("step").score
    return scores.agg(score="mean", lowest="min", highest="max", seeds="count").reset_index()


@styled
def draw(runs: Sequence[Finished]) -> Drawing:
    """Draws means over seeds (band: lowest to highest), a few settings coloured, the rest grey."""
    evaluated = [run for run in runs if len(_points(run))]
    what = "its evaluations during training have another score or N"
    kept, note = largest(evaluated, _protocol, what)
    name, n = _protocol(kept[0])
    found = settings(kept)
    front = chosen(found)
    looks = lines(front)

    figure = new_figure(NARROW, 3.0)
    ax = figure.subplots()
    numbers = []
    for setting in found:
        curve = _curve(setting, n)
        stands_out = any(setting is one for one in front)
        row = {"setting": setting.label, "router": setting.router, "alpha": setting.alpha}
        row |= {"beta": setting.beta, "n": n, "coloured": stands_out}
        numbers.append(pd.DataFrame(row | {column: curve[column] for column in curve}))
        if not stands_out:
            ax.plot(curve.step, curve.score, **GREY, zorder=1)
    for setting, style in zip(front, looks, strict=True):
        curve = _curve(setting, n)
        ax.plot(curve.step, curve.score, **style, label=setting.label, zorder=3)
        if len(setting.runs) > 1:
            band = {"color": style["color"], "alpha": 0.15, "linewidth": 0}
            ax.fill_between(curve.step, curve.lowest, curve.highest, **band)
    if rest := len(found) - len(front):
        ax.plot([], [], **GREY, label=f"{rest} other settings")

    steps = sorted(set(pd.concat(numbers).step))
    if len(steps) <= 6:
        ax.set_xticks(steps)
    else:
        ax.locator_params(axis="x", nbins=6)
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    log_ticks(ax)
    samples = f" (N = {n:,})" if n else ""
    ax.set(xlabel="training steps", ylabel=f"{name}{samples}\nlog scale, lower is better")
    legend(figure)
    return Drawing(figure, pd.concat(numbers, ignore_index=True), note)
