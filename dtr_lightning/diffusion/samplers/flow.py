"""Samplers of flow matching: Euler and Heun steps through the velocity field."""

__all__ = ["Euler", "Heun"]

from abc import abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from dtr_lightning.diffusion import FlowMatching
from dtr_lightning.diffusion.samplers.base import Model, Sampler
from dtr_lightning.errors import UserError

Velocity = Callable[[Tensor, float], Tensor]


class FlowSampler(Sampler):
    """Integrates dx/dtau = velocity from tau = 1 (noise) to 0 in equal steps.

    Args:
        steps: number of equal steps, at least 1.
        clip: whether the x_0 that a velocity points at is limited to [-1, 1]; null: of pixels, not
            of latents.
    """

    walks = FlowMatching

    def __init__(self, steps: int, clip: bool | None = None) -> None:
        if steps < 1:
            raise UserError(f"sampler.steps must be at least 1; got {steps}")
        self.steps, self.clip = steps, clip

    @torch.no_grad()
    def __call__(
        self,
        model: Model,
        x_T: Tensor,
        process: FlowMatching,
        noise: Callable[[], Tensor],
        progress: Callable[[], object] = lambda: None,
    ) -> Tensor:
        """Returns x_0 (N, C, H, W) from x_T ~ N(0, I)."""

        def velocity(x: Tensor, tau: float) -> Tensor:
            t = torch.full((len(x),), tau * (process.T - 1), device=x.device)
            v = model(x, t).float()
            progress()
            return (x - (x - tau * v).clamp(-1, 1)) / tau if self.clip is not False else v

        x = x_T
        for i in reversed(range(self.steps)):
            x = self.step(velocity, x, (i + 1) / self.steps, i / self.steps)
        return x

    @abstractmethod
    def step(self, velocity: Velocity, x: Tensor, tau: float, next_tau: float) -> Tensor:
        """Returns x at next_tau < tau from x (N, C, H, W) at tau."""


class Euler(FlowSampler):
    """First order: one evaluation a step."""

    def __init__(self, steps: int = 50, clip: bool | None = None) -> None:
        super().__init__(steps, clip)

    def evaluations(self, process: FlowMatching) -> int:
        """Returns the number of steps."""
        return self.steps

    def step(self, velocity: Velocity, x: Tensor, tau: float, next_tau: float) -> Tensor:
        """Returns x - (tau - tau') v."""
        return x + (next_tau - tau) * velocity(x, tau)


class Heun(FlowSampler):
    """Second order: two evaluations a step, one in the last, which ends at the data."""

    def __init__(self, steps: int = 25, clip: bool | None = None) -> None:
        super().__init__(steps, clip)

    def evaluations(self, process: FlowMatching) -> int:
        """Returns 2 steps - 1."""
        return 2 * self.steps - 1

    def step(self, velocity: Velocity, x: Tensor, tau: float, next_tau: float) -> Tensor:
        """Returns x - (tau - tau') times the mean velocity of both ends."""
        v = velocity(x, tau)
        proposal = x + (next_tau - tau) * v
        if next_tau == 0:
            return proposal
        return x + (next_tau - tau) * (v + velocity(proposal, next_tau)) / 2
