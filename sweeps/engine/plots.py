"""The figures of a search: history, parameters, importances, Pareto front."""

__all__ = ["draw"]

import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
from matplotlib.ticker import MaxNLocator
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.importance import FanovaImportanceEvaluator, get_param_importances
from optuna.trial import FrozenTrial, TrialState, create_trial

from analysis.drawing.attempt import attempt
from analysis.drawing.fonts import short
from analysis.drawing.style import (
    NARROW,
    WIDE,
    Drawing,
    caption,
    legend,
    log_ticks,
    new_figure,
    of_seeds,
    save,
    score_axis,
    styled,
)
from sweeps.engine.form import Direction
from sweeps.engine.values import finite

COLORS = ("#0072B2", "#D55E00")
LEAST = 2  # complete trials, and values of a parameter, that can be compared
COLUMNS = 4  # of parameters
WORDS = 12  # of a parameter that are named
NONE = "-"  # of a word that a choice does not have
Axes = Mapping[str, tuple[str, CategoricalDistribution | FloatDistribution]]


def draw(
    trials: Sequence[FrozenTrial], objectives: Mapping[str, Direction], directory: Path
) -> list[Path]:
    """Draws complete trials as optuna_*.pdf, .png and .csv; returns their paths.

    objectives: {metric: minimize | maximize}. One metric has a history, and a slice along every
    parameter that varies; two or three have a Pareto front; each has the importances of the
    parameters. Fewer than two complete trials: nothing.
    """
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    complete = [trial for trial in complete if all(map(finite, trial.values))]
    complete.sort(key=lambda trial: trial.number)
    written: list[Path] = []
    if len(complete) < LEAST:
        return written
    for name, picture in _pictures(complete, objectives).items():

        def work(name: str = name, picture: Callable[[], Drawing] = picture) -> None:
            written.extend(save(picture(), directory, name))

        if failed := attempt(name, directory, work):
            logging.getLogger(__name__).warning("%s: %s", name, failed)
    return written


def _pictures(
    trials: Sequence[FrozenTrial], objectives: Mapping[str, Direction]
) -> dict[str, Callable[[], Drawing]]:
    """Returns what draws each picture, by its name."""
    axes, metrics = _axes(trials), list(objectives)
    pictures: dict[str, Callable[[], Drawing]] = {}
    if len(metrics) == 1:
        pictures["optuna_history"] = partial(_history, trials, objectives)
        if axes:
            pictures["optuna_slice"] = partial(_slice, trials, axes, metrics[0])
    elif len(metrics) <= 3:
        pictures["optuna_pareto_front"] = partial(_front, trials, objectives)
    for i, metric in enumerate(metrics):
        if axes and len({trial.values[i] for trial in trials}) > 1:
            name = f"optuna_importances{f'_{metric}' if len(metrics) > 1 else ''}"
            pictures[name] = partial(_importances, trials, axes, objectives, i)
    return pictures


def _axes(trials: Sequence[FrozenTrial]) -> Axes:
    """Returns {parameter: (label, space)} of those that vary; a label is a name's last part."""
    values_of: dict[str, list[Any]] = {}
    logs: set[str] = set()
    for trial in trials:
        for key, value in trial.params.items():
            values_of.setdefault(key, []).append(value)
            if getattr(trial.distributions[key], "log", False):
                logs.add(key)
    varied = {k: v for k, v in values_of.items() if k != "seed" and len(set(v)) >= LEAST}
    last = [key.rpartition(".")[2] for key in varied]
    return {
        key: (
            label if last.count(label) == 1 else key,
            FloatDistribution(min(values), max(values), log=key in logs)
            if all(map(finite, values))
            else CategoricalDistribution([*dict.fromkeys(map(str, values)), NONE]),
        )
        for label, (key, values) in zip(last, varied.items(), strict=True)
    }


def _study(
    trials: Sequence[FrozenTrial],
    axes: Axes,
    objectives: Mapping[str, Direction],
    fill: bool = False,
) -> optuna.Study:
    """Returns a study of these axes alone.

    `fill` gives a trial the middle of a range, or no word, where its choice lacks the parameter:
    importances are of trials that have all parameters.
    """
    study = optuna.create_study(directions=list(objectives.values()))
    for trial in trials:
        params: dict[str, Any] = {}
        spaces: dict[str, BaseDistribution] = {}
        for key, (label, space) in axes.items():
            words = isinstance(space, CategoricalDistribution)
            if key in trial.params:
                params[label] = str(trial.params[key]) if words else float(trial.params[key])
            elif fill:
                params[label] = _middle(space) if isinstance(space, FloatDistribution) else NONE
            if label in params:
                spaces[label] = space
        study.add_trial(create_trial(params=params, distributions=spaces, values=trial.values))
    return study


def _middle(space: FloatDistribution) -> float:
    return (space.low * space.high) ** 0.5 if space.log else (space.low + space.high) / 2


def _numbers(trials: Sequence[FrozenTrial]) -> list[int]:
    """Returns the numbers of trials in their study."""
    return [trial.number for trial in trials]


def _seeds(trials: Sequence[FrozenTrial]) -> str:
    """Returns the caption: every point is one training, of one seed."""
    seeds = sorted({trial.params["seed"] for trial in trials if "seed" in trial.params})
    several = f", of seeds {', '.join(f'{seed:g}' for seed in seeds)}" if len(seeds) > 1 else ""
    return f"every trial is one training{several}; of {of_seeds([1])}"


@styled
def _history(trials: Sequence[FrozenTrial], objectives: Mapping[str, Direction]) -> Drawing:
    """Draws the metric of every trial, and the best one so far."""
    ((metric, direction),) = objectives.items()
    values = pd.Series([trial.values[0] for trial in trials])
    best = values.cummin() if direction == "minimize" else values.cummax()
    numbers = pd.DataFrame({"trial": _numbers(trials), metric: values, "best_so_far": best})
    figure = new_figure(NARROW, 2.3)
    ax = figure.subplots()
    ax.scatter(values.index, values, s=14, color=COLORS[0], label=metric, zorder=3)
    ax.plot(best.index, best, color=COLORS[1], drawstyle="steps-post", label="best so far")
    log = score_axis(ax, [*values])
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set(xlabel="complete trial", ylabel=f"{metric}{' (log scale)' if log else ''}")
    legend(figure)
    caption(figure, _seeds(trials))
    return Drawing(figure, numbers)


@styled
def _slice(trials: Sequence[FrozenTrial], axes: Axes, metric: str) -> Drawing:
    """Draws the metric over each parameter, a point per trial that has it, later ones darker."""
    columns = min(COLUMNS, len(axes))
    rows = -(-len(axes) // columns)
    figure = new_figure(WIDE if columns > 1 else NARROW, 0.4 + 1.9 * rows)
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for ax in grid.flat[len(axes) :]:
        ax.set_visible(False)
    numbers = []
    for ax, (key, (label, space)) in zip(grid.flat, axes.items(), strict=False):
        place = [i for i, trial in enumerate(trials) if key in trial.params]
        having = [trials[i] for i in place]
        words = isinstance(space, CategoricalDistribution)
        x = [str(trial.params[key]) if words else trial.params[key] for trial in having]
        y = [trial.values[0] for trial in having]
        rows_of_one = {"parameter": key, "trial": _numbers(having), "value": x, metric: y}
        numbers.append(pd.DataFrame(rows_of_one))
        if isinstance(space, CategoricalDistribution):
            there = [word for word in space.choices if word in x]
            named = range(0, len(there), -(-len(there) // WORDS))
            ax.set_xticks(named, [short(str(there[i]), 20) for i in named], rotation=90)
            ax.set_xlim(-0.5, len(there) - 0.5)
            x = [there.index(word) for word in x]
        points = {"s": 14, "edgecolors": "0.3", "linewidths": 0.4, "zorder": 3}
        shown = ax.scatter(x, y, c=place, cmap="Blues", vmin=0, vmax=len(trials) - 1, **points)
        if isinstance(space, FloatDistribution) and space.log:
            ax.set_xlim(0.8 * space.low, 1.25 * space.high)
            log_ticks(ax, "x")
        ax.set_xlabel(label)
    log = score_axis(grid[0, 0], [trial.values[0] for trial in trials])
    for ax in grid[:, 0]:
        ax.set_ylabel(f"{metric}{' (log scale)' if log else ''}")
    bar = figure.colorbar(shown, ax=grid, aspect=15 * rows, pad=0.01)
    bar.set_label("complete trial")
    bar.locator = MaxNLocator(integer=True)
    caption(figure, _seeds(trials))
    return Drawing(figure, pd.concat(numbers, ignore_index=True))


@styled
def _front(trials: Sequence[FrozenTrial], objectives: Mapping[str, Direction]) -> Drawing:
    """Draws every pair of metrics; what no trial beats in all metrics is the Pareto front."""
    study = _study(trials, {}, objectives)
    best = {trial.number for trial in study.best_trials}
    metrics = list(objectives)
    front = np.array([i in best for i in range(len(trials))])
    values = pd.DataFrame([trial.values for trial in trials], columns=metrics)
    pairs = list(combinations(metrics, 2))
    figure = new_figure(NARROW if len(pairs) == 1 else WIDE, 2.4)
    grid = figure.subplots(1, len(pairs), squeeze=False)[0]
    for ax, (x, y) in zip(grid, pairs, strict=True):
        for rows, color, label in (
            (~front, COLORS[0], "others"),
            (front, COLORS[1], "Pareto front"),
        ):
            ax.scatter(values[x][rows], values[y][rows], s=14, color=color, label=label, zorder=3)
        log = score_axis(ax, [*values[y]])
        ax.set(xlabel=x, ylabel=f"{y}{' (log scale)' if log else ''}")
    legend(figure)
    caption(figure, _seeds(trials))
    return Drawing(figure, values.assign(pareto_front=front, trial=_numbers(trials)))


@styled
def _importances(
    trials: Sequence[FrozenTrial], axes: Axes, objectives: Mapping[str, Direction], objective: int
) -> Drawing:
    """Draws how much of a metric's variance each parameter explains: Optuna's fANOVA, seed 0."""
    metric = list(objectives)[objective]
    with warnings.catch_warnings(action="ignore"):  # Optuna's of experimental parts
        importances = get_param_importances(
            _study(trials, axes, objectives, fill=True),
            evaluator=FanovaImportanceEvaluator(seed=0),
            target=lambda trial: trial.values[objective],
        )
    numbers = pd.DataFrame({"parameter": [*importances], "importance": [*importances.values()]})
    figure = new_figure(NARROW, 0.7 + 0.25 * len(numbers))
    ax = figure.subplots()
    names = [short(name, 30) for name in numbers.parameter]
    bars = ax.barh(range(len(numbers)), numbers.importance, color=COLORS[0])
    ax.bar_label(bars, fmt=" {:.2f}", fontsize=7)
    ax.set_yticks(range(len(numbers)), names)
    ax.invert_yaxis()
    ax.set(xlim=(0, 1.15), xlabel=f"importance for {metric} (shares of its variance)")
    caption(figure, f"{len(trials)} trials; {_seeds(trials)}")
    return Drawing(figure, numbers)
