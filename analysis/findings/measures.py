"""What a run is judged by: score, held-out loss, steps to the baseline's score, CKA."""

__all__ = [
    "CKA_ALL",
    "CKA_DIAGONAL",
    "CKA_HIGH",
    "EIGHTHS",
    "LOSS",
    "SCORE",
    "STEPS",
    "Measure",
    "evaluations",
]

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from analysis.findings.archive import cka_of
from analysis.read.runs import Finished

Siblings = Sequence[Finished]  # of the run's sweep: its baseline is among them


@dataclass(frozen=True)
class Measure:
    """A number of a run, its name and unit; a run without one counts as worse than all others.

    of: takes the run and those of its sweep; nan where the run diverged or never got there, None
    where the number was not measured. Lower is better where `family` is score, loss or steps.
    """

    name: str
    family: str  # tests of one family and data set are corrected together
    digits: int
    of: Callable[[Finished, Siblings], float | None]


def evaluations(run: Finished) -> Mapping[int, float]:
    """Returns {step: score} of the evaluations on the way, those that are finite."""
    scores = {r["step"]: r["eval/score"] for r in run.records if "eval/score" in r}
    return {s: x for s, x in scores.items() if x is not None and math.isfinite(x)}


def _steps(run: Finished, siblings: Siblings) -> float:
    """Returns the step of the first evaluation at or below the last one of no routing."""
    twins = [
        other
        for other in siblings
        if other.choice("router") == "NoRouting"
        and other.hash_without("router") == run.hash_without("router")
    ]
    if len(twins) != 1 or not (theirs := evaluations(twins[0])):
        return math.nan
    level = theirs[max(theirs)]
    return float(
        min((s for s, score in evaluations(run).items() if score <= level), default=math.nan)
    )


def _eighth(i: int) -> Callable[[Finished, Siblings], float | None]:
    """Returns 100 ln of the held-out loss in an eighth of the timeline; small differences are %."""

    def of(run: Finished, siblings: Siblings) -> float | None:
        for record in reversed(run.records):
            if losses := [
                value for key, value in sorted(record.items()) if key.startswith("val_tasks/")
            ]:
                return math.nan if losses[i] is None else 100 * math.log(losses[i])
        return None

    return of


def _cka(mean: Callable[[np.ndarray, np.ndarray], float]) -> Callable:
    def of(run: Finished, siblings: Siblings) -> float | None:
        measured = cka_of(run)
        return None if measured is None else mean(measured["cka"], measured["t"])

    return of


def mean_cka(cka: np.ndarray, t: np.ndarray) -> float:
    """Returns the mean CKA of all pairs of different timesteps, over all blocks."""
    i, j = np.triu_indices(len(t), 1)
    return float(cka[:, i, j].mean())


def high_cka(cka: np.ndarray, t: np.ndarray) -> float:
    """Returns the mean CKA of pairs of different timesteps that both lie above T / 2."""
    high = t > _tasks(t) / 2
    return mean_cka(cka[:, high][:, :, high], t[high])


def diagonal_cka(cka: np.ndarray, t: np.ndarray) -> float:
    """Returns the last block's mean CKA of pairs within T / 8, less that of the other pairs."""
    i, j = np.triu_indices(len(t), 1)
    near = np.abs(t[i] - t[j]) <= _tasks(t) / 8
    last = cka[-1][i, j]
    return float(last[near].mean() - last[~near].mean())


def _tasks(t: np.ndarray) -> float:
    """Returns T of timesteps i T / m."""
    return float(t[1] - t[0]) * len(t)


SCORE = Measure("score", "score", 2, lambda run, _: run.score)
LOSS = Measure("held-out loss", "loss", 4, lambda run, _: run.number("loss"))
EIGHTHS = [
    Measure(f"100 ln held-out loss, eighth {i + 1}", f"eighth {i + 1}", 2, _eighth(i))
    for i in range(8)
]
STEPS = Measure("steps to none's last score", "steps", 0, _steps)
CKA_ALL = Measure("mean CKA", "CKA", 4, _cka(mean_cka))
CKA_HIGH = Measure("mean CKA, t > T/2", "CKA", 4, _cka(high_cka))
CKA_DIAGONAL = Measure("CKA within T/8 less the rest, last block", "CKA", 4, _cka(diagonal_cka))
