"""Flow matching (Lipman et al. 2023; the linear path of SiT, Ma et al. 2024)."""

__all__ = ["FlowMatching"]

import torch
from torch import Tensor

from dtr_lightning.diffusion.process import LossConversion, Process


class FlowMatching(Process):
    """Linear path x = (1 - tau) x_0 + tau eps; the network predicts the velocity eps - x_0.

    Time is continuous and in the suite's direction, tau = 0 clean (that of SiT's code is the
    reverse). The network and the routers see t = tau (T - 1), so that T = 1000 tasks mean the same
    as in a diffusion. There is no variance to learn, hence no bound vb.

    Args:
        T: number of denoising tasks, at least 2.
        tasks: [low, high): only these are trained, as by an expert (Appendix D); null: all.
    """

    prediction = "velocity"

    def __init__(self, T: int = 1000, tasks: tuple[int, int] | None = None) -> None:
        super().__init__(T, tasks)

    def timesteps(
        self, n: int, device: torch.device, tasks: tuple[int, int] | None = None
    ) -> Tensor:
        """Draws fractional tasks (n,) of [low, high) uniformly from the global generator."""
        return self._within(torch.rand(n, device=device), tasks or self.tasks)

    def timesteps_at(self, u: Tensor) -> Tensor:
        """Returns the fractional tasks float32 (n,) at the shares u (n,) in [0, 1) of the range."""
        return self._within(u.float(), self.tasks)

    def tau(self, t: Tensor) -> Tensor:
        """Returns continuous time (N,) in [0, 1] of tasks t (N,)."""
        return t / (self.T - 1)

    def q_sample(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Returns (1 - tau) x_0 + tau eps for x0, noise (N, C, H, W) and t (N,)."""
        return torch.lerp(x0, noise, self.tau(t)[:, None, None, None])

    def losses(self, output: Tensor, x0: Tensor, t: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Returns per-sample mse (N,) of the velocity, and zeros (N,) for the bound."""
        mse = (output.float() - (noise - x0)).square().mean((1, 2, 3))
        return mse, torch.zeros_like(mse)

    def loss_conversion(self, t: Tensor) -> LossConversion:
        """Returns ((1 - tau) / tau)^2 (inf at tau = 0), tau^2 and (1 - tau)^2, each (N,)."""
        tau = self.tau(t)
        return LossConversion(((1 - tau) / tau).square(), tau.square(), (1 - tau).square())

    def log_snr(self) -> Tensor:
        """Returns log SNR in the middle of T equal parts of [0, 1], float64[T]."""
        tau = (torch.arange(self.T, dtype=torch.float64) + 0.5) / self.T
        return 2 * ((1 - tau) / tau).log()

    def _within(self, u: Tensor, tasks: tuple[int, int]) -> Tensor:
        low, high = tasks
        return low + u * (min(high, self.T - 1) - low)
