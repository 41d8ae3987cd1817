"""Figure 3: score, accuracy, precision and recall over the guidance scale, per setting."""

__all__ = ["CONFIG", "SCALES", "TITLE", "GuidanceConfig", "draw", "needs", "stored"]

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.drawing.style import (
    WIDE,
    Drawing,
    as_label,
    caption,
    legend,
    lines,
    new_figure,
    of_seeds,
    score_axis,
    styled,
)
from analysis.measure.load import load
from analysis.read.runs import Finished
from analysis.read.settings import Setting, highlighted, largest, not_shown, settings
from dtr_lightning.cli.progress_bar import Bar
from dtr_lightning.errors import UserError

TITLE = "Guidance scale (Figure 3)"
SCALES = (1.0, 1.5, 2.0, 2.5)
MEASURED = ("score", "accuracy", "classifier_score", "precision", "recall")
MOST = 16  # lines; of more settings the `highlighted` ones
COLORS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = "so^DvPXh"
PLAIN, STYLES = "NoRouting", ("-", ":", "-.")
UP, DOWN = "\N{UPWARDS ARROW}", "\N{DOWNWARDS ARROW}"  # which way is better
Results = Mapping[str, Any]


@dataclass(frozen=True)
class GuidanceConfig:
    """How many samples are drawn.

    Args:
        n: samples per run and scale; 0: as many as the run is scored with.
    """

    n: int = 0

    def __post_init__(self) -> None:
        if self.n < 0 or self.n == 1:
            raise UserError(f"guidance.n must be 0 (the run's own) or at least 2; got {self.n}")


CONFIG = GuidanceConfig


def _size(run: Finished, config: GuidanceConfig) -> int:
    return config.n or int(run.results["n"])


def stored(run: Finished, scale: float, config: GuidanceConfig) -> Results | None:
    """Returns a run's results at a guidance scale under its own protocol; None if not there.

    They are in results.json, or in an evaluation of the same step.
    """
    wanted = run.results["protocol"] | {"guidance": scale, "n": _size(run, config)}
    names = sorted(file.stem for file in run.evaluations.glob("*.json"))
    for results in filter(None, (run.results, *map(run.evaluation, names))):
        same = results.get("protocol") == wanted and results.get("steps") == run.results["steps"]
        if same and results.keys() >= set(MEASURED):
            return results
    return None


def _usable(run: Finished) -> bool:
    drops = float(run.flat.get("model.class_dropout_prob", 0.1)) > 0
    stated = {"steps", "protocol"} <= run.results.keys()
    return run.has_checkpoint and stated and math.isfinite(run.score) and drops


def needs(runs: Sequence[Finished]) -> str | None:
    """Says what is missing: a finished run that can be guided, with its checkpoint."""
    if any(map(_usable, runs)):
        return None
    return "no finished run has a checkpoint, a finite score and label dropout (for guidance)"


def _cost(run: Finished, scale: float, config: GuidanceConfig) -> int:
    """Returns the network evaluations of single images that a scale takes."""
    steps = int(run.results["protocol"]["sampler_steps"])
    return _size(run, config) * steps * (1 if scale == 1 else 2)


def _measure(
    runs: Sequence[Finished], config: GuidanceConfig
) -> tuple[dict[tuple, Results], list[str]]:
    """Returns {(run's path, scale): results}, and a line for each run that cannot be measured.

    What is missing is sampled; every scale is stored with its run as soon as it is done.
    """
    points = [(run, scale) for run in runs for scale in SCALES]
    results = {(run.path, scale): stored(run, scale, config) for run, scale in points}
    missing = [(run, scale) for run, scale in points if results[run.path, scale] is None]
    costs = [_cost(run, scale, config) for run, scale in missing]
    failed: dict[Any, str] = {}
    if missing:
        with Bar("guidance") as bar:
            for i, (run, scale) in enumerate(missing):
                if run.path in failed:
                    continue
                text = f"guidance {scale:g} {run.path.name}"
                add = bar.count(sum(costs), text, done=sum(costs[:i]))
                try:
                    results[run.path, scale] = _evaluate(run, scale, config, add)
                except UserError as error:
                    failed[run.path] = f"left out {run.path.name}: {error}"
    return {key: one for key, one in results.items() if one}, list(failed.values())


def _evaluate(
    run: Finished, scale: float, config: GuidanceConfig, add: Callable[[int], None]
) -> Results:
    options = {"guidance": f"{scale:g}", "n": _size(run, config)}
    trained = load(run, [f"--evaluation.{k}={v}" for k, v in options.items()])
    results = run.evaluation(trained.name)
    if results is not None and not results.keys() >= set(MEASURED):
        # of a version that did not measure all of it
        (run.evaluations / f"{trained.name}.json").unlink()
    return trained.evaluate(add)


def _styles(shown: Sequence[Setting]) -> list[dict[str, Any]]:
    """Returns the line of each setting: with several loss weights a colour each, no routing dashed.

    With one loss weight a router has its own colour, as everywhere.
    """
    weights = sorted({(s.loss_weight, s.other) for s in shown})
    if len(weights) == 1:
        return lines([s.router for s in shown])
    routed = list(dict.fromkeys((s.router, s.alpha, s.beta) for s in shown if s.router != PLAIN))
    styles = []
    for s in shown:
        i = weights.index((s.loss_weight, s.other))
        color, marker = COLORS[i % len(COLORS)], MARKERS[i % len(MARKERS)]
        dash, face = "--", "white"
        if s.router != PLAIN:
            dash, face = STYLES[routed.index((s.router, s.alpha, s.beta)) % len(STYLES)], color
        style = {"color": color, "linestyle": dash, "marker": marker, "markerfacecolor": face}
        styles.append(style)
    return styles


def _panels(numbers: pd.DataFrame, score_name: str) -> dict[str, str]:
    """Returns the columns to draw with their titles: the classifier's is accuracy, else IS."""
    fid = score_name == "fid"
    titles = {"score": f"{'FID' if fid else score_name} {DOWN}  (n = {numbers.n.iloc[0]:,})"}
    if numbers.accuracy.notna().any():
        titles["accuracy"] = f"accuracy of the classes {UP}"
    elif numbers.classifier_score.notna().any():
        titles["classifier_score"] = f"{'IS (one split)' if fid else 'classifier score'} {UP}"
    return titles | {"precision": f"precision {UP}", "recall": f"recall {UP}"}


@styled
def draw(runs: Sequence[Finished], config: GuidanceConfig | None = None) -> Drawing:
    """Draws four panels over the guidance scale, a line per setting: the mean of its seeds.

    Runs keep their own protocol but for scale and n; those of another than most are left out.
    """
    config = config or GuidanceConfig()
    usable = [run for run in runs if _usable(run)]

    def scoring(run: Finished) -> str:
        protocol = run.results["protocol"] | {"guidance": 0, "n": _size(run, config)}
        return str(sorted(protocol.items(), key=str))

    alike, note = largest(usable, scoring, "they are scored under another protocol")
    every = settings(alike)
    shown = every if len(every) <= MOST else highlighted(every)
    hidden = not_shown(len(every) - len(shown))
    results, failed = _measure([run for s in shown for run in s.runs], config)
    measured = {path for path, _ in results}
    shown = [s for s in shown if any(run.path in measured for run in s.runs)]
    if not shown:
        raise UserError(f"guidance: nothing to draw: {'; '.join(failed)}")
    rows = []
    for s in shown:
        row: dict[str, Any] = {"setting": s.label, "router": s.router, "loss_weight": s.loss_weight}
        for scale in SCALES:
            seeds = [results[run.path, scale] for run in s.runs if (run.path, scale) in results]
            values = {key: [x for r in seeds if (x := r.get(key)) is not None] for key in MEASURED}
            means = {key: float(np.mean(x)) if x else math.nan for key, x in values.items()}
            point = {"guidance": scale, "seeds": len(seeds), "n": _size(alike[0], config)}
            rows.append(row | point | means)
    numbers = pd.DataFrame(rows)
    name, n = alike[0].protocol[0], int(numbers.n.iloc[0])
    panels = _panels(numbers, name)
    figure = new_figure(WIDE, 2.2)
    axes = figure.subplots(1, len(panels))
    for ax, (column, title) in zip(axes, panels.items(), strict=True):
        for s, style in zip(shown, _styles(shown), strict=True):
            line = numbers[numbers.setting == s.label]
            ax.plot(line.guidance, line[column], **style, label=as_label(s.label))
        ax.set_title(title, fontsize=7)
        ax.set(xlabel="guidance scale", xticks=SCALES)
        score_axis(ax, [*numbers[column]])
    legend(figure)
    note = "; ".join(filter(None, [note, hidden, *failed]))
    caption(figure, of_seeds(numbers.seeds, (name, n)), note)
    return Drawing(figure, numbers, note)
