"""Claim 10: what DTR costs a training step, from the record of a benchmark."""

__all__ = ["BENCHMARK", "RECORD", "SAME_SPEED", "Cost", "read_cost"]

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from analysis.findings.judge import REFUTED, SUPPORTED, UNDECIDED
from analysis.read.statistics import t_interval
from dtr_lightning.errors import UserError

RECORD = "step.json"  # beside the archives
ROUNDS = 15
BENCHMARK = (
    f"python benchmarks/step.py --config digits --rounds {ROUNDS} --json results/findings/{RECORD}"
)
SAME_SPEED = 0.02


@dataclass(frozen=True)
class Cost:
    """Steps per second of DTR over those of no routing, round by round, and counts of both.

    ratio: the geometric mean, with its 95 % interval. parameters and memory, the bytes of a
    training step, are of no routing and of DTR.
    """

    ratios: list[float]
    ratio: float
    low: float
    high: float
    parameters: tuple[int, int]
    memory: tuple[int, int]
    machine: str

    @property
    def verdict(self) -> str:
        """Supported if the whole interval is within 2 % of 1, refuted if DTR is slower by more."""
        if 1 - SAME_SPEED <= self.low and self.high <= 1 + SAME_SPEED:
            return SUPPORTED
        return REFUTED if self.high < 1 - SAME_SPEED else UNDECIDED


def read_cost(folder: Path) -> Cost | None:
    """Returns what DTR costs the digits' network in float32, uncompiled; None if not measured.

    UserError if the record is damaged or has no such rows.
    """
    file = folder / RECORD
    try:
        measured = json.loads(file.read_text())
        rows = {
            row["name"]: row
            for row in measured["rows"]
            if (row["config"], row["mode"]) == ("digits", "eager fp32")
        }
        none, dtr = rows["ours none"], rows["ours DTR"]
        # each row has its ratios to the first of the same round, whichever that is
        above, below = (np.array(side["ratios"]) for side in (dtr, none))
        counts = [(int(side["parameters"]), int(side["memory"])) for side in (none, dtr)]
        machine = str(measured["machine"])
        if above.shape != (ROUNDS,) or below.shape != (ROUNDS,) or measured["device"] != "cpu":
            raise ValueError("not the registered rounds on the CPU")
        if not (np.isfinite(above / below).all() and min(above.min(), below.min()) > 0):
            raise ValueError("ratios that are no speeds")
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, OSError, RecursionError) as error:
        raise UserError(f"{file} is not a record of `{BENCHMARK}`") from error
    ratios = above / below
    low, high = (math.exp(x) for x in t_interval(np.log(ratios).tolist()))
    ratio = math.exp(float(np.log(ratios).mean()))
    parameters, memory = zip(*counts, strict=True)
    return Cost(ratios.tolist(), ratio, low, high, parameters, memory, machine)
