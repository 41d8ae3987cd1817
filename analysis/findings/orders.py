"""Claims that are no difference of two settings: an order of settings, and what a step costs."""

__all__ = ["COST", "Cost", "Curve", "Order", "cost", "overlap_curve", "paper_order"]

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from analysis.findings.archive import Archive
from analysis.findings.claims import CORES, CURVE, MASKS, Data
from analysis.findings.judge import MISSING, REFUTED, SUPPORTED, UNDECIDED
from analysis.read.statistics import t_interval

COST = "step.json"  # of benchmarks/step.py, beside the archives
SAME_SPEED = 0.02
DRAWS = 10_000
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
        if runs := archive.runs(sweep, options):
            first = next(iter(runs.values()))
            overlap = 1.0 if first.choice("router") == "NoRouting" else first.number("overlap")
            points[name] = overlap, {seed: run.score for seed, run in runs.items()}
    rho: dict[int, float] = {}
    if all(name in points for name in (*CORES, "R-TR")):
        chosen = [points[name] for name in (*CORES, "R-TR")]
        seeds = sorted(set.intersection(*(set(scores) for _, scores in chosen)))
        for seed in seeds:
            scores = [scores[seed] for _, scores in chosen]
            worst = [x if math.isfinite(x) else math.inf for x in scores]
            rho[seed] = float(spearmanr([overlap for overlap, _ in chosen], worst).statistic)
    if len(rho) < 2:
        return Curve(points, rho, MISSING)
    if all(value < 0 for value in rho.values()):
        return Curve(points, rho, SUPPORTED)
    return Curve(points, rho, REFUTED if all(v > 0 for v in rho.values()) else UNDECIDED)


@dataclass(frozen=True)
class Order:
    """Masks from the best to the worst mean score, and the rank correlation with the paper's."""

    means: dict[str, float]
    rho: float
    low: float
    high: float
    n: int


def paper_order(archive: Archive, data: Data) -> Order | None:
    """Returns the order of six masks, with a 95 % bootstrap interval over seeds; None if not run.

    Seeds are drawn with replacement, the same for all masks, as they are paired.
    """
    table = {}
    for name in PUBLISHED:
        sweep, options = MASKS[data][name]
        table[name] = {seed: run.score for seed, run in archive.runs(sweep, options).items()}
    seeds = sorted(set.intersection(*(set(scores) for scores in table.values())))
    if len(seeds) < 2:
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
    rho = float(spearmanr(scores.mean(1), theirs).statistic)
    ordered = dict(sorted(means.items(), key=lambda item: item[1]))
    return Order(ordered, rho, float(low), float(high), len(seeds))


@dataclass(frozen=True)
class Cost:
    """Steps per second of DTR over those of no routing, round by round, and parameters of both."""

    ratios: list[float]
    ratio: float
    low: float
    high: float
    parameters: tuple[int, int]
    machine: str
    verdict: str


def cost(archive: Archive) -> Cost | None:
    """Returns what DTR costs a training step, from interleaved rounds; None if not measured.

    The interval is that of the mean logarithm over the rounds.
    """
    try:
        measured = json.loads((Path(archive.folder) / COST).read_text())
    except FileNotFoundError:
        return None
    row = next(row for row in measured["rows"] if row["name"] == "ours DTR")
    ratios = row["ratios"]
    low, high = (math.exp(x) for x in t_interval(np.log(ratios).tolist()))
    mean = math.exp(float(np.log(ratios).mean()))
    inside = 1 - SAME_SPEED <= low and high <= 1 + SAME_SPEED
    outside = high < 1 - SAME_SPEED
    sizes = [_parameters(archive, router) for router in ("NoRouting", "DTR")]
    verdict = SUPPORTED if inside else REFUTED if outside else UNDECIDED
    return Cost(ratios, mean, low, high, (sizes[0], sizes[1]), measured["machine"], verdict)


def _parameters(archive: Archive, router: str) -> int:
    runs = [r for r in archive.sweeps.get("digits_masks", []) if r.has({"router": router})]
    return int(runs[0].number("parameters")) if runs else 0
