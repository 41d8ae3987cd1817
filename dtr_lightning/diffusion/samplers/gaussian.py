"""Samplers of Gaussian diffusion through a shortened chain: DDPM, DDIM, DPM-Solver++.

DDPM (Ho et al. 2020, Algorithm 2), DDIM (Song et al. 2021, Eq. 12 and 16), DPM-Solver++(2M) (Lu et
al. 2022, Algorithm 2).
"""

__all__ = ["DDIM", "DDPM", "DPMSolver", "GaussianSampler"]

import math
from abc import abstractmethod
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from dtr_lightning.diffusion import Diffusion, Prediction
from dtr_lightning.diffusion.samplers.base import Model, Sampler
from dtr_lightning.errors import UserError, choices


class GaussianSampler(Sampler):
    """Walks from x_T to x_0, one kept task after the other; a subclass defines `step`.

    Args:
        steps: tasks that are visited, 2 to T: a number (evenly), "10,15,20" (of equal sections), or
            "ddim25" (an integer stride).
        clip: whether every predicted x_0 is limited to [-1, 1]; null: of pixels, not of latents.
    """

    walks = Diffusion

    def __init__(self, steps: int | str, clip: bool | None = None) -> None:
        self.steps, self.clip = steps, clip

    def evaluations(self, process: Diffusion) -> int:
        """Returns the number of steps."""
        return len(self.shorten(process))

    def shorten(self, process: Diffusion) -> Diffusion:
        """Returns the diffusion over the tasks that are visited."""
        return process.respaced(self.steps)

    @torch.no_grad()
    def __call__(
        self,
        model: Model,
        x_T: Tensor,
        process: Diffusion,
        noise: Callable[[], Tensor],
        progress: Callable[[], object] = lambda: None,
    ) -> Tensor:
        """Returns x_0 (N, C, H, W) from x_T ~ N(0, I)."""
        short = self.shorten(process)
        x, previous = x_T, None
        for i in reversed(range(len(short))):
            index = torch.full((len(x),), i, device=x.device)
            t = torch.full_like(index, short.timestep_map[i])
            prediction = short.p_mean_variance(model(x, t), x, index, self.clip is not False)
            x = self.step(short, prediction, x, i, noise, previous)
            previous = prediction
            progress()
        return x

    @abstractmethod
    def step(
        self,
        diffusion: Diffusion,
        prediction: Prediction,
        x: Tensor,
        i: int,
        noise: Callable[[], Tensor],
        previous: Prediction | None = None,
    ) -> Tensor:
        """Returns x_{i-1} from x = x_i; tensors (N, C, H, W), i an index of `diffusion`.

        `noise()` draws (N, C, H, W) where the step needs it; `previous` is the prediction at i + 1,
        None at the first step.
        """


class DDPM(GaussianSampler):
    """Ancestral sampling from p(x_{t-1} | x_t); the last step returns the mean (Algorithm 2)."""

    def __init__(self, steps: int | str = 250, clip: bool | None = None) -> None:
        super().__init__(steps, clip)

    def step(
        self,
        diffusion: Diffusion,
        prediction: Prediction,
        x: Tensor,
        i: int,
        noise: Callable[[], Tensor],
        previous: Prediction | None = None,
    ) -> Tensor:
        """Returns mean + std noise."""
        del diffusion, previous
        if i == 0:
            return prediction.mean
        return prediction.mean + torch.exp(prediction.log_variance / 2) * noise().to(x)


class DDIM(GaussianSampler):
    """Implicit sampling: deterministic at eta = 0, ancestral-like at eta = 1 (Eq. 12).

    Args:
        eta: share of DDPM's noise, in [0, 1].
    """

    def __init__(self, steps: int | str = 25, eta: float = 0.0, clip: bool | None = None) -> None:
        super().__init__(steps, clip)
        if not 0 <= eta <= 1:
            raise UserError(f"eta must lie in [0, 1]; got {eta}")
        self.eta = eta

    def step(
        self,
        diffusion: Diffusion,
        prediction: Prediction,
        x: Tensor,
        i: int,
        noise: Callable[[], Tensor],
        previous: Prediction | None = None,
    ) -> Tensor:
        """Returns sqrt(abar') x_0 + sqrt(1 - abar' - sigma^2) eps + sigma noise."""
        # float32 scalars make the published step, which is up to 5e-5 off at t = 1
        abar = diffusion.alphas_cumprod[i].float()
        prev = diffusion.alphas_cumprod_prev[i].float()
        recip, recipm1 = diffusion.x0_table[i]
        # not the network's own eps: x_0 and eps must still add up to x when x_0 was clipped
        eps = (recip * x - prediction.x0) / recipm1
        variance = self.eta**2 * (1 - prev) / (1 - abar) * (1 - abar / prev)  # Eq. 16; 0 at i = 0
        direction = torch.sqrt(1 - prev - variance)
        mean = prev.sqrt() * prediction.x0 + direction * eps
        return mean + variance.sqrt() * noise().to(x) if variance > 0 else mean


class DPMSolver(GaussianSampler):
    """DPM-Solver++(2M): second-order multistep solver of the probability flow ODE in lambda.

    lambda = log(sqrt(abar) / sqrt(1 - abar)). The first step has no predecessor and is of first
    order, and so are the last two: where sigma vanishes lambda takes large strides.

    Args:
        spacing: steps even in t, or a number of steps even in lambda (log_snr), rounded to tasks.
    """

    def __init__(
        self,
        steps: int | str = 15,
        spacing: Literal["t", "log_snr"] = "t",
        clip: bool | None = None,
    ) -> None:
        super().__init__(steps, clip)
        if spacing not in ("t", "log_snr"):
            raise choices("spacing", spacing, ("t", "log_snr"))
        if spacing == "log_snr" and not str(steps).isdecimal():
            raise UserError(f"spacing log_snr needs a plain number of steps; got {steps!r}")
        self.spacing = spacing

    def shorten(self, process: Diffusion) -> Diffusion:
        """Returns the diffusion over the tasks that are visited."""
        if self.spacing == "t":
            return super().shorten(process)
        if not 2 <= int(self.steps) <= process.T:
            raise UserError(f"sampler.steps must lie in 2..T = {process.T}; got {self.steps}")
        log_snr = process.log_snr()
        wanted = torch.linspace(log_snr[0], log_snr[-1], int(self.steps), dtype=log_snr.dtype)
        nearest = (log_snr - wanted[:, None]).abs().argmin(1)
        return process.keeping(nearest.unique().tolist())

    def step(
        self,
        diffusion: Diffusion,
        prediction: Prediction,
        x: Tensor,
        i: int,
        noise: Callable[[], Tensor],
        previous: Prediction | None = None,
    ) -> Tensor:
        """Returns sigma'/sigma x - sqrt(abar') (exp(-h) - 1) D (Algorithm 2)."""
        del noise
        if i == 0:
            return prediction.x0
        half_log_snr = diffusion.snr.log() / 2  # lambda
        h = (half_log_snr[i - 1] - half_log_snr[i]).item()
        data = prediction.x0
        if previous is not None and i > 1:
            r = (half_log_snr[i] - half_log_snr[i + 1]).item() / h
            data = data + (data - previous.x0) / (2 * r)
        signal = diffusion.sqrt_alphas_cumprod[i - 1].item()
        sigma = diffusion.sqrt_one_minus_alphas_cumprod
        return (sigma[i - 1] / sigma[i]).item() * x - signal * math.expm1(-h) * data
