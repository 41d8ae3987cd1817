"""Clusters of tasks: T timesteps divided into K intervals, equally or by what they have in common.

A clustering is its bounds 0 = b_0 < ... < b_K = T, int64[K + 1]; cluster i holds the tasks of the
half-open interval [b_i, b_{i+1}). By log-SNR and by gradient affinity are the cheapest partitions
of Go et al., *Addressing Negative Transfer in Diffusion Models*, 2023, where a cluster of the tasks
l..r has the centre floor((l + r) / 2).
"""

__all__ = [
    "Clustering",
    "bounds",
    "by_affinity",
    "by_log_snr",
    "check_options",
    "check_use",
    "cluster_of",
    "equal",
    "intervals",
    "ranges",
    "read_affinity",
    "shares",
    "stratified",
]

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Literal, get_args
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from dtr_lightning.diffusion import Process
from dtr_lightning.errors import UserError, choices

Clustering = Literal["equal", "log_snr", "affinity"]
Interval = tuple[int, int]


def equal(tasks: int, clusters: int) -> Tensor:
    """Returns the bounds floor(i T / K) of clusters that are equally long, up to one task."""
    _check(tasks, clusters)
    return torch.arange(clusters + 1) * tasks // clusters


def by_log_snr(log_snr: Tensor, clusters: int) -> Tensor:
    """Returns the bounds with the least sum of |log SNR_t - log SNR_centre|, for float64[T]."""
    if not log_snr.isfinite().all():
        raise UserError("clusters by log-SNR need a finite log-SNR at every task")
    return _cheapest((log_snr[:, None] - log_snr).abs(), clusters)


def by_affinity(affinity: Tensor, clusters: int) -> Tensor:
    """Returns the bounds with the largest sum of A[centre, t], for affinities float64[T, T]."""
    if affinity.ndim != 2 or affinity.shape[0] != affinity.shape[1]:
        raise UserError(f"affinities must be a square [T, T]; got shape {tuple(affinity.shape)}")
    if not affinity.isfinite().all():
        raise UserError("affinities must be finite; got NaN or infinity")
    return _cheapest(-affinity, clusters)


def _check(tasks: int, clusters: int) -> None:
    if not 1 <= clusters <= tasks:
        raise UserError(f"clusters must lie in 1..{tasks}, the number of tasks; got {clusters}")


def _cheapest(cost: Tensor, clusters: int) -> Tensor:
    """Returns the best bounds, where task t in a cluster of centre c costs cost[c, t].

    Exact dynamic programming in O(K T^2): sums over the tasks of a cluster are differences of the
    sums over all tasks below a bound.
    """
    tasks = len(cost)
    _check(tasks, clusters)
    below = torch.cat([cost.new_zeros(tasks, 1), cost.cumsum(1)], 1)  # [centre, bound]
    first, last = torch.arange(tasks)[:, None], torch.arange(tasks)
    centre = (first + last) // 2
    of = (below[centre, last + 1] - below[centre, first]).masked_fill(last < first, torch.inf)
    best = of[0]  # [last]: the tasks up to this one as one cluster, then as two, ...
    starts: list[Tensor] = []
    for _ in range(1, clusters):
        best, before = (best[:-1, None] + of[1:]).min(0)
        starts.append(before + 1)
    from_last = [tasks]
    for start in reversed(starts):
        from_last.append(int(start[from_last[-1] - 1]))
    return torch.tensor([0, *reversed(from_last)])


def check_options(clusters: int, clustering: Clustering, affinity: str | Path | None) -> None:
    """Raises UserError for options that cannot divide tasks, however many there are."""
    if clusters < 1:
        raise UserError(f"clusters must be at least 1; got {clusters}")
    if clustering not in get_args(Clustering):
        raise choices("clustering", clustering, get_args(Clustering))
    if clustering == "affinity" and affinity is None:
        raise UserError("clustering by affinity needs affinity: a .npy file of shape [T, T]")


def check_use(clustering: Clustering, affinity: str | Path | None) -> None:
    """Raises UserError for affinities that nothing reads."""
    if clustering != "affinity" and affinity is not None:
        raise UserError(f"affinity {affinity} is for clustering affinity, not {clustering}")


def bounds(
    clustering: Clustering,
    clusters: int,
    log_snr: Tensor,
    affinity: str | Path | None = None,
    within: Interval | None = None,
) -> Tensor:
    """Returns the bounds int64[K + 1] of a clustering of the tasks within [low, high), or of all.

    log_snr is float64[T]; affinity the path of a file with [T, T] (see `read_affinity`).
    """
    check_options(clusters, clustering, affinity)
    low, high = within or (0, len(log_snr))
    if clustering == "equal":
        return low + equal(high - low, clusters)
    if clustering == "log_snr":
        return low + by_log_snr(log_snr[low:high].cpu(), clusters)
    assert affinity is not None
    return low + by_affinity(read_affinity(affinity, len(log_snr))[low:high, low:high], clusters)


def read_affinity(path: str | Path, tasks: int) -> Tensor:
    """Returns the affinities float64[T, T] of a `.npy` file; a UserError if they do not fit."""
    try:
        affinity = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError, BadZipFile) as error:
        raise UserError(f"affinities cannot be read from {path}: {error}") from error
    if not isinstance(affinity, np.ndarray) or affinity.dtype.kind not in "fiu":
        raise UserError(f"{path} does not hold one array of real numbers")
    if affinity.shape != (tasks, tasks):
        raise UserError(
            f"{path} holds an array of shape {affinity.shape}; needed: ({tasks}, {tasks}), "
            "one row and one column per task"
        )
    if not np.isfinite(affinity).all():
        raise UserError(f"{path} holds NaN or infinity; affinities must be finite")
    return torch.from_numpy(affinity.astype(np.float64))


def cluster_of(t: Tensor, bounds: Tensor) -> Tensor:
    """Returns the cluster int64 (N,) of tasks t (N,), which may be fractional."""
    return torch.bucketize(t, bounds[1:-1].to(t.dtype), right=True)


def intervals(bounds: Tensor) -> list[Interval]:
    """Returns the half-open interval of every cluster."""
    return list(pairwise(bounds.tolist()))


def ranges(tasks: int, experts: int | Sequence[Sequence[int]]) -> list[Interval]:
    """Returns the half-open ranges of experts: equally long for a number, or those that are given.

    UserError names the first gap or overlap of given ranges, which must cover 0..T in order.
    """
    if isinstance(experts, int):
        if not 1 <= experts <= tasks:
            raise UserError(f"experts must lie in 1..{tasks}, the number of tasks; got {experts}")
        return intervals(equal(tasks, experts))
    valid = f"valid: [low, high] in order from 0 to T = {tasks}, each from where the last one ends"
    covered = 0
    for low, high in experts:
        if not 0 <= low < high <= tasks:
            raise UserError(f"experts: [{low}, {high}] is no range of tasks; {valid}")
        if low > covered:
            raise UserError(f"experts leave a gap at [{covered}, {low}]; {valid}")
        if low < covered:
            raise UserError(f"experts overlap in [{low}, {min(covered, high)}]; {valid}")
        covered = high
    if covered < tasks:
        raise UserError(f"experts leave a gap at [{covered}, {tasks}]; {valid}")
    return [(low, high) for low, high in experts]


def shares(n: int, clusters: int) -> list[int]:
    """Returns how many of n samples each cluster gets: equally many, the first ones one more.

    Raises UserError where a cluster would get none.
    """
    if n < clusters:
        raise UserError(
            f"a batch of {n} samples (of one process) is too small for {clusters} clusters; "
            f"use a batch of at least {clusters} per process, or fewer clusters"
        )
    return [n // clusters + (i < n % clusters) for i in range(clusters)]


def stratified(
    process: Process, n: int, intervals: Sequence[Interval], device: torch.device
) -> Tensor:
    """Draws tasks t (n,) from the global generator: each interval's share, interval by interval."""
    counts = shares(n, len(intervals))
    drawn = [process.timesteps(k, device, i) for k, i in zip(counts, intervals, strict=True)]
    return torch.cat(drawn)
