"""Loss weights: how the losses of single samples become one scalar.

Min-SNR and P2 weight the mse and not vb, and hold for every prediction: SNR-weighted losses of
x_0, eps and v are one loss up to the factors that `Process.loss_conversion` gives.
"""

__all__ = ["P2", "Constant", "LossWeight", "MinSNR"]

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dtr_lightning.diffusion import Process
from dtr_lightning.errors import UserError


class LossWeight(nn.Module, ABC):
    """Combines per-sample losses; a subclass is a choice of `--loss_weight` by its name.

    Constructor arguments are its hyperparameters; `bind` gives it the process once. Learned
    weights are parameters of it and trained with `optimizer_options` (AdamW's, such as lr).
    `strata` is the number of clusters that every batch has equally many samples of.
    """

    strata: int = 1

    optimizer_options: ClassVar[dict[str, Any]] = {}

    def bind(self, process: Process) -> None:
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


class _OfSNR(LossWeight):
    @abstractmethod
    def weight(self, t: Tensor) -> Tensor:
        """Returns the weight (N,) of the mse at tasks t (N,)."""

    def forward(self, mse: Tensor, vb: Tensor, t: Tensor) -> Tensor:
        """Returns the mean of the weighted mse plus vb."""
        return (self.weight(t) * mse + vb).mean()


class MinSNR(_OfSNR):
    """min(SNR, gamma) times the squared error of x_0 (Hang et al. 2023, Section 3.4).

    So the mse of eps has the weight min(SNR, gamma) / SNR, of x_0 min(SNR, gamma), of v
    min(SNR, gamma) / (SNR + 1).

    Args:
        gamma: the largest weight of x_0's error, > 0.
    """

    def __init__(self, gamma: float = 5.0) -> None:
        super().__init__()
        if not gamma > 0:
            raise UserError(f"gamma must be positive; got {gamma}")
        self.gamma = gamma

    def weight(self, t: Tensor) -> Tensor:
        """Returns the weight (N,) of the mse at tasks t (N,)."""
        snr, x0, _ = self.process.loss_conversion(t)
        return snr.clamp(max=self.gamma) * x0


class P2(_OfSNR):
    """The squared error of eps over (k + SNR)^gamma (Choi et al. 2022, Eq. 8), sample by sample.

    The official DTR code multiplies every sample's weight with every sample's error, which cancels
    the weighting over time; its published P2 column may come from that. Here a batch is the mean of
    its samples.

    Args:
        gamma: how strongly clean tasks are weighted down, 0 or more; 0: not at all.
        k: bounds the weight of noisy tasks by 1 / k^gamma, > 0.
    """

    def __init__(self, gamma: float = 1.0, k: float = 1.0) -> None:
        super().__init__()
        if not (0 <= gamma < float("inf") and 0 < k < float("inf")):
            raise UserError(f"P2 needs a finite gamma of 0 or more and k > 0; got {gamma}, {k}")
        self.gamma, self.k = gamma, k

    def weight(self, t: Tensor) -> Tensor:
        """Returns the weight (N,) of the mse at tasks t (N,)."""
        snr, _, eps = self.process.loss_conversion(t)
        return eps / (self.k + snr) ** self.gamma
