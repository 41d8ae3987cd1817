"""Orders of settings: by the channels that two tasks share, and by their scores."""

__all__ = ["Curve", "Order", "Searched", "overlap_curve", "paper_order", "searched"]

import math
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import permutation_test, spearmanr

from analysis.findings.archive import Archive
from analysis.findings.claims import CORES, CURVE, DIGITS, MASKS, Data
from analysis.findings.judge import MISSING, REFUTED, SUPPORTED, UNDECIDED
from analysis.read.runs import Finished

DRAWS = 10_000
SEARCH = "digits_window"
EVEN = [0, 0.25, 0.5, 0.75, 1.0]  # the knots of DTR's window
# FID on FFHQ with DiT-B/2: Tables 1 (R-TR) and 8.
PUBLISHED = {"MaxRoaming": 39.90, "R-TR": 11.99, "none": 10.99}
PUBLISHED |= {"ERCDT": 10.13, "CDTR": 9.61, "DTR": 7.32}


@dataclass(frozen=True)
class Curve:
    """Overlap (a share in 0..1) and scores of each setting, and claim 11b's rank correlations.

    points: {name: (overlap, {seed: score})}; rho: {seed: correlation} over the cores and R-TR.
    """

    points: dict[str, tuple[float, dict[int, float]]]
    rho: dict[int, float]
    verdict: str


def overlap_curve(archive: Archive) -> Curve:
    """Returns how the score follows the channels that two tasks share, on the digits.

    A run that diverged counts as worse than all others.
    """
    points = {}
    for name, (sweep, options) in CURVE.items():
        by_seed = archive.runs(sweep, options)
        if runs := {seed: run for seed, run in by_seed.items() if seed in range(DIGITS.seeds)}:
            first = next(iter(runs.values()))
            overlap = 1.0 if first.choice("router") == "NoRouting" else first.number("overlap")
            points[name] = overlap, {seed: run.score for seed, run in runs.items()}
    rho: dict[int, float] = {}
    if all(name in points for name in (*CORES, "R-TR")):
        compared = [points[name] for name in (*CORES, "R-TR")]
        seeds = set.intersection(*(set(scores) for _, scores in compared))
        for seed in sorted(seeds & {*range(DIGITS.seeds)}):
            scores = [scores[seed] for _, scores in compared]
            worst = [x if math.isfinite(x) else math.inf for x in scores]
            rho[seed] = float(spearmanr([overlap for overlap, _ in compared], worst).statistic)
    if len(rho) < DIGITS.seeds:
        return Curve(points, rho, MISSING)
    if all(value < 0 for value in rho.values()):
        return Curve(points, rho, SUPPORTED)
    return Curve(points, rho, REFUTED if all(v > 0 for v in rho.values()) else UNDECIDED)


@dataclass(frozen=True)
class Order:
    """Masks from the best to the worst mean score, and the rank correlation with the paper's.

    p: the share of all orders of six masks that agree or disagree with the paper's as much.
    """

    means: dict[str, float]
    rho: float
    low: float
    high: float
    p: float
    n: int


def paper_order(archive: Archive, data: Data) -> Order | None:
    """Returns the order of six masks, with a 95 % bootstrap interval over seeds; None if not run.

    Seeds are drawn with replacement, the same for all masks, as they are paired.
    """
    table = {}
    for name in PUBLISHED:
        sweep, options = MASKS[data][name]
        table[name] = {seed: run.score for seed, run in archive.runs(sweep, options).items()}
    seeds = set.intersection(*(set(scores) for scores in table.values()))
    seeds = sorted(seeds & {*range(data.seeds)})
    if len(seeds) < data.seeds:
        return None
    scores = np.array([[table[name][seed] for seed in seeds] for name in PUBLISHED])
    scores = np.where(np.isfinite(scores), scores, math.inf)
    theirs = list(PUBLISHED.values())
    generator = np.random.default_rng(0)
    drawn = [
        spearmanr(scores[:, generator.integers(len(seeds), size=len(seeds))].mean(1), theirs)
        for _ in range(DRAWS)
    ]
    low, high = np.percentile([each.statistic for each in drawn], [2.5, 97.5])
    means = dict(zip(PUBLISHED, scores.mean(1).tolist(), strict=True))
    test = permutation_test(
        (scores.mean(1),),
        lambda ours: spearmanr(ours, theirs).statistic,
        permutation_type="pairings",
        n_resamples=np.inf,
    )
    rho = float(test.statistic)
    ordered = dict(sorted(means.items(), key=lambda item: item[1]))
    return Order(ordered, rho, float(low), float(high), float(test.pvalue), len(seeds))


@dataclass(frozen=True)
class Searched:
    """What a search found: its best setting by the mean score over seeds, and DTR's own window.

    router: the options of the best. place: that of DTR's window among all settings, from 1.
    """

    router: dict[str, Any]
    best: float
    dtr: float
    place: int
    settings: int


def searched(archive: Archive) -> Searched | None:
    """Returns what the search of claim 12 found; None if it was not run.

    DTR's window is the setting of even knots that the search starts with.
    """
    settings: dict[str, list[Finished]] = defaultdict(list)
    for run in archive.sweeps.get(SEARCH, []):
        settings[run.hash_without("seed")].append(run)
    if not settings:
        return None
    ordered = sorted(settings.values(), key=_mean)
    even = [i for i, runs in enumerate(ordered) if runs[0].flat["router.knots"] == EVEN]
    if len(even) != 1:
        return None
    best, (place,) = ordered[0], even
    router = best[0].config["router"]["init_args"]
    return Searched(router, _mean(best), _mean(ordered[place]), place + 1, len(ordered))


def _mean(runs: list[Finished]) -> float:
    scores = [run.score for run in runs]
    return float(np.mean(scores)) if all(map(math.isfinite, scores)) else math.inf
