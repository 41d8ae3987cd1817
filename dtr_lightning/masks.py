"""Routing masks: which channels each denoising task may read.

Every function returns a table bool[tasks, channels] whose row t is the mask m_t of task t (t = 0 is
the cleanest). Section 4 and Appendix F of Park et al., *Denoising Task Routing for Diffusion
Models*, ICLR 2024.
"""

__all__ = ["active_channels", "dtr", "random", "window"]

import math
from typing import Literal

import torch
from torch import Tensor

from dtr_lightning.errors import UserError, choices


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
    """Returns the table whose row t is active on channels [start_t, stop_t), both int64[tasks]."""
    c = torch.arange(channels)
    return (c >= start[:, None]) & (c < stop[:, None])  # (tasks, channels)


def dtr(
    tasks: int,
    channels: int,
    alpha: float = 4.0,
    beta: float = 0.8,
    formula: Literal["linspace", "eq4"] = "linspace",
) -> Tensor:
    """Returns DTR's sliding window: bool[tasks, channels].

    With slack d = C - C_beta, `linspace` (pseudo-code and official code) starts the window of task
    t at o_t = round(d (t / (T - 1))^alpha) and keeps its width C_beta. `eq4` is the text's Eq. 4:
    from round(d (t / T)^alpha) to round(d ((t + 1) / T)^alpha) + C_beta, one channel wider where
    the window moves. Offsets are float64, halves round to even. A larger alpha spends more of the
    shift on noisy tasks; beta = 1 is no routing.
    """
    if not (math.isfinite(alpha) and alpha > 0):
        raise UserError(f"alpha must be a positive finite number; got {alpha}")
    active = active_channels(channels, beta)
    slack = channels - active

    def offset(time: Tensor) -> Tensor:
        return (time**alpha * slack).round().long()

    t = torch.arange(tasks, dtype=torch.float64)
    match formula:
        case "linspace":
            start = offset(t / max(tasks - 1, 1))
            return window(start, start + active, channels)
        case "eq4":
            return window(offset(t / tasks), offset((t + 1) / tasks) + active, channels)
        case _:
            raise choices("DTR formula", formula, ("linspace", "eq4"))


def random(
    tasks: int, channels: int, beta: float = 0.8, generator: torch.Generator | None = None
) -> Tensor:
    """Returns R-TR's masks: C_beta channels, drawn anew for every task (Section 4.2).

    Rows are independent and uniform over all subsets of that size. Without a generator the seed
    is 0; the global random state is never touched.
    """
    active = active_channels(channels, beta)
    generator = generator or torch.Generator().manual_seed(0)
    scores = torch.rand(tasks, channels, generator=generator, dtype=torch.float64)
    table = torch.zeros(tasks, channels, dtype=torch.bool)
    return table.scatter_(1, scores.topk(active, dim=1).indices, True)
