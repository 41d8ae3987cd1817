"""Routing masks: which channels each denoising task may read.

Every table is bool[tasks, channels]; its row t is the mask m_t of task t (t = 0 is the cleanest).
Section 4 and Appendix F of Park et al., *Denoising Task Routing for Diffusion Models*, ICLR 2024.
A generator makes random masks; without one its seed is 0, and the global state is never touched.
"""

__all__ = [
    "active_channels",
    "bounds",
    "cdtr",
    "clusters_of_tasks",
    "core_size",
    "cover",
    "dtr",
    "ercdt",
    "free_window",
    "mean_overlap",
    "period",
    "random",
    "shared_core",
    "weights_only",
    "window",
]

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Generator, Tensor

from dtr_lightning.errors import UserError, choices

Formula = Literal["linspace", "eq4"]


def active_channels(channels: int, beta: float) -> int:
    """Returns C_beta = floor(beta C), the number of channels that a task may read (Section 4.2).

    The product is nudged by 1e-9: 0.7 * 90 is 62.99... in floating point, but 63 is meant.
    """
    if not 0 < beta <= 1:
        raise UserError(f"beta must lie in (0, 1], the share of active channels; got {beta}")
    active = math.floor(channels * beta + 1e-9)
    if active == 0:
        raise UserError(f"beta = {beta} leaves none of {channels} channels active")
    return active


def window(start: Tensor, stop: Tensor, channels: int) -> Tensor:
    """Returns the masks (N, channels) active on channels [start, stop), both int64 (N,)."""
    c = torch.arange(channels, device=start.device)
    return (c >= start[:, None]) & (c < stop[:, None])


def bounds(
    t: Tensor,
    tasks: int,
    channels: int,
    alpha: float = 4.0,
    beta: float = 0.8,
    formula: Formula = "linspace",
    knots: Sequence[float] = (0.0, 1.0),
) -> tuple[Tensor, Tensor]:
    """Returns the windows [start, stop) of tasks t (N,), integer or fractional: int64, each (N,).

    With slack d = C - C_beta, `linspace` (pseudo-code and official code) starts the window of task
    t at o_t = round(d s((t / (T - 1))^alpha)) and keeps its width C_beta. `eq4` is the text's
    Eq. 4: from round(d s((t / T)^alpha)) to round(d s(((t + 1) / T)^alpha)) + C_beta, one channel
    wider where the window moves. s runs linearly through the knots, which are equally spaced over
    [0, 1]; with (0, 1), as in DTR, s(x) = x. Offsets are float64 (float32 on MPS, which has no
    other), halves round to even.
    """
    if not (math.isfinite(alpha) and alpha > 0):
        raise UserError(f"alpha must be a positive finite number; got {alpha}")
    steps = list(pairwise(knots))
    if not steps or not all(0 <= low <= high <= 1 for low, high in steps):
        raise UserError(
            f"knots must be two or more numbers in [0, 1], none below the one before; got {knots}"
        )
    active = active_channels(channels, beta)
    slack = channels - active
    t = t.to(torch.float32 if t.device.type == "mps" else torch.float64)

    def offset(time: Tensor) -> Tensor:
        x = time**alpha * len(steps)
        shift = torch.zeros_like(x)
        for i, (low, high) in enumerate(steps):
            shift = shift + (high - low) * (x - i).clamp(0, 1)
        return ((knots[0] + shift) * slack).round().long()

    match formula:
        case "linspace":
            start = offset(t / max(tasks - 1, 1))
            return start, start + active
        case "eq4":
            return offset(t / tasks), offset((t + 1) / tasks) + active
        case _:
            raise choices("DTR formula", formula, ("linspace", "eq4"))


def dtr(
    tasks: int,
    channels: int,
    alpha: float = 4.0,
    beta: float = 0.8,
    formula: Formula = "linspace",
) -> Tensor:
    """Returns DTR's sliding window: bool[tasks, channels] (Section 4.3; `bounds` has the formula).

    A larger alpha spends more of the shift on noisy tasks; beta = 1 is no routing.
    """
    return window(*bounds(torch.arange(tasks), tasks, channels, alpha, beta, formula), channels)


def free_window(
    tasks: int, channels: int, knots: Sequence[float], alpha: float = 1.0, beta: float = 0.8
) -> Tensor:
    """Returns a window of C_beta channels on any rising schedule: bool[tasks, channels].

    It starts at o_t = round(d s((t / (T - 1))^alpha)), s linear through the knots as in `bounds`.
    """
    t = torch.arange(tasks)
    return window(*bounds(t, tasks, channels, alpha, beta, knots=knots), channels)


def clusters_of_tasks(tasks: int, clusters: int) -> Tensor:
    """Returns the cluster floor(K t / T) of every task: int64[tasks], K contiguous equal parts."""
    if not 1 <= clusters <= tasks:
        raise UserError(f"clusters must lie in 1 to {tasks}, the number of tasks; got {clusters}")
    return torch.arange(tasks) * clusters // tasks


def cdtr(
    tasks: int, channels: int, alpha: float = 4.0, beta: float = 0.8, clusters: int = 8
) -> Tensor:
    """Returns clustered DTR: every cluster of tasks counts as one task (Appendix F).

    bool[tasks, channels] with the rows of DTR's table for T = K.
    """
    return dtr(clusters, channels, alpha, beta)[clusters_of_tasks(tasks, clusters)]


def ercdt(tasks: int, channels: int, clusters: int = 8) -> Tensor:
    """Returns explicit routing: half of the channels for all, the rest shared out (Appendix F).

    Of the second half, cluster i alone reads the segment from round(i C / 2 / K) to
    round((i + 1) C / 2 / K); an odd channel is shared. bool[tasks, channels].
    """
    cluster = clusters_of_tasks(tasks, clusters)
    half = channels // 2
    if clusters > half:
        raise UserError(
            f"{clusters} clusters are too many for {channels} channels, of which half are shared "
            f"out; valid: 1 to {half}"
        )
    shared = channels - half
    edges = torch.tensor([shared + round(i * half / clusters) for i in range(clusters + 1)])
    own = window(edges[cluster], edges[cluster + 1], channels)
    return own | (torch.arange(channels) < shared)


def random(
    tasks: int, channels: int, beta: float = 0.8, generator: Generator | None = None
) -> Tensor:
    """Returns R-TR's masks: C_beta channels, drawn anew for every task (Section 4.2).

    Rows of bool[tasks, channels] are independent and uniform over all subsets of that size.
    """
    scores = _scores(tasks, channels, generator)
    return _highest(scores, active_channels(channels, beta))


def weights_only(
    tasks: int,
    channels: int,
    alpha: float = 4.0,
    beta: float = 0.8,
    clusters: int = 8,
    generator: Generator | None = None,
) -> Tensor:
    """Returns random masks in which clusters own as many channels as DTR gives them.

    With o_i the offsets of DTR's table for T = K, cluster i owns a_i = o_i - o_{i-1} channels of a
    random pool of d, which all its tasks read and no other; each task fills up to C_beta with a
    random set of the C_beta channels outside the pool. bool[tasks, channels].
    """
    generator = generator or Generator().manual_seed(0)
    cluster = clusters_of_tasks(tasks, clusters)
    start, _ = bounds(torch.arange(clusters), clusters, channels, alpha, beta)
    own = start.diff(prepend=start.new_zeros(1))  # a_i
    owner = torch.full((channels,), -1)
    pool = torch.randperm(channels, generator=generator)[: int(own.sum())]
    owner[pool] = torch.arange(clusters).repeat_interleave(own)
    scores = _scores(tasks, channels, generator)
    mine = owner == cluster[:, None]
    scores = scores + 2 * mine.double() - 2 * ((owner >= 0) & ~mine).double()
    return _highest(scores, active_channels(channels, beta))


def mean_overlap(table: Tensor) -> float:
    """Returns the mean of |A_i and A_j| over tasks i != j of a table bool[tasks, channels].

    These are the channels that two tasks share on average (Appendix B); nan for a single task.
    """
    readers = table.sum(0, dtype=torch.float64)  # a channel of n tasks is shared by n (n - 1) pairs
    pairs = len(table) * (len(table) - 1)
    return float((readers * (readers - 1)).sum()) / pairs if pairs else math.nan


def core_size(tasks: int, channels: int, alpha: float = 4.0, beta: float = 0.8) -> int:
    """Returns the fewest channels k on for all tasks whose masks overlap as much as DTR's.

    With the other C_beta - k drawn at random from C - k, two tasks share k + (C_beta - k)^2 / (C -
    k) channels in expectation; DTR's mean is exceeded by less than one channel.
    """
    active = active_channels(channels, beta)
    wanted = mean_overlap(dtr(max(tasks, 2), channels, alpha, beta)) - 1e-9
    expected = (k + (active - k) ** 2 / max(channels - k, 1) for k in range(active + 1))
    return next(k for k, overlap in enumerate(expected) if overlap >= wanted)


def shared_core(
    tasks: int, channels: int, core: int, beta: float = 0.8, generator: Generator | None = None
) -> Tensor:
    """Returns masks of C_beta channels, of which the first `core` are on for all tasks.

    Every task fills up with a random set of the channels behind the core. bool[tasks, channels].
    """
    active = active_channels(channels, beta)
    if not 0 <= core <= active:
        raise UserError(f"a core of {core} channels is not valid; valid: 0 to {active} = C_beta")
    return _highest(_scores(tasks, channels, generator) + (torch.arange(channels) < core), active)


def cover(
    tasks: int, channels: int, beta: float = 0.8, generator: Generator | None = None
) -> Tensor:
    """Returns random masks of C_beta channels of which every channel is in one: MaxRoaming's start.

    Channel c is active for task c mod T; the rest of bool[tasks, channels] is random (Pascal et
    al., *Maximum Roaming Multi-Task Learning*, AAAI 2021).
    """
    active = active_channels(channels, beta)
    if tasks * active < channels:
        least = -(-channels // active)
        raise UserError(
            f"{tasks} masks of {active} cannot cover {channels} channels; "
            f"valid: clusters of at least {least}, or a larger beta"
        )
    diagonal = torch.arange(channels) % tasks == torch.arange(tasks)[:, None]
    return _highest(_scores(tasks, channels, generator) + diagonal, active)


def _scores(tasks: int, channels: int, generator: Generator | None) -> Tensor:
    generator = generator or Generator().manual_seed(0)
    return torch.rand(tasks, channels, generator=generator, dtype=torch.float64)


def _highest(scores: Tensor, active: int) -> Tensor:
    table = torch.zeros(scores.shape, dtype=torch.bool)
    return table.scatter_(1, scores.topk(active, dim=1).indices, True)


def period(table: Tensor) -> int | None:
    """Returns after how many tasks a table bool[tasks, channels] repeats itself, 16 times or more.

    None for one that does not, or is the same for all tasks.
    """
    tasks = len(table)
    if (table == table[0]).all():
        return None
    again = (table[1 : tasks // 16 + 1] == table[0]).all(1).nonzero().flatten() + 1
    return next((p for p in again.tolist() if table[p:].equal(table[:-p])), None)
