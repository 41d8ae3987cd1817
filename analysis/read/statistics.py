"""Statistics over seeds: t intervals, paired differences, an exact test, Holm's correction."""

__all__ = [
    "EXACT",
    "MEASURED",
    "PROTOCOL",
    "SETTING",
    "SIX",
    "Paired",
    "holm",
    "joined",
    "least_p",
    "lowest",
    "over_seeds",
    "paired",
    "parted",
    "ranked",
    "reach",
    "sign_flip",
    "t_interval",
]

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.special import stdtrit

EXACT = 18  # pairs up to which all sign flips are tried
DRAWS = 100_000
SIX = 6  # seeds from which the sign-flip test can reach 5 %
MEASURED = ["score", "floor", "accuracy", "copies", "loss", "overlap", "seconds"]
SETTING = "router alpha beta loss_weight other".split()
PROTOCOL = "data score_name n floor_n group setting baseline meaningless notes".split()
COMPARED = "difference difference_low difference_high pairs p p_holm".split()
MEANS = [*SETTING, "seed", "score", "low", "high", "seeds", "diverged", *COMPARED, "partial"]
MEANS += [*MEASURED[1:], *PROTOCOL, "status", "ended_at", "pruned_score", "run"]
ORDER = ["rank", "pruned", "score", "pruned_score"]


class Paired(NamedTuple):
    """A mean difference, its 95 % interval [low, high] and sign-flip p-value over n pairs."""

    difference: float
    low: float
    high: float
    p: float
    n: int


def t_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Returns the bounds of the mean's interval of that level by Student's t.

    They are nan for fewer than two values, and where one is not finite.
    """
    n = len(values)
    if n < 2 or not np.isfinite(values).all():
        return math.nan, math.nan
    half = stdtrit(n - 1, 0.5 + level / 2) * np.std(values, ddof=1) / math.sqrt(n)
    mean = np.mean(values)
    return float(mean - half), float(mean + half)


def sign_flip(differences: Sequence[float]) -> float:
    """Returns the two-sided p-value of a zero centre: the share of sign flips with such a |sum|.

    All 2^n flips for n up to EXACT, else DRAWS at random (always the same) and the given one; nan
    for no pairs, and where a difference is not finite.
    """
    from scipy.stats import permutation_test  # takes a second to import

    values = np.asarray(differences, float)
    n = len(values)
    if n == 0 or not np.isfinite(values).all():
        return math.nan
    if n == 1:
        return 1.0  # SciPy wants two or more

    values = values / (np.abs(values).max() or 1.0)  # sums of huge ones stay finite
    most = np.abs(values).sum()

    def distance(flipped: np.ndarray, axis: int) -> np.ndarray:
        # SciPy takes what differs by 1e-14 of it for a tie: that is to be 1e-14 of the largest sum
        return most + np.abs(flipped.sum(axis))

    result = permutation_test(
        [values],
        distance,
        permutation_type="samples",
        alternative="greater",
        n_resamples=math.inf if n <= EXACT else DRAWS,
        vectorized=True,
        random_state=np.random.default_rng(0),
    )
    return float(result.pvalue)


def paired(mine: Sequence[float], theirs: Sequence[float]) -> Paired:
    """Returns mine minus theirs, pair by pair; the interval is nan for fewer than two pairs.

    All is nan where a score is not finite. ValueError for sides of unequal length.
    """
    if len(mine) != len(theirs):
        raise ValueError(f"{len(mine)} scores cannot be paired with {len(theirs)}")
    with np.errstate(invalid="ignore"):
        differences = np.asarray(mine, float) - np.asarray(theirs, float)
    known = len(differences) and np.isfinite(differences).all()
    mean = float(np.mean(differences)) if known else math.nan
    return Paired(mean, *t_interval(differences), sign_flip(differences), len(differences))


def least_p(n: int) -> float:
    """Returns the smallest p-value that the sign-flip test of n pairs can give: 2 / 2^n."""
    return max(2.0 / 2**n, 1 / (1 + DRAWS) if n > EXACT else 0.0)


def holm(p: Sequence[float]) -> list[float]:
    """Returns p-values corrected by Holm's step-down rule; nan stays nan and does not count.

    ValueError for what is no p-value.
    """
    if wrong := [x for x in p if x < 0 or x > 1]:
        raise ValueError(f"{wrong[0]} is no p-value")
    corrected = np.full(len(p), math.nan)
    order = [i for i in np.argsort(p, kind="stable") if not math.isnan(p[i])]
    largest = 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p[i]))
        corrected[i] = largest
    return corrected.tolist()


def ranked(rows: list[dict[str, Any]], columns: list[str]) -> pd.DataFrame:
    """Returns rows as a table, group after group: the best score first, diverged, then pruned."""
    frame = pd.DataFrame(rows, columns=columns)
    frame = frame.assign(rank=pd.factorize(frame.group)[0], pruned=frame.status == "pruned")
    frame = frame.sort_values(ORDER, ignore_index=True, kind="stable")
    return frame.drop(columns=["rank", "pruned"])


def _mean(values: Iterable[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else math.nan


def over_seeds(frame: pd.DataFrame) -> pd.DataFrame:
    """Returns a row per setting: means over the seeds whose score is finite, sorted by score.

    `low` and `high` bound the score's 95 % t interval over `seeds` seeds; `diverged` counts others.
    `difference` to the baseline is the mean over the seeds that both have (`pairs`; `partial` where
    one of them has more), with its t interval, sign-flip `p` and `p_holm`: corrected over a group's
    comparisons of at least SIX pairs, nan for others. A score that is `meaningless` for a seed of
    either has no p. `notes` are those of any seed. Each pruned run has its own row. ValueError for
    a setting that has a seed twice.
    """
    settings = defaultdict(list)
    for run in frame.to_dict("records"):
        pruned = run["run"] if run["status"] == "pruned" else ""
        settings[run["group"], run["setting"], pruned].append(run)
    scores = {}
    for key, runs in settings.items():
        runs.sort(key=lambda run: run["seed"])
        if len({run["seed"] for run in runs}) < len(runs):
            raise ValueError(f"a setting has a seed twice: {runs[0]['run']}")
        scores[key] = {run["seed"]: run["score"] for run in runs if math.isfinite(run["score"])}
    rows = []
    for (group, setting, pruned), runs in settings.items():
        mine, baseline = scores[group, setting, pruned], (group, runs[0]["baseline"], pruned)
        row = runs[0] | {
            name: _mean(run[name] for run in runs if run["seed"] in mine)
            for name in (*MEASURED, "floor_n")
        }
        low, high = t_interval([*mine.values()])
        row |= {"low": low, "high": high, "seeds": len(mine), "pairs": 0, "partial": False}
        row |= {"diverged": sum(run["status"] == "diverged" for run in runs)}
        ended = [f"{run['ended_at']:.0f}" for run in runs if math.isfinite(run["ended_at"])]
        row |= {"seed": ", ".join(str(run["seed"]) for run in runs), "ended_at": ", ".join(ended)}
        row |= {"run": ", ".join(Path(run["run"]).name for run in runs)}
        row |= {"notes": joined(sentence for run in runs for sentence in parted(run["notes"]))}
        row |= {"meaningless": any(run["meaningless"] for run in runs)}
        theirs = scores.get(baseline, {})
        if common := sorted(mine.keys() & theirs.keys()):
            test = paired([mine[s] for s in common], [theirs[s] for s in common])
            row |= dict(zip(COMPARED, [*test[:3], test.n, test.p], strict=False))
            row["partial"] = len(common) < max(len(mine), len(theirs))
            if row["meaningless"] or any(run["meaningless"] for run in settings[baseline]):
                row["p"] = math.nan
        rows.append(row)
    for group in {row["group"] for row in rows}:
        members = [row for row in rows if row["group"] == group]
        tested = [row.get("p", math.nan) if row["pairs"] >= SIX else math.nan for row in members]
        for row, p in zip(members, holm(tested), strict=True):
            row["p_holm"] = p
    return ranked(rows, MEANS)


def joined(sentences: Iterable[str]) -> str:
    """Returns sentences as one text, each once."""
    return "; ".join(dict.fromkeys(sentences))


def parted(text: str) -> list[str]:
    """Returns the sentences of `joined`; they hold no semicolon."""
    return text.split("; ") if text else []


def lowest(means: pd.DataFrame) -> list[int]:
    """Returns the rows of the lowest mean score and of those whose interval overlaps its own.

    Meaningless scores do not count; of a single score there is none.
    """
    sound = means[means.score.notna() & (means.meaningless != 1)]
    if len(sound) < 2:
        return []
    high = sound.high.fillna(sound.score)[sound.score.idxmin()]
    return sound.index[sound.low.fillna(sound.score) <= high].tolist()


def reach(means: pd.DataFrame) -> str:
    """Returns which test gave p, Holm's number of tests, and which seeds are too few for 5 %.

    Empty where no row has a p-value.
    """
    pairs = sorted({int(n) for n in means.pairs[means.p.notna()]})
    if not pairs:
        return ""
    tests, most, few = int(means.p_holm.notna().sum()), pairs[-1], [n for n in pairs if n < SIX]
    flips = f", of {DRAWS:,} random flips beyond {EXACT} pairs" if most > EXACT else ""
    test = f"{'exact ' * (pairs[0] <= EXACT)}sign-flip test{flips}"
    seeds = " and ".join(map(str, few)) + (" seeds" if few and few[-1] > 1 else " seed")
    least = f" (least p {least_p(few[-1]):.2g})" if few else ""
    if not tests:
        return f"no p: in the {test} {seeds} cannot reach 5 %{least}"
    least_seeds = f" of at least {SIX} seeds" if few else ""
    text = f"p: {test}, Holm over {tests} comparison{'s'[: tests > 1]}{least_seeds}"
    if few:
        text += f"; {seeds} cannot reach 5 %{least}"
    if most >= SIX and (least := tests * least_p(most)) >= 0.05:
        text += f"; {most} seeds cannot reach 5 % after Holm (least p {min(least, 1):.2g})"
    return text + ("; *: below 5 %" if (means.p_holm < 0.05).any() else "")
