"""Optuna's own plots of a sweep in the style of our figures: history, slice, importances, front."""

__all__ = ["draw"]

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import matplotlib
import optuna
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, StrMethodFormatter
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.importance import FanovaImportanceEvaluator
from optuna.trial import FrozenTrial, TrialState, create_trial
from optuna.visualization import matplotlib as plots

from analysis.style import NARROW, WIDE, Drawing, legend, save, styled
from sweeps.values import is_number

COLORS = ("#0072B2", "#D55E00")
LEAST = 2  # complete trials, and values of a parameter, that can be compared
NONE = "-"  # of a word that a choice does not have


def draw(
    trials: Sequence[FrozenTrial], objectives: Mapping[str, str], directory: Path
) -> list[Path]:
    """Draws what complete trials show, as optuna_*.pdf, .png and .csv; returns their paths.

    objectives: {metric: minimize | maximize}. One: its history, and a slice along every parameter
    that varies; two or three: their Pareto front. Importances of the parameters for each. Fewer
    than two complete trials: nothing.
    """
    sound = [
        trial
        for trial in trials
        if trial.state == TrialState.COMPLETE and all(map(is_number, trial.values))
    ]
    if len(sound) < LEAST:
        return []
    with (
        warnings.catch_warnings(action="ignore"),
        matplotlib.rc_context(),
        patch.dict(matplotlib.style.library, ggplot={}),  # what Optuna draws in
    ):
        figures, numbers = _figures(sound, objectives)
        written = []
        for name, figure in figures.items():
            written += save(Drawing(figure, numbers), directory, f"optuna_{name}")
            plt.close(figure)
    return written


@styled
def _figures(
    trials: Sequence[FrozenTrial], objectives: Mapping[str, str]
) -> tuple[dict[str, Figure], Any]:
    """Returns the figures by name, and the trials as a table."""
    matplotlib.rcParams["figure.constrained_layout.use"] = True
    axes, metrics = _axes(trials), list(objectives)
    study, figures = _study(trials, axes, objectives), {}
    if len(metrics) == 1:
        figures["history"] = _history(study, metrics[0])
        if axes:
            figures["slice"] = _slice(study, metrics[0], len(axes))
    elif len(metrics) <= 3:
        figures["pareto_front"] = _front(study, metrics)
    filled = _study(trials, axes, objectives, fill=True)
    for i, metric in enumerate(metrics):
        if axes and len({trial.values[i] for trial in trials}) > 1:
            name = f"importances_{metric}" if len(metrics) > 1 else "importances"
            figures[name] = _importances(filled, i, metric, len(axes))
    values = ["value"] if len(metrics) == 1 else ["values"]
    return figures, study.trials_dataframe(("number", "params", *values))


def _axes(trials: Sequence[FrozenTrial]) -> dict[str, tuple[str, BaseDistribution]]:
    """Returns {parameter: (label, space)} of those that vary; a label is a name's last part."""
    found: dict[str, list[Any]] = {}
    logs: set[str] = set()
    for trial in trials:
        for key, value in trial.params.items():
            found.setdefault(key, []).append(value)
            if getattr(trial.distributions[key], "log", False):
                logs.add(key)
    found = {k: v for k, v in found.items() if k != "seed" and len(set(v)) >= LEAST}
    last = [key.rpartition(".")[2] for key in found]
    return {
        key: (
            label if last.count(label) == 1 else key,
            FloatDistribution(min(values), max(values), log=key in logs)
            if all(map(is_number, values))
            else CategoricalDistribution([*dict.fromkeys(map(str, values)), NONE]),
        )
        for label, (key, values) in zip(last, found.items(), strict=True)
    }


def _study(
    trials: Sequence[FrozenTrial],
    axes: Mapping[str, tuple[str, BaseDistribution]],
    objectives: Mapping[str, str],
    fill: bool = False,
) -> optuna.Study:
    """Returns a study of these axes alone.

    `fill` gives a trial the middle of a range, or no word, where its choice lacks the parameter:
    importances are of trials that have all parameters.
    """
    study = optuna.create_study(directions=list(objectives.values()))
    study.set_metric_names(list(objectives))
    for trial in trials:
        params, spaces = {}, {}
        for key, (label, space) in axes.items():
            words = isinstance(space, CategoricalDistribution)
            if key in trial.params:
                params[label] = str(trial.params[key]) if words else float(trial.params[key])
            elif fill:
                params[label] = NONE if words else _middle(space)
            if label in params:
                spaces[label] = space
        study.add_trial(create_trial(params=params, distributions=spaces, values=trial.values))
    return study


def _middle(space: BaseDistribution) -> float:
    return (space.low * space.high) ** 0.5 if space.log else (space.low + space.high) / 2


def _sized(ax: Axes, width: float, height: float) -> Figure:
    """Returns the figure of axes in inches, without Optuna's title and legend."""
    figure = ax.figure
    figure.set_layout_engine("constrained")
    figure.set_size_inches(width, height)
    figure.suptitle("")
    for part in figure.axes:
        for place in ("left", "center"):
            part.set_title("", loc=place)
        if (old := part.get_legend()) is not None:
            old.remove()
    return figure


def _history(study: optuna.Study, metric: str) -> Figure:
    ax = plots.plot_optimization_history(study, target_name=metric)
    figure = _sized(ax, NARROW, 2.3)
    ax.collections[0].set(color=COLORS[0], sizes=[14], label=metric)
    ax.lines[0].set(color=COLORS[1], alpha=1, drawstyle="steps-post", label="best so far")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel("trial")
    legend(figure)
    return figure


def _slice(study: optuna.Study, metric: str, count: int) -> Figure:
    found = plots.plot_slice(study, target_name=metric)
    axes = [found] if count == 1 else list(found)
    figure = _sized(axes[0], WIDE if count > 1 else NARROW, 2.3)
    figure.axes[-1].set_ylabel("trial")
    figure.axes[-1].yaxis.set_major_locator(MaxNLocator(integer=True))
    figure.draw_without_rendering()
    for ax in axes:
        for points in ax.collections:
            points.set(sizes=[14], linewidths=0.4, clim=(0, len(study.trials) - 1))
        if ax.get_xscale() == "log":
            ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
            ax.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            ax.xaxis.set_minor_locator(NullLocator())
        words = [text.get_text() for text in ax.get_xticklabels()]
        if words and words[0].startswith("'"):
            ax.set_xticks(ax.get_xticks(), [word.strip("'") for word in words], rotation=90)
    return figure


def _front(study: optuna.Study, metrics: Sequence[str]) -> Figure:
    ax = plots.plot_pareto_front(study, target_names=list(metrics))
    figure = _sized(ax, NARROW, 2.3)
    for points in ax.collections:
        best = points.get_label() == "Best Trial"
        points.set(color=COLORS[best], sizes=[14], label="Pareto front" if best else "others")
    legend(figure)
    return figure


def _importances(study: optuna.Study, objective: int, metric: str, count: int) -> Figure:
    # One objective at a time: beside one another Optuna mixes up their parameters.
    ax = plots.plot_param_importances(
        study,
        evaluator=FanovaImportanceEvaluator(seed=0),
        target=lambda trial: trial.values[objective],
        target_name=metric,
    )
    figure = _sized(ax, NARROW, 0.7 + 0.25 * count)
    for bar in ax.patches:
        bar.set_color(COLORS[0])
    for text in ax.texts:
        text.set(text=f" {text.get_text()}", fontsize=7)
    ax.set(xlabel=f"importance for {metric}", ylabel="")
    ax.set_xlim(0, 1.2 * max(bar.get_width() for bar in ax.patches))
    return figure
