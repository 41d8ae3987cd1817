"""What does not hold, or cannot be known, from runs: the report says it in sentences."""

__all__ = ["called", "doubts"]

import math
from typing import Any

import pandas as pd

from analysis.runs import Reading
from analysis.settings import DISPLAY_NAMES
from analysis.statistics import SIX

FEW = 100  # images below which a number of them says little
COPIES = 0.05  # share of copies from which they are told


def called(row: Any) -> str:
    """Returns what a sentence calls a row of the table over seeds."""
    parts = [DISPLAY_NAMES.get(row.router, row.router)]
    for key in ("alpha", "beta"):
        if math.isfinite(value := getattr(row, key)):
            parts.append(f"{key} {value:g}")
    weight = "" if row.loss_weight == "Constant" else row.loss_weight
    return " ".join(filter(None, [*parts, weight, row.other]))


def _names(rows: pd.DataFrame) -> str:
    return ", ".join(map(called, rows.itertuples()))


def doubts(means: pd.DataFrame, reading: Reading) -> list[str]:
    """Returns a sentence or two per doubt that the table over seeds and its runs give reason to."""
    scored = means[means.score.notna()]
    told = [*_of_seeds(scored), *_of_scores(scored)]
    if (means.diverged > 0).any():
        rows = [row for row in means.itertuples() if row.diverged]
        told.append("Diverged: " + ", ".join(f"{called(r)} ({r.diverged})" for r in rows) + ".")
    if pruned := len(reading.pruned):
        told.append(f"Pruned, and in no mean: {pruned} run{'s'[: pruned > 1]}.")
    told += [*_of_images(scored), *_of_the_floor(scored)]
    notes = (note for run in reading.finished for note in run.results.get("notes") or ())
    told += dict.fromkeys(f"{note[:1].upper()}{note[1:].rstrip('.')}." for note in notes)
    return told + [f"{line[0].upper()}{line[1:]}." for line in reading.skipped]


def _of_seeds(scored: pd.DataFrame) -> list[str]:
    if not len(scored) or (least := scored.seeds.min()) >= SIX:
        return []
    return [
        f"The setting with the fewest seeds has {least}: with fewer than {SIX}, the exact test "
        "cannot tell a difference from chance."
    ]


def _of_scores(scored: pd.DataFrame) -> list[str]:
    told, names = [], sorted(set(scored.score_name))
    if any("digits" in name for name in names):
        told.append("The score is a distance in a small classifier's features; it is not FID.")
    if random := [name for name in names if "untrained" in name]:
        told.append(
            f"{', '.join(random)}: the features' weights are random, so this score tests the "
            "commands and is no measure of quality."
        )
    if len(names) > 1:
        told.append(f"Scores of different kinds are not comparable: {', '.join(names)}.")
    return told


def _of_images(scored: pd.DataFrame) -> list[str]:
    told, copying = [], scored[scored.copies > COPIES]
    if counts := sorted({int(n) for n in scored.floor_n[scored.floor_n < FEW]}):
        images = " and ".join(map(str, counts))
        told.append(f"Held-out loss, floor and copies are of {images} images: they say little.")
    if len(copying):
        share = f"{COPIES:.0%}".replace("%", " %")
        told.append(
            f"More than {share} of the samples are near copies of training images, which lowers "
            f"the score: {_names(copying)}."
        )
    return told


def _of_the_floor(scored: pd.DataFrame) -> list[str]:
    below = scored[scored.score < scored.floor]
    if not len(below):
        return []
    told = f"Below the floor, the score of real images: {_names(below)}."
    fewer = below[below.floor_n < below.n]
    for floor_n, n in sorted({(int(r.floor_n), r.n) for r in fewer.itertuples()}):
        told += (
            f" The floor is of {floor_n:,} images only, the score of {n:,} samples: a Frechet "
            "distance falls with N, so this floor is too high."
        )
    return [told]
