"""Gaussian diffusion over T denoising tasks: posterior, learned variance, losses.

Equations are those of DDPM (Ho et al. 2020), IDDPM (Nichol & Dhariwal 2021) and DDIM (Song et al.
2021). With abar_t = prod_{s <= t} (1 - beta_s), task t denoises
x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps.
"""

__all__ = ["Diffusion", "Prediction"]

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from dtr_lightning.diffusion.process import LossConversion, Process
from dtr_lightning.diffusion.schedules import SCHEDULES, space
from dtr_lightning.errors import choices

Variance = Literal["learned_range", "fixed_large", "fixed_small"]
Predicted = Literal["eps", "x0", "v"]


class Prediction(NamedTuple):
    """p(x_{t-1} | x_t) = N(mean, variance) and the x_0 it rests on; every field (N, C, H, W)."""

    mean: Tensor
    variance: Tensor
    log_variance: Tensor
    x0: Tensor


class Diffusion(Process):
    """Gaussian diffusion over T denoising tasks; the network predicts eps (DDPM Section 3.2).

    With a learned variance the network's output has 2C channels, the prediction and v. The arrays
    (betas, alphas_cumprod, ..., snr) are float64[len(self)] on the CPU; the device's float32 tables
    are not part of the state_dict. Every t is an index in 0..len(self)-1; the network's own t is
    `timestep_map[t]`.

    Args:
        schedule: of the betas: cosine (IDDPM Eq. 17) or linear (DDPM Section 4; T of at least 21).
        T: number of denoising tasks, at least 2.
        variance: of p(x_{t-1} | x_t): fixed_large (beta_t), fixed_small (the posterior's), or
            learned_range (between both, IDDPM Eq. 15).
        prediction: what the network predicts: eps, x0, or v = sqrt(abar) eps - sqrt(1 - abar) x_0
            (Salimans & Ho 2022).
        tasks: [low, high): only these are trained, as by an expert (Appendix D); null: all.
    """

    def __init__(
        self,
        schedule: Literal["cosine", "linear"] = "cosine",
        T: int = 1000,
        variance: Variance = "learned_range",
        prediction: Predicted = "eps",
        tasks: tuple[int, int] | None = None,
    ) -> None:
        super().__init__(T, tasks)
        if schedule not in SCHEDULES:
            raise choices("schedule", schedule, SCHEDULES)
        if variance not in get_args(Variance):
            raise choices("variance", variance, get_args(Variance))
        if prediction not in get_args(Predicted):
            raise choices("prediction", prediction, get_args(Predicted))
        self.schedule, self.variance = schedule, variance
        self.prediction: Predicted = prediction
        self.learns_variance = variance == "learned_range"
        self._tabulate(SCHEDULES[schedule](T), list(range(T)))

    def _tabulate(self, betas: Tensor, timestep_map: list[int]) -> None:
        self.timestep_map = timestep_map
        self.betas = betas
        self.alphas_cumprod = abar = torch.cumprod(1 - betas, 0)
        self.alphas_cumprod_prev = prev = torch.cat([torch.ones_like(abar[:1]), abar[:-1]])
        self.snr = abar / (1 - abar)
        self.sqrt_alphas_cumprod = abar.sqrt()
        self.sqrt_one_minus_alphas_cumprod = (1 - abar).sqrt()
        self.sqrt_recip_alphas_cumprod = (1 / abar).sqrt()
        self.sqrt_recipm1_alphas_cumprod = (1 / abar - 1).sqrt()
        # q(x_{t-1} | x_t, x_0), DDPM Eq. 6-7; variance 0 at t = 0, whose log is then that of t = 1
        self.posterior_variance = betas * (1 - prev) / (1 - abar)
        clipped = torch.cat([self.posterior_variance[1:2], self.posterior_variance[1:]])
        self.posterior_log_variance_clipped = log_variance = clipped.log()
        self.posterior_mean_coef1 = betas * prev.sqrt() / (1 - abar)
        self.posterior_mean_coef2 = (1 - prev) * (1 - betas).sqrt() / (1 - abar)
        large = torch.cat([self.posterior_variance[1:2], betas[1:]])
        # true - predicted x_0 = miss (prediction - target), mean of q - mean of p = k (the same)
        miss = {
            "eps": self.sqrt_recipm1_alphas_cumprod,
            "x0": -torch.ones_like(abar),
            "v": self.sqrt_one_minus_alphas_cumprod,
        }[self.prediction]
        k = self.posterior_mean_coef1 * miss
        self.k_0, self.log_variance_0 = k[0].item(), log_variance[0].item()
        tables = {
            "q_table": (self.sqrt_alphas_cumprod, self.sqrt_one_minus_alphas_cumprod),
            "x0_table": (self.sqrt_recip_alphas_cumprod, self.sqrt_recipm1_alphas_cumprod),
            "mean_table": (self.posterior_mean_coef1, self.posterior_mean_coef2),
            "small_table": (self.posterior_variance, log_variance),
            "large_table": (large, large.log()),
            "kl_table": ((betas.log() - log_variance) / 2, k.square() / log_variance.exp()),
            "factor_table": (self.snr, miss.square(), miss.square() * self.snr),
        }
        for name, columns in tables.items():
            self.register_buffer(name, torch.stack(columns, 1).float(), persistent=False)

    def __len__(self) -> int:
        """Returns the number of steps: T, or fewer when respaced."""
        return len(self.timestep_map)

    def respaced(self, steps: int | str | Sequence[int]) -> "Diffusion":
        """Returns the diffusion over the tasks that `space` keeps."""
        return self.keeping(space(len(self), steps))

    def keeping(self, kept: Sequence[int]) -> "Diffusion":
        """Returns the diffusion over the tasks `kept`, ascending, with the same abar there.

        Its betas are 1 - abar_t / abar_prev(t) over the kept tasks (IDDPM Eq. 19).
        """
        abar = self.alphas_cumprod[kept]
        betas = 1 - abar / torch.cat([torch.ones_like(abar[:1]), abar[:-1]])
        short = Diffusion(self.schedule, self.T, self.variance, self.prediction)
        short._tabulate(betas, [self.timestep_map[t] for t in kept])
        return short.to(self.q_table.device)

    def timesteps(
        self, n: int, device: torch.device, tasks: tuple[int, int] | None = None
    ) -> Tensor:
        """Draws integer tasks (n,) of [low, high) uniformly from the global generator."""
        return torch.randint(*(tasks or self.tasks), (n,), device=device)

    def timesteps_at(self, u: Tensor) -> Tensor:
        """Returns the tasks int64 (n,) at the shares u (n,) in [0, 1) of the range."""
        low, high = self.tasks
        return (low + u * (high - low)).long()

    def loss_conversion(self, t: Tensor) -> LossConversion:
        """Returns SNR_t, |x_0 error|^2 and |eps error|^2 per |prediction's error|^2, each (N,)."""
        return LossConversion(*self.factor_table[t].unbind(1))

    def log_snr(self) -> Tensor:
        """Returns log SNR of all tasks, float64[T], decreasing."""
        return self.snr.log()

    def q_sample(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Returns x_t ~ q(x_t | x_0) for x0, noise (N, C, H, W) and t (N,) (DDPM Eq. 4)."""
        signal, sigma = _rows(self.q_table, t)
        return signal * x0 + sigma * noise

    def posterior(self, x0: Tensor, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns mean, variance, log variance (N, C, H, W) of q(x_{t-1} | x_t, x_0) (DDPM 6-7)."""
        coef1, coef2 = _rows(self.mean_table, t)
        mean = coef1 * x0 + coef2 * x_t
        variance, log_variance = (x.expand_as(mean) for x in _rows(self.small_table, t))
        return mean, variance, log_variance

    def p_mean_variance(
        self, output: Tensor, x_t: Tensor, t: Tensor, clip: bool = False
    ) -> Prediction:
        """Returns p(x_{t-1} | x_t) from the network's output (N, C or 2C, H, W) at x_t.

        The mean is the posterior's with the predicted x_0 in place of the truth, for eps
        x_0 = sqrt(1/abar) x_t - sqrt(1/abar - 1) eps (DDPM Eq. 9, 11); `clip` first limits that x_0
        to [-1, 1], the range of pixels.
        """
        x0, v = self._split(output, x_t)
        if self.prediction == "eps":
            a, b = _rows(self.x0_table, t)
            x0 = a * x_t - b * x0
        elif self.prediction == "v":
            signal, sigma = _rows(self.q_table, t)
            x0 = signal * x_t - sigma * x0
        if clip:
            x0 = x0.clamp(-1, 1)
        mean, variance, log_variance = self.posterior(x0, x_t, t)
        if v is not None:
            half_span, _ = _rows(self.kl_table, t)
            log_variance = log_variance + (v + 1) * half_span  # IDDPM Eq. 15
            variance = log_variance.exp()
        elif self.variance == "fixed_large":
            variance, log_variance = (x.expand_as(mean) for x in _rows(self.large_table, t))
        return Prediction(mean, variance, log_variance, x0)

    def losses(self, output: Tensor, x0: Tensor, t: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Returns per-sample mse (N,) and variational bound vb (N,) in bits per dimension.

        `output` (N, C or 2C, H, W) is the network's at x_t = q_sample(x0, t, noise); x_t itself
        cancels. vb is KL(q(x_{t-1} | x_t, x_0) || p), at t = 0 -log p(x_0 | x_1) (DDPM Eq. 5); it
        trains v only, its mean is detached (IDDPM Section 3.1). With a fixed variance it is 0.
        """
        predicted, v = self._split(output, noise)
        error = predicted - self._target(x0, t, noise)
        squared = error.square()
        mse = squared.mean((1, 2, 3))
        if v is None:
            return mse, torch.zeros_like(mse)
        # u = log of p's variance over q's; w error^2 = (mean of p - mean of q)^2 over q's variance
        half_span, w = _rows(self.kl_table, t)
        u = (v + 1) * half_span
        ratio = torch.exp(-u)
        # two times the KL in nats; the bracket keeps its precision where u is almost 0
        vb = (u + (ratio - 1) + ratio * (w * squared.detach())).mean((1, 2, 3)) / 2
        first = t == 0
        # Eagerly on a CPU a look at t is free and spares most batches the term, which costs more
        # than the rest; on a GPU it would wait for the device, and a compiled graph cannot branch.
        if torch.compiler.is_compiling() or not t.is_cpu or first.any():
            vb = torch.where(first, self._decoder_nll(x0, error.detach(), u, first), vb)
        return mse, vb / math.log(2)

    def _decoder_nll(self, x0: Tensor, error: Tensor, u: Tensor, first: Tensor) -> Tensor:
        # -log p(x_0 | x_1) of the discretised Gaussian in nats (DDPM Eq. 13), (N,): 256 bins of
        # width 2/255, the outermost open. Rows other than `first` get harmless, finite numbers.
        u = torch.where(first[:, None, None, None], u, 0)
        inverse_std = torch.exp(-(self.log_variance_0 + u) / 2)
        centred = self.k_0 * error  # x_0 - mean
        upper = torch.where(x0 > 0.999, 1, _normal_cdf((centred + 1 / 255) * inverse_std))
        lower = torch.where(x0 < -0.999, 0, _normal_cdf((centred - 1 / 255) * inverse_std))
        return -(upper - lower).clamp(min=1e-12).log().mean((1, 2, 3))

    def _target(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        if self.prediction == "v":
            signal, sigma = _rows(self.q_table, t)
            return signal * noise - sigma * x0
        return noise if self.prediction == "eps" else x0

    def _split(self, output: Tensor, x: Tensor) -> tuple[Tensor, Tensor | None]:
        assert output.shape[1] == (1 + self.learns_variance) * x.shape[1], output.shape
        output = output.float()  # under autocast a network may give bfloat16
        if not self.learns_variance:
            return output, None
        x0, v = output.chunk(2, 1)
        return x0, v


def _rows(table: Tensor, t: Tensor) -> tuple[Tensor, ...]:
    return table[t][:, :, None, None, None].unbind(1)  # each (N, 1, 1, 1)


def _normal_cdf(z: Tensor) -> Tensor:
    # Page's tanh approximation, to 3e-4, as every published likelihood of this model family has it
    return torch.sigmoid(2 * math.sqrt(2 / math.pi) * (z + 0.044715 * z**3))
