"""Noise schedules, and the tasks that a shortened diffusion keeps.

beta_t is the noise schedule here, not the router's share of active channels.
"""

__all__ = ["SCHEDULES", "cosine_betas", "linear_betas", "space"]

import math
from collections.abc import Sequence
from itertools import accumulate, islice, repeat

import torch
from torch import Tensor

from dtr_lightning.errors import UserError


def linear_betas(T: int) -> Tensor:
    """Returns betas float64[T], for T = 1000 from 1e-4 to 0.02, else times 1000 / T (DDPM 4)."""
    if T < 21:
        raise UserError(f"the linear schedule needs T of at least 21 (else beta >= 1); got {T}")
    return torch.linspace(0.1 / T, 20 / T, T, dtype=torch.float64)


def cosine_betas(T: int) -> Tensor:
    """Returns betas float64[T] of abar(u) = cos^2((u + .008)/1.008 pi/2), clipped (IDDPM 17)."""
    u = torch.arange(T + 1, dtype=torch.float64) / T
    abar = torch.cos((u + 0.008) / 1.008 * math.pi / 2).square()
    return (1 - abar[1:] / abar[:-1]).clamp(max=0.999)


SCHEDULES = {"cosine": cosine_betas, "linear": linear_betas}


def space(T: int, steps: int | str | Sequence[int]) -> list[int]:
    """Returns the ascending tasks that a shorter diffusion keeps of T (IDDPM Section 4).

    `steps` is a count (250 or "250": evenly from 0 to T - 1, rounded), a count for each of several
    equal sections ("10,15,20"), or "ddimN" (an integer stride from 0, DDIM Section 4.2). UserError
    if that cannot be had, or keeps fewer than two tasks, which leaves no posterior.
    """
    ddim = isinstance(steps, str) and steps.startswith("ddim")
    try:
        text = steps.removeprefix("ddim").split(",") if isinstance(steps, str) else steps
        counts = [int(count) for count in ([text] if isinstance(text, int) else text)]
    except (ValueError, TypeError):
        valid = '250 (evenly), "10,15,20" (sections), "ddim25" (integer stride)'
        raise UserError(f"unknown steps {steps!r}; valid: {valid}") from None
    if ddim:
        stride = -(-T // max(counts[0], 1))  # rounded up: no smaller one keeps so few
        kept = list(range(0, T, stride))
        if [len(kept)] != counts:
            near = [f"ddim{len(range(0, T, s))}" for s in (stride, stride - 1) if 0 < s < T]
            raise UserError(f"no integer stride makes {steps!r} of T = {T}; try {', '.join(near)}")
    else:
        kept = _sections(T, counts)
    if len(kept) < 2:
        raise UserError(f"steps {steps!r} keeps {len(kept)} of T = {T} tasks; 2 are the least")
    return kept


def _sections(T: int, counts: list[int]) -> list[int]:
    kept, start, least = [], 0, 0 if len(counts) > 1 else 2
    for i, count in enumerate(counts):
        size = T // len(counts) + (i < T % len(counts))
        if not 0 <= count <= size:
            raise UserError(f"cannot keep {count} of {size} tasks; valid: {least} to {size}")
        # a running sum, because its rounding error decides to which side a half falls
        stride = (size - 1) / (count - 1) if count > 1 else 1.0
        positions = accumulate(repeat(stride), initial=0.0)
        kept += [start + round(position) for position in islice(positions, count)]
        start += size
    return kept
