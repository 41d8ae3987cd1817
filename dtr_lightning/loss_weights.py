"""Loss weights: how the losses of single samples become one scalar."""

__all__ = ["Constant", "LossWeight", "MinSNR"]

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dtr_lightning.diffusion import Diffusion
from dtr_lightning.errors import UserError


class LossWeight(nn.Module, ABC):
    """Combines per-sample losses; a subclass is a choice of `--loss_weight` by its name.

    Constructor arguments are its hyperparameters; `build` gives it the diffusion once. Learned
    weights are parameters of it and trained with `optimizer_options` (AdamW's, such as lr).
    """

    optimizer_options: ClassVar[dict[str, Any]] = {}

    def build(self, diffusion: Diffusion) -> None:
        """Takes what depends on the noise schedule, such as the signal-to-noise ratio."""

    def timesteps(self, n: int, tasks: int, device: torch.device) -> Tensor:
        """Draws the tasks t (n,) of a batch from the global generator, uniformly by default."""
        return torch.randint(tasks, (n,), device=device)

    @abstractmethod
    def forward(self, mse: Tensor, vb: Tensor, t: Tensor) -> Tensor:
        """Returns the scalar loss of per-sample mse and variational bound vb at t, all (N,)."""


class Constant(LossWeight):
    """All tasks count alike: the mean of mse + vb (IDDPM's hybrid loss, Eq. 16)."""

    def forward(self, mse: Tensor, vb: Tensor, t: Tensor) -> Tensor:
        """Returns the mean over the batch."""
        return (mse + vb).mean()


class MinSNR(LossWeight):
    """Weights the mse by min(SNR_t, gamma) / SNR_t, and not vb (Hang et al. 2023, Section 3.4)."""

    def __init__(self, gamma: float = 5.0) -> None:
        super().__init__()
        if not gamma > 0:
            raise UserError(f"gamma must be positive; got {gamma}")
        self.gamma = gamma

    def build(self, diffusion: Diffusion) -> None:
        """Tabulates the weight of every task."""
        weight = diffusion.snr.clamp(max=self.gamma) / diffusion.snr
        self.register_buffer("weight", weight.float(), persistent=False)

    def forward(self, mse: Tensor, vb: Tensor, t: Tensor) -> Tensor:
        """Returns the mean of the weighted mse plus vb."""
        return (self.weight[t] * mse + vb).mean()
