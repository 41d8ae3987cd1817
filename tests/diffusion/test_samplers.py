"""Samplers: equal to the reference loops, and right on data whose denoiser is known."""

import inspect
import math
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from dtr_lightning.diffusion import Diffusion
from dtr_lightning.diffusion.samplers import DDIM, DDPM, GaussianSampler, IndexedNoise
from dtr_lightning.errors import UserError

GOLDEN = Path(__file__).parent.parent / "golden" / "diffusion"
SAMPLERS = GaussianSampler.__subclasses__()


def golden(name: str) -> dict[str, Tensor]:
    with np.load(GOLDEN / f"{name}.npz") as arrays:
        return {key: torch.from_numpy(arrays[key]) for key in arrays}


def replay(noises: Iterable[Tensor]) -> Callable[[], Tensor]:
    return iter(noises).__next__


def column(array: Tensor, t: Tensor) -> Tensor:
    return array[t].float()[:, None, None, None]  # (N, 1, 1, 1)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize(
    ("name", "sampler"),
    [("ddpm_step", DDPM())] + [(f"ddim_step_eta{e}", DDIM(eta=e)) for e in (0.0, 0.5, 1.0)],
)
def test_single_steps_equal_golden(schedule, name, sampler):
    g = golden(f"terms_{schedule}")
    diffusion = Diffusion(schedule)
    for clip in (False, True):
        expected = g[f"{name}_clip{clip:d}"]
        for row, i in enumerate(g["t"].tolist()):
            output, x, t, noise = (
                g[key][row : row + 1] for key in ("model_output", "x_t", "t", "step_noise")
            )
            prediction = diffusion.p_mean_variance(output, x, t, clip)
            actual = sampler.step(diffusion, prediction, x, i, replay([noise]))[0]
            assert (actual - expected[row]).abs().max() <= 1e-5 * expected[row].abs().max()


@pytest.mark.parametrize("loop", ["loop_linear10", "loop_cosine10_clip"])
@pytest.mark.parametrize(
    ("name", "variance", "sampler"),
    [
        ("ddpm", "learned_range", DDPM),
        ("ddpm_fixedlarge", "fixed_large", DDPM),
        ("ddpm_fixedsmall", "fixed_small", DDPM),
        ("ddim_eta0.0", "learned_range", DDIM),
        ("ddim_eta0.5", "fixed_large", lambda **options: DDIM(eta=0.5, **options)),
    ],
)
def test_whole_loops_equal_golden(loop, name, variance, sampler):
    g = golden(loop)
    clip = loop.endswith("clip")
    diffusion = Diffusion(loop.split("10")[0].removeprefix("loop_"), variance=variance)
    path, times = [], []

    def model(x: Tensor, t: Tensor) -> Tensor:
        path.append(x)
        times.append(t[0].item())
        phase = t[:, None, None, None] / 100
        if clip:
            eps, v = 0.3 * x * torch.sin(phase) + 0.1, 0.1 * x
        else:
            signal = column(diffusion.alphas_cumprod.sqrt(), t)
            sigma = column((1 - diffusion.alphas_cumprod).sqrt(), t)
            eps, v = sigma * x + 0.3 * signal * torch.sin(3 * x + phase), torch.sin(x)
        return torch.cat([eps, v], 1) if diffusion.learns_variance else eps

    x_0 = sampler(steps=10, clip=clip)(model, g["x_T"], diffusion, replay(g["noises"]))
    assert times == g["timestep_map"].tolist()[::-1]
    torch.testing.assert_close(
        torch.stack([*path[1:], x_0]), g[f"{name}_samples"], rtol=2e-5, atol=2e-5
    )


def oracle(diffusion: Diffusion, mu: float, s: float) -> Callable[[Tensor, Tensor], Tensor]:
    """E[eps | x_t] for data N(mu, s^2): linear in x."""

    def model(x: Tensor, t: Tensor) -> Tensor:
        abar = column(diffusion.alphas_cumprod, t)
        return (1 - abar).sqrt() * (x - abar.sqrt() * mu) / (abar * s**2 + 1 - abar)

    return model


def moments(
    sampler: GaussianSampler,
    model: Callable[[Tensor, Tensor], Tensor],
    diffusion: Diffusion,
    mu_s: tuple,
) -> tuple[float, float]:
    """Exact mean and variance of the samples of a linear model: one response per unit of noise.

    Row 0 answers to no noise at all, row 1 to x_T, row 2 + j to the noise of step j.
    """
    steps = len(diffusion.respaced(sampler.steps))
    inputs = torch.eye(steps + 2)[:, 1:].T[:, :, None, None, None]  # (1 + steps, rows, 1, 1, 1)
    x_0 = sampler(model, inputs[0], diffusion, replay(inputs[1:])).flatten().double()
    response = x_0[1:] - x_0[0]
    mu, s = mu_s
    abar = diffusion.alphas_cumprod[-1].item()
    mean = x_0[0] + response[0] * math.sqrt(abar) * mu
    variance = response[0] ** 2 * (abar * s**2 + 1 - abar) + response[1:].square().sum()
    return mean.item(), variance.item()


@pytest.mark.parametrize("steps", [2, 7, 40])
def test_ddpm_with_the_true_variance_is_exact_at_any_number_of_steps(steps):
    """For Gaussian data p(x_{t-1} | x_t) is Gaussian; its variance lies in the learned range."""
    mu, s = 0.4, 0.6
    diffusion = Diffusion("linear")
    short = diffusion.respaced(steps)
    abar = short.alphas_cumprod
    unexplained = s**2 * (1 - abar) / (abar * s**2 + 1 - abar)  # Var(x_0 | x_t)
    true = short.posterior_variance + short.posterior_mean_coef1**2 * unexplained
    low, high = short.posterior_log_variance_clipped, short.betas.log()
    v = torch.zeros(1000, dtype=torch.float64)
    v[short.timestep_map] = 2 * (true.log() - low) / (high - low) - 1
    assert v[short.timestep_map[1:]].abs().max() <= 1
    eps = oracle(diffusion, mu, s)

    def model(x: Tensor, t: Tensor) -> Tensor:
        return torch.cat([eps(x, t), column(v, t).expand_as(x)], 1)

    mean, variance = moments(DDPM(steps, clip=False), model, diffusion, (mu, s))
    assert mean == pytest.approx(mu, abs=1e-4)
    # the last step returns a mean: what x_1 does not explain of x_0 is missing
    assert variance == pytest.approx(s**2 - unexplained[0].item(), rel=1e-4)


@pytest.mark.parametrize(
    "sampler",
    [DDIM(1000, eta=0.0, clip=False), DDIM(1000, eta=1.0, clip=False), DDPM(1000, clip=False)],
    ids=["ddim0", "ddim1", "ddpm"],
)
def test_gaussian_data_keeps_its_moments(sampler):
    mu, s = 0.4, 0.6
    diffusion = Diffusion("linear", variance="fixed_large")
    mean, variance = moments(sampler, oracle(diffusion, mu, s), diffusion, (mu, s))
    assert mean == pytest.approx(mu, abs=1e-4)
    assert math.sqrt(variance) == pytest.approx(s, rel=0.01)


def test_ddim_at_eta_one_is_ddpm_with_the_small_variance():
    diffusion = Diffusion("linear", variance="fixed_small")
    model = oracle(diffusion, 0.4, 0.6)
    ddim = moments(DDIM(20, eta=1.0, clip=False), model, diffusion, (0.4, 0.6))
    ddpm = moments(DDPM(20, clip=False), model, diffusion, (0.4, 0.6))
    assert ddim == pytest.approx(ddpm, rel=1e-4)
    ddim = moments(DDIM(20, eta=0.0, clip=False), model, diffusion, (0.4, 0.6))
    assert ddim != pytest.approx(ddpm, rel=1e-2)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_contract(sampler):
    """Original t, a tick per step, draws of DDPM alone, no graph, rows independent."""
    diffusion = Diffusion(variance="fixed_small")
    target = torch.tensor([-0.9, 0.1, 0.8])[:, None, None, None].expand(3, 2, 4, 4)
    weight = torch.ones((), requires_grad=True)
    times, ticks, draws = [], [], []

    def sample(rows: slice) -> Tensor:
        noise = IndexedNoise(0, range(3)[rows], (2, 4, 4))
        x_T = noise()

        def model(x: Tensor, t: Tensor) -> Tensor:  # knows the only data point
            assert t.dtype == torch.long and t.shape == (len(x),)
            times.append(t[0].item())
            signal = column(diffusion.sqrt_alphas_cumprod, t)
            sigma = column(diffusion.sqrt_one_minus_alphas_cumprod, t)
            return weight * (x - signal * target[rows]) / sigma

        def draw() -> Tensor:
            draws.append(None)
            return noise()

        return sampler(steps=6)(model, x_T, diffusion, draw, lambda: ticks.append(None))

    together = sample(slice(0, 3))
    assert times == space_backwards(6)
    assert len(ticks) == 6 and len(draws) == (5 if sampler is DDPM else 0)
    assert together.shape == target.shape and not together.requires_grad
    torch.testing.assert_close(together, target, rtol=0, atol=1e-3)
    apart = torch.cat([sample(slice(0, 1)), sample(slice(1, 3))])
    torch.testing.assert_close(together, apart, rtol=0, atol=1e-6)


def space_backwards(steps: int) -> list[int]:
    return Diffusion().respaced(steps).timestep_map[::-1]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_constructor_arguments_are_attributes(sampler):
    instance = sampler(steps="ddim10")
    for name, parameter in inspect.signature(sampler).parameters.items():
        expected = "ddim10" if name == "steps" else parameter.default
        assert getattr(instance, name) == expected


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("steps", [2, 3, 1000])
def test_ddim_at_eta_one_never_leaves_the_numbers(schedule, steps):
    """1 - abar' - sigma^2 is nearly 0 where one step crosses all noise levels; never less."""
    diffusion = Diffusion(schedule, variance="fixed_small")
    x_T = torch.ones(1, 1, 1, 1)
    x_0 = DDIM(steps, eta=1.0)(lambda x, t: x, x_T, diffusion, lambda: x_T)
    assert x_0.isfinite().all()


@pytest.mark.parametrize("eta", [-0.1, 1.5, float("nan")])
def test_eta_out_of_range_is_refused(eta):
    with pytest.raises(UserError, match="eta"):
        DDIM(eta=eta)
