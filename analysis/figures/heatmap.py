"""Figure 4 as a table in colours: DTR's score over alpha and beta; a search as points."""

__all__ = ["TITLE", "comparable", "draw", "needs", "searched"]

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator, StrMethodFormatter

from analysis.drawing.style import (
    NARROW,
    Drawing,
    caption,
    count_seeds,
    legend,
    log_bounds,
    log_locator,
    log_ticks,
    new_figure,
    of_seeds,
    score_name,
    styled,
)
from analysis.read.runs import Finished
from analysis.read.settings import ALPHA, Setting, largest, settings
from analysis.read.statistics import t_interval

TITLE = "Score over alpha and beta"
BETA = "\N{GREEK SMALL LETTER BETA}"
ALPHAS = 4  # of a search at least
RING = "#D55E00"


def comparable(run: Finished) -> tuple:
    """Returns what two runs must have in common to be compared: all but router and seed."""
    return *run.protocol, run.hash_without("router", "seed")


def _grid(runs: Sequence[Finished]) -> tuple[list[Setting], list[Setting], str]:
    """Returns the settings of DTR, those of no routing, and one line on what is left out."""
    dtr = [run for run in runs if run.choice("router") == "DTR" and math.isfinite(run.score)]
    if not dtr:
        return [], [], ""
    both = [run for run in runs if run.choice("router") in ("DTR", "NoRouting")]
    what = "differs from most runs in more than router and seed"
    selected, note = largest(both, comparable, what, among=dtr)
    every = settings(selected)
    return (
        [s for s in every if s.router == "DTR"],
        [s for s in every if s.router == "NoRouting" and math.isfinite(s.score)],
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


def _text(row: dict, cell: bool = False) -> str:
    """Returns mean ± half-width with three digits; in a cell on two lines, `-` without a score."""
    if not math.isfinite(row["score"]):
        return "-"
    digits = max(0, 2 - math.floor(math.log10(max(abs(row["score"]), 0.01))))
    form = f".{digits}f" if abs(row["score"]) < 10_000 else ".1e"
    form = ".1e" if 0 < abs(row["score"]) < 0.001 else form
    half = row["high"] - row["score"]
    more = f"{chr(10) if cell else ' '}± {half:{form}}" if math.isfinite(half) else ""
    return f"{row['score']:{form}}{more}"


def searched(dtr: Sequence[Setting]) -> bool:
    """Returns whether alphas and betas are those of a search: most cells of their grid are empty.

    A line over alpha at one beta with one over beta at one alpha is a cross and no search.
    """
    cells = {(s.alpha, s.beta) for s in dtr}
    alphas, betas = Counter(alpha for alpha, _ in cells), Counter(beta for _, beta in cells)
    crossed = len(alphas) in betas.values()
    return len(alphas) >= ALPHAS and 2 * len(cells) < len(alphas) * len(betas) and not crossed


def _cells(figure: Figure, rows: Sequence[dict], colours: dict) -> tuple[Axes, ScalarMappable]:
    """Draws a cell per alpha and beta with the mean score and its interval's half-width."""
    alphas, betas = (sorted({row[key] for row in rows}) for key in ("alpha", "beta"))
    grid = np.full((len(betas), len(alphas)), math.nan)
    for row in rows:
        grid[betas.index(row["beta"]), alphas.index(row["alpha"])] = row["score"]
    figure.set_size_inches(max(NARROW, 1.3 + 0.45 * len(alphas)), 1.3 + 0.4 * len(betas))
    ax = figure.subplots()
    image = ax.pcolormesh(grid, edgecolors="white", **colours)
    for row in rows:
        x, y = alphas.index(row["alpha"]), betas.index(row["beta"])
        dark = math.isfinite(row["score"]) and colours["norm"](row["score"]) > 0.5
        text = {"ha": "center", "va": "center", "fontsize": 6.5}
        ax.text(x + 0.5, y + 0.5, _text(row, True), color="white" if dark else "black", **text)
    ax.grid(False)
    ax.set_xticks(np.arange(len(alphas)) + 0.5, [f"{alpha:g}" for alpha in alphas])
    ax.set_yticks(np.arange(len(betas)) + 0.5, [f"{beta:g}" for beta in betas])
    ax.tick_params(length=0)
    ax.set(xlabel=ALPHA, ylabel=BETA)
    return ax, image


def _points(figure: Figure, rows: Sequence[dict], colours: dict) -> tuple[Axes, ScalarMappable]:
    """Draws a point per alpha and beta of a search, the best one ringed."""
    scored = pd.DataFrame(rows).dropna(subset="score")
    ax = figure.subplots()
    points = {"c": scored.score, "s": 34, "edgecolors": "0.4", "linewidths": 0.4, "zorder": 3}
    image = ax.scatter(scored.alpha, scored.beta, **points, **colours)
    best = scored.loc[scored.score.idxmin()]
    ring = {"s": 110, "facecolors": "none", "edgecolors": RING, "linewidths": 1.4, "zorder": 4}
    label = f"best: {ALPHA}={best.alpha:g} {BETA}={best.beta:g}, {_text(best)}"
    ax.scatter([best.alpha], [best.beta], **ring, label=label)
    ax.set_xlim(0.8 * scored.alpha.min(), 1.25 * scored.alpha.max())
    log_ticks(ax, "x")
    ax.set(xlabel=f"{ALPHA} (log scale)", ylabel=BETA)
    legend(figure)
    return ax, image


@styled
def draw(runs: Sequence[Finished]) -> Drawing:
    """Draws DTR's mean scores: a cell per alpha and beta, for a search a point over log alpha.

    Colours are logarithmic and span a factor of two at least, so that close scores look close. A
    cell has the half-width of the 95 % t interval too. The colour bar has no routing as a line. A
    grid that is not full has empty cells.
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
    levels = numbers.score.dropna()
    bounds = log_bounds(levels, pad=1.03)
    norm = LogNorm(*bounds) if bounds else Normalize(levels.min(), levels.max())
    colours = {"cmap": "cividis_r", "norm": norm}

    figure = new_figure(NARROW, 2.7)
    scored = [s for s in dtr if math.isfinite(s.score)]
    ax, image = (_points if searched(scored) else _cells)(figure, rows, colours)
    bar = figure.colorbar(image, ax=ax, aspect=12)
    bar.set_label(f"{'log scale, ' if bounds else ''}lower is better")
    if bounds:
        bar.minorlocator = NullLocator()
        bar.locator, bar.formatter = log_locator(*bounds), StrMethodFormatter("{x:g}")
        bar.update_ticks()
    for row in baseline:
        bar.ax.axhline(row["score"], color="white", linewidth=2.5)
        bar.ax.axhline(row["score"], color="black", linewidth=1.2)
    lines = ["mean ± 95 % t interval"] if count_seeds(numbers.seeds) else []
    if baseline:
        lines.append(f"no routing: {_text(baseline[0])} (line)")
    else:
        lines.append("no run without routing")
    title = score_name(*dtr[0].runs[0].protocol, width=40)
    ax.set_title("\n".join([f"{title} of DTR", *lines]), fontsize=7)
    empty = "-: diverged" if any(math.isnan(row["score"]) for row in rows) else ""
    caption(figure, of_seeds(numbers.seeds, dtr[0].runs[0].protocol), empty, note)
    return Drawing(figure, numbers, note)
