"""Samplers: from noise to images through a shortened diffusion; guidance; reproducible noise.

DDPM (Ho et al. 2020, Algorithm 2), DDIM (Song et al. 2021, Eq. 12 and 16), classifier-free guidance
(Ho & Salimans 2022, Eq. 6). The network, and so the router, always sees the original t.
"""

__all__ = ["DDIM", "DDPM", "IndexedNoise", "Sampler", "guided"]

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from dtr_lightning.diffusion import Diffusion, Prediction
from dtr_lightning.errors import UserError, choices


class Sampler(ABC):
    """Walks from x_T to x_0; a subclass is a choice of sampler by its name, and defines `step`.

    `steps` is what `diffusion.space` takes (250, "ddim25", ...). `clip` limits every predicted x_0
    to [-1, 1]: right for pixels, wrong for latents.
    """

    def __init__(self, steps: int | str, clip: bool = True) -> None:
        self.steps, self.clip = steps, clip

    @torch.no_grad()
    def __call__(
        self,
        model: Callable[[Tensor, Tensor], Tensor],
        x_T: Tensor,
        diffusion: Diffusion,
        noise: Callable[[], Tensor],
        progress: Callable[[], object] | None = None,
    ) -> Tensor:
        """Returns x_0 (N, C, H, W) from x_T ~ N(0, I).

        `model(x, t)` gives the output (N, C or 2C, H, W) for original timesteps t (N,); guidance is
        inside it. `noise()` (N, C, H, W) and `progress()` are called exactly once per step, the
        last one too, whether or not the step uses the noise.
        """
        short = diffusion.respaced(self.steps)
        x = x_T
        for i in reversed(range(len(short))):
            index = torch.full((len(x),), i, device=x.device)
            t = torch.full_like(index, short.timestep_map[i])
            prediction = short.p_mean_variance(model(x, t), x, index, self.clip)
            x = self.step(short, prediction, x, i, noise().to(x))
            if progress is not None:
                progress()
        return x

    @abstractmethod
    def step(
        self, diffusion: Diffusion, prediction: Prediction, x: Tensor, i: int, noise: Tensor
    ) -> Tensor:
        """Returns x_{i-1} from x = x_i; tensors (N, C, H, W), i an index of `diffusion`."""


class DDPM(Sampler):
    """Ancestral sampling from p(x_{t-1} | x_t); the last step returns the mean (Algorithm 2)."""

    def __init__(self, steps: int | str = 250, clip: bool = True) -> None:
        super().__init__(steps, clip)

    def step(
        self, diffusion: Diffusion, prediction: Prediction, x: Tensor, i: int, noise: Tensor
    ) -> Tensor:
        """Returns mean + std noise."""
        del diffusion, x
        if i == 0:
            return prediction.mean
        return prediction.mean + torch.exp(prediction.log_variance / 2) * noise


class DDIM(Sampler):
    """Implicit sampling: deterministic at eta = 0, ancestral-like at eta = 1 (Eq. 12)."""

    def __init__(self, steps: int | str = 25, eta: float = 0.0, clip: bool = True) -> None:
        super().__init__(steps, clip)
        if not 0 <= eta <= 1:
            raise UserError(f"eta must lie in [0, 1]; got {eta}")
        self.eta = eta

    def step(
        self, diffusion: Diffusion, prediction: Prediction, x: Tensor, i: int, noise: Tensor
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
        return prev.sqrt() * prediction.x0 + direction * eps + variance.sqrt() * noise


def guided(
    model: Callable[[Tensor, Tensor, Tensor], Tensor],
    scale: float,
    null: int,
    channels: Literal["all", "first3"] = "all",
) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Returns (x, t, y) -> output with eps_u + scale (eps_c - eps_u), one pass of 2N (CFG Eq. 6).

    `null` is the label that stands for none. DTR guides all latent channels, DiT the first three.
    Other channels, the variance's among them, are the conditional ones. Scale 1 is `model` itself.
    """
    if not math.isfinite(scale):
        raise UserError(f"the guidance scale must be finite; got {scale}")
    if channels not in ("all", "first3"):
        raise choices("guidance channels", channels, ("all", "first3"))
    if scale == 1:
        return model

    def guided_model(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        labels = torch.cat([y, torch.full_like(y, null)])
        output = model(torch.cat([x, x]), torch.cat([t, t]), labels).float()  # (2N, C or 2C, H, W)
        conditional, unconditional = output.chunk(2)
        g = x.shape[1] if channels == "all" else min(3, x.shape[1])
        eps_c, eps_u = conditional[:, :g], unconditional[:, :g]
        return torch.cat([eps_u + scale * (eps_c - eps_u), conditional[:, g:]], 1)

    return guided_model


class IndexedNoise:
    """Standard normal noise in which sample i depends on (seed, i) and the draw's number only.

    So a sample is the same in any batch and on any number of GPUs. The first draw is meant for x_T.
    """

    def __init__(self, seed: int, indices: Sequence[int], shape: Sequence[int]) -> None:
        self.shape = tuple(shape)
        self.generators = [
            torch.Generator().manual_seed(
                int(np.random.SeedSequence([seed, i]).generate_state(1, np.uint64)[0])
            )
            for i in indices
        ]

    def __call__(self) -> Tensor:
        """Returns the next draw, float32 (len(indices), *shape) on the CPU."""
        return torch.stack([torch.randn(self.shape, generator=g) for g in self.generators])
