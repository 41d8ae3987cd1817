"""From runs to a verdict, by the rules that docs/findings.md registered."""

__all__ = ["Judged", "differences", "effect", "judge"]

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import stdtrit
from scipy.stats import rankdata

from analysis.findings.archive import Archive
from analysis.findings.claims import Comparison
from analysis.read.statistics import holm, sign_flip, t_interval

POWER = 0.8
SUPPORTED, REFUTED, UNDECIDED, MISSING = "supported", "refuted", "undecided", "not run yet"
VERDICTS = (SUPPORTED, REFUTED, UNDECIDED, MISSING)


@dataclass(frozen=True)
class Judged:
    """An effect over seeds: mean difference, interval, exact p, corrected p, and the verdict.

    detectable: the difference that this many seeds would have found with 80 % power.
    ranked: whether a run diverged or never got there, so that ranks were tested and not values.
    """

    comparison: Comparison
    differences: Mapping[int, float]
    effect: float = math.nan
    low: float = math.nan
    high: float = math.nan
    p: float = math.nan
    detectable: float = math.nan
    ranked: bool = False
    p_holm: float = math.nan
    verdict: str = MISSING

    @property
    def n(self) -> int:
        """The number of seeds that all sides have."""
        return len(self.differences)


def differences(comparison: Comparison, archive: Archive) -> tuple[dict[int, float], bool]:
    """Returns {seed: difference} over the seeds that all sides have, and whether it is of ranks.

    Where a run has no finite number it counts as worse than every run that has one: the numbers of
    all sides are then replaced by their ranks.
    """
    sides = [(side, 1) for side in comparison.plus] + [(side, -1) for side in comparison.minus]
    table: list[dict[int, float]] = []
    for (sweep, options), _ in sides:
        values = {
            seed: comparison.measure.of(run, archive.sweeps[sweep])
            for seed, run in archive.runs(sweep, options).items()
            if seed in comparison.seeds
        }
        table.append({seed: value for seed, value in values.items() if value is not None})
    seeds = sorted(set.intersection(*(set(values) for values in table)))
    values = np.array([[row[seed] for seed in seeds] for row in table]).reshape(len(table), -1)
    ranked = not np.isfinite(values).all()
    if ranked:
        values = rankdata(np.where(np.isfinite(values), values, math.inf)).reshape(values.shape)
    signs = np.array([sign for _, sign in sides])
    return dict(zip(seeds, (signs @ values).tolist(), strict=True)), ranked


def effect(comparison: Comparison, archive: Archive) -> Judged:
    """Returns the effect of a comparison, without a verdict yet."""
    by_seed, ranked = differences(comparison, archive)
    values = list(by_seed.values())
    if len(values) < 2:
        return Judged(comparison, by_seed)
    low, high = t_interval(values, comparison.data.level)
    n = len(values)
    quantiles = stdtrit(n - 1, 0.5 + comparison.data.level / 2) + stdtrit(n - 1, POWER)
    return Judged(
        comparison,
        by_seed,
        effect=float(np.mean(values)),
        low=low,
        high=high,
        p=sign_flip(values),
        detectable=float(quantiles * np.std(values, ddof=1) / math.sqrt(n)),
        ranked=ranked,
    )


def judge(comparisons: Sequence[Comparison], archive: Archive) -> list[Judged]:
    """Returns each comparison with its verdict.

    p is corrected over all comparisons of one data set and one family of measures; one that was not
    run yet counts as a test with p = 1.
    """
    judged = [effect(comparison, archive) for comparison in comparisons]
    families = defaultdict(list)
    for i, each in enumerate(judged):
        families[each.comparison.data, each.comparison.measure.family].append(i)
    for members in families.values():
        known = [1.0 if math.isnan(judged[i].p) else judged[i].p for i in members]
        for i, p in zip(members, holm(known), strict=True):
            judged[i] = replace(judged[i], p_holm=p)
    return [replace(each, verdict=_verdict(each)) for each in judged]


def _verdict(judged: Judged) -> str:
    comparison = judged.comparison
    if judged.n < comparison.data.seeds:
        return MISSING
    significant = judged.p_holm <= 0.05
    beyond = not judged.low <= 0 <= judged.high
    if judged.ranked:  # ranks have no interval
        beyond = significant
    elif comparison.data.tested:
        beyond = beyond and significant
    if comparison.within is not None:
        inside = max(-judged.low, judged.high) <= comparison.within
        return REFUTED if beyond else SUPPORTED if inside else UNDECIDED
    if not beyond:
        return UNDECIDED
    if not comparison.direction:  # the claim is that there is a difference
        return SUPPORTED
    return SUPPORTED if judged.effect * comparison.direction > 0 else REFUTED
