"""Figure 4 as a table in colours: DTR's score over alpha and beta."""

__all__ = ["NAME", "draw", "needs"]

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from analysis.runs import Finished
from analysis.settings import ALPHA, Setting, largest, settings
from analysis.statistics import t_interval
from analysis.style import NARROW, Drawing, new_figure, styled

NAME = "heatmap"
BETA = "\N{GREEK SMALL LETTER BETA}"


def _comparable(run: Finished) -> tuple:
    return *run.protocol, run.hash_without("router", "seed")


def _grid(runs: Sequence[Finished]) -> tuple[list[Setting], list[Setting], str]:
    """Returns the settings of DTR, those of no routing, and one line on what is left out."""
    dtr = [run for run in runs if run.choice("router") == "DTR" and math.isfinite(run.score)]
    if not dtr:
        return [], [], ""
    both = [run for run in runs if run.choice("router") in ("DTR", "NoRouting")]
    what = "differs from most runs in more than router and seed"
    kept, note = largest(both, _comparable, what, among=dtr)
    found = settings(kept)
    return (
        [s for s in found if s.router == "DTR"],
        [s for s in found if s.router == "NoRouting" and math.isfinite(s.score)],
        note,
    )


def needs(runs: Sequence[Finished]) -> str | None:
    """Says what is missing: finite scores of DTR for two alphas and two betas that are alike."""
    scored = [s for s in _grid(runs)[0] if math.isfinite(s.score)]
    alphas, betas = {s.alpha for s in scored}, {s.beta for s in scored}
    if len(alphas) > 1 and len(betas) > 1:
        return None
    return "needs finished runs of DTR with two alphas and two betas, equal in all else"


def _row(setting: Setting) -> dict:
    low, high = t_interval(setting.scores)
    row = {"router": setting.router, "alpha": setting.alpha, "beta": setting.beta}
    row |= {"seeds": len(setting.scores), "score": setting.score, "low": low, "high": high}
    return row


def _told(row: dict, cell: bool = False) -> str:
    """Returns mean ± half-width with three digits; in a cell on two lines, `-` without a score."""
    if not math.isfinite(row["score"]):
        return "-"
    digits = max(0, 2 - math.floor(math.log10(max(abs(row["score"]), 0.01))))
    half = row["high"] - row["score"]
    more = f"{chr(10) if cell else ' '}± {half:.{digits}f}" if math.isfinite(half) else ""
    return f"{row['score']:.{digits}f}{more}"


@styled
def draw(runs: Sequence[Finished]) -> Drawing:
    """Draws a cell per alpha and beta with the mean score and its 95 % t interval's half-width.

    The colour bar has no routing as a line. A grid that is not full has empty cells.
    """
    dtr, plain, note = _grid(runs)
    rows = [_row(s) for s in dtr]
    several = {s.other for s in dtr}
    if len(several) > 1:  # such as another formula of the window
        most = max(several, key=lambda other: sum(s.other == other for s in dtr))
        rows = [_row(s) for s in dtr if s.other == most]
        note = "; ".join(filter(None, [note, f"shown for {most or 'the usual options'} alone"]))
    baseline = [_row(s) for s in plain[:1]]
    numbers = pd.DataFrame([*baseline, *rows])
    alphas, betas = (sorted({row[key] for row in rows}) for key in ("alpha", "beta"))
    grid = np.full((len(betas), len(alphas)), math.nan)
    for row in rows:
        grid[betas.index(row["beta"]), alphas.index(row["alpha"])] = row["score"]

    figure = new_figure(max(NARROW, 1.3 + 0.45 * len(alphas)), 1.2 + 0.4 * len(betas))
    ax = figure.subplots()
    levels = [*grid[np.isfinite(grid)], *(row["score"] for row in baseline)]
    margin = 0.03 * (max(levels) - min(levels))
    low, high = min(levels) - margin, max(levels) + margin
    image = ax.pcolormesh(grid, cmap="cividis_r", vmin=low, vmax=high, edgecolors="white")
    for row in rows:
        x, y = alphas.index(row["alpha"]), betas.index(row["beta"])
        dark = math.isfinite(row["score"]) and row["score"] > (low + high) / 2
        text = {"ha": "center", "va": "center", "fontsize": 6.5}
        ax.text(x + 0.5, y + 0.5, _told(row, True), color="white" if dark else "black", **text)
    ax.grid(False)
    ax.set_xticks(np.arange(len(alphas)) + 0.5, [f"{alpha:g}" for alpha in alphas])
    ax.set_yticks(np.arange(len(betas)) + 0.5, [f"{beta:g}" for beta in betas])
    ax.tick_params(length=0)
    ax.set(xlabel=ALPHA, ylabel=BETA)
    bar = figure.colorbar(image, ax=ax, aspect=12)
    bar.set_label("lower is better")
    for row in baseline:
        bar.ax.axhline(row["score"], color="white", linewidth=2.5)
        bar.ax.axhline(row["score"], color="black", linewidth=1.2)
    name, n = dtr[0].runs[0].protocol
    seeds = max(row["seeds"] for row in rows)
    over = f"mean of {seeds} seeds ± 95 % t interval; " if seeds > 1 else ""
    told = f"no routing: {_told(baseline[0])} (line)" if baseline else "no run without routing"
    ax.set_title(f"{name} (N = {n:,}) of DTR\n{over}{told}", fontsize=7)
    return Drawing(figure, numbers, note)
