"""What the runs of a report do not show, in sentences."""

__all__ = ["called", "doubts"]

import math
from typing import Any

import pandas as pd

from analysis.read.runs import Reading
from analysis.read.settings import DISPLAY_NAMES
from analysis.read.statistics import SIX, parted


def called(row: Any) -> str:
    """Returns the name of a row of the table over seeds, for sentences."""
    parts = [DISPLAY_NAMES.get(row.router, row.router)]
    for key in ("alpha", "beta"):
        if math.isfinite(value := getattr(row, key)):
            parts.append(f"{key} {value:g}")
    weight = "" if row.loss_weight == "Constant" else row.loss_weight
    return " ".join(filter(None, [*parts, weight, row.other]))


def doubts(means: pd.DataFrame, reading: Reading) -> list[str]:
    """Returns the doubts about the table over seeds and its runs, in sentences."""
    scored = means[means.score.notna()]
    sentences = [*_of_seeds(scored)]
    if scored.score_name.str.contains("digits|mnist").any():
        sentences.append("The score is a distance in a small classifier's features; it is not FID.")
    if (means.diverged > 0).any():
        rows = [row for row in means.itertuples() if row.diverged]
        names = [f"{called(row)} ({row.diverged})" for row in rows]
        sentences.append(f"Diverged: {', '.join(names)}.")
    if pruned := len(reading.pruned):
        sentences.append(f"Pruned, and in no mean: {pruned} run{'s'[: pruned > 1]}.")
    sentences += _of_notes(means[means.status != "pruned"])
    return sentences + [f"{line[0].upper()}{line[1:]}." for line in reading.skipped]


def _of_seeds(scored: pd.DataFrame) -> list[str]:
    if not len(scored) or (least := scored.seeds.min()) >= SIX:
        return []
    return [
        f"The setting with the fewest seeds has {least}: with fewer than {SIX}, the exact test "
        "cannot tell a difference from chance."
    ]


def _of_notes(means: pd.DataFrame) -> list[str]:
    """Returns each note on the rows once, with the names of its rows where it is not of all."""
    rows: dict[str, list[str]] = {}
    for row in means.itertuples():
        for sentence in parted(row.notes):
            rows.setdefault(sentence, []).append(called(row))
    return [
        f"{sentence[0].upper()}{sentence[1:]}"
        + (f": {', '.join(names)}." if len(names) < len(means) else ".")
        for sentence, names in rows.items()
    ]
