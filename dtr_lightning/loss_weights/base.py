"""What a loss weight is: how the losses of single samples become one scalar."""

__all__ = ["Constant", "LossWeight"]

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dtr_lightning.diffusion import Process


class LossWeight(nn.Module, ABC):
    """Combines per-sample losses; a subclass is a choice of `--loss_weight` by its name.

    Constructor arguments are its hyperparameters; `build` gives it the process once. Learned
    weights are parameters of it and trained with `optimizer_options` (AdamW's, such as lr).
    """

    optimizer_options: ClassVar[dict[str, Any]] = {}

    def build(self, process: Process) -> None:
        """Takes the process, which draws tasks and knows their signal-to-noise ratio."""
        self.process = process

    def check(self, n: int) -> None:
        """Raises UserError if a batch of n samples (of one process) is too small."""

    def timesteps(self, n: int, device: torch.device) -> Tensor:
        """Draws the tasks t (n,) of a batch from the global generator, uniformly by default."""
        return self.process.timesteps(n, device)

    @abstractmethod
    def forward(self, mse: Tensor, vb: Tensor, t: Tensor) -> Tensor:
        """Returns the scalar loss of per-sample mse and variational bound vb at t, all (N,)."""


class Constant(LossWeight):
    """All tasks count alike: the mean of mse + vb (IDDPM's hybrid loss, Eq. 16)."""

    def forward(self, mse: Tensor, vb: Tensor, t: Tensor) -> Tensor:
        """Returns the mean over the batch."""
        return (mse + vb).mean()
