"""What every process of corruption has in common: T denoising tasks from clean to noise."""

__all__ = ["LossConversion", "Process"]

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dtr_lightning.errors import UserError


class LossConversion(NamedTuple):
    """What turns a squared error of the prediction into one of x_0 or eps; each (N,)."""

    snr: Tensor
    x0: Tensor
    eps: Tensor


class Process(nn.Module, ABC):
    """Corrupts images, task by task; a subclass is a choice of `--diffusion` by its name.

    t = 0 is the cleanest of the T tasks, T - 1 the noisiest; where time is continuous t is
    fractional in [0, T - 1], and tau = t / (T - 1). Training draws from the tasks of
    [tasks[0], tasks[1]) only: all by default, one range for an expert (Appendix D).
    """

    learns_variance: bool = False  # whether the output carries v beside eps: 2C channels, not C
    prediction: str

    def __init__(self, T: int, tasks: tuple[int, int] | None) -> None:
        super().__init__()
        if T < 2:
            raise UserError(f"T must be at least 2; got {T}")
        low, high = tasks or (0, T)
        if not 0 <= low < high <= T:
            raise UserError(
                f"diffusion.tasks must be [low, high] with 0 <= low < high <= T = {T}; "
                f"got [{low}, {high}]"
            )
        self.T, self.tasks = T, (low, high)

    @abstractmethod
    def timesteps(
        self, n: int, device: torch.device, tasks: tuple[int, int] | None = None
    ) -> Tensor:
        """Draws tasks (n,) of [low, high) uniformly from the global generator."""

    @abstractmethod
    def timesteps_at(self, u: Tensor) -> Tensor:
        """Returns the tasks (n,) at the shares u (n,) in [0, 1) of the range that is trained."""

    @abstractmethod
    def q_sample(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Returns x_t for x0, noise (N, C, H, W) and t (N,)."""

    @abstractmethod
    def losses(self, output: Tensor, x0: Tensor, t: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Returns per-sample mse and variational bound (N,) of the network's output at x_t."""

    @abstractmethod
    def loss_conversion(self, t: Tensor) -> LossConversion:
        """Returns the signal-to-noise ratio at t (N,), and the factors from mse to x_0 and eps."""

    @abstractmethod
    def log_snr(self) -> Tensor:
        """Returns log SNR of the T tasks, float64[T], finite and decreasing."""
