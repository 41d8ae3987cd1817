"""What every sampler is, classifier-free guidance, and reproducible noise.

The network, and so the router, always sees the original t.
"""

__all__ = ["IndexedNoise", "Model", "Sampler", "guided"]

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor

from dtr_lightning.diffusion import Process
from dtr_lightning.errors import UserError, choices
from dtr_lightning.seeds import seed_of

Model = Callable[[Tensor, Tensor], Tensor]  # x (N, C, H, W), original t (N,) -> output


class Sampler(ABC):
    """Walks from noise to images; a subclass is a choice of `--sampler` by its name.

    `walks` is the kind of process that it fits.
    """

    walks: ClassVar[type[Process]]
    clip: bool | None  # of samplers that have the option; None: where the codec is bounded

    def check(self, process: Process) -> None:
        """Raises UserError if this is no sampler of the process."""
        if not isinstance(process, self.walks):
            fitting = (c for c in _concrete(Sampler) if isinstance(process, c.walks))
            valid = sorted(c.__name__ for c in fitting)
            raise choices(f"sampler of {type(process).__name__}", type(self).__name__, valid)

    @abstractmethod
    def evaluations(self, process: Process) -> int:
        """Returns how often the network is asked; UserError for steps that cannot be had."""

    @abstractmethod
    def __call__(
        self,
        model: Model,
        x_T: Tensor,
        process: Process,
        noise: Callable[[], Tensor],
        progress: Callable[[], object] = lambda: None,
    ) -> Tensor:
        """Returns x_0 (N, C, H, W) from x_T ~ N(0, I).

        `model(x, t)` gives the output (N, C or 2C, H, W) for original timesteps t (N,); guidance is
        inside it. `noise()` (N, C, H, W) is called by the steps that add noise; `progress()` once
        per evaluation.
        """


def _concrete(base: type[Sampler]) -> list[type[Sampler]]:
    own = [] if inspect.isabstract(base) else [base]
    return own + [c for subclass in base.__subclasses__() for c in _concrete(subclass)]


def guided(
    model: Callable[[Tensor, Tensor, Tensor], Tensor],
    scale: float,
    null: Callable[[Tensor], Tensor],
    channels: Literal["all", "first3"] = "all",
) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Returns (x, t, y) -> output with eps_u + scale (eps_c - eps_u), one pass of 2N (CFG Eq. 6).

    `null(y)` is the condition that stands for none, shaped like y. DTR guides all latent channels,
    DiT the first three. Other channels, the variance's among them, are the conditional ones. Scale
    1 is `model` itself.
    """
    if not math.isfinite(scale):
        raise UserError(f"the guidance scale must be finite; got {scale}")
    if channels not in ("all", "first3"):
        raise choices("guidance channels", channels, ("all", "first3"))
    if scale == 1:
        return model

    def guided_model(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        labels = torch.cat([y, null(y)])
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
        self.generators = [torch.Generator().manual_seed(seed_of(seed, i)) for i in indices]

    def __call__(self) -> Tensor:
        """Returns the next draw, float32 (len(indices), *shape) on the CPU."""
        return torch.stack([torch.randn(self.shape, generator=g) for g in self.generators])
