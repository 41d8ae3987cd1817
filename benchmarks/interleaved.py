"""Compares alternatives on a machine that others use too: interleaved rounds, ratios per round.

Absolute speeds drift with whatever else the machine does; the ratio of two neighbours in time does
not, so a ratio is taken within each round, and its median and spread over the rounds are reported.
"""

__all__ = ["Row", "Spread", "Summary", "compare", "machine", "repeated"]

import os
import platform
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch


class Row(NamedTuple):
    """One alternative: what it is, how, and the seconds that it takes for a number of steps."""

    name: str
    mode: str
    seconds: Callable[[int], float]


class Spread(NamedTuple):
    """Median and quartiles over the rounds."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, values: np.ndarray) -> "Spread":
        """Returns the quartiles of values (rounds,)."""
        return cls(*np.percentile(values, [25, 50, 75]).tolist())


class Summary(NamedTuple):
    """Steps per second of a row, and their ratio to the first row's of the same round."""

    name: str
    mode: str
    speed: Spread
    ratio: Spread
    ratios: list[float]  # of each round


def repeated(step: Callable[[], Any], device: torch.device) -> Callable[[int], float]:
    """Returns the function that takes that many steps and returns their wall time in seconds."""

    def seconds(steps: int) -> float:
        _wait(device)
        start = time.perf_counter()
        for _ in range(steps):
            step()
        _wait(device)
        return time.perf_counter() - start

    return seconds


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def compare(rows: Sequence[Row], rounds: int, steps: int, warm_up: int = 3) -> list[Summary]:
    """Returns a summary per row from round-robin rounds; warm-up, compilation included, is apart.

    Every second round goes backwards, so that no row always follows the same neighbour.
    """
    for row in rows:
        row.seconds(warm_up)
    speeds = np.empty((rounds, len(rows)))
    for r in range(rounds):
        for i in range(len(rows))[:: -1 if r % 2 else 1]:
            speeds[r, i] = steps / rows[i].seconds(steps)
    ratios = speeds / speeds[:, :1]
    return [
        Summary(row.name, row.mode, Spread.of(speeds[:, i]), Spread.of(each), each.tolist())
        for i, (row, each) in enumerate(zip(rows, ratios.T, strict=True))
    ]


def machine(device: torch.device) -> str:
    """Returns a line on the versions and the processor that numbers were measured with."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "lightning"))
    gpu = f", {torch.cuda.get_device_name(device)}" if device.type == "cuda" else ""
    return f"{packages}; {_processor()}, {os.cpu_count()} cores{gpu}"


def _processor() -> str:
    """Returns the processor's name; Python itself knows it on macOS and Windows alone."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
