"""Diffusion: equal to the reference numbers, and to the definitions it is derived from."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from dtr_lightning.diffusion import Diffusion, space
from dtr_lightning.errors import UserError

GOLDEN = Path(__file__).parent / "golden" / "diffusion"
SCHEDULES = ("linear", "cosine")


def golden(name: str) -> dict[str, Tensor]:
    with np.load(GOLDEN / f"{name}.npz") as arrays:
        return {key: torch.from_numpy(arrays[key]) for key in arrays}


def assert_close(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    """Largest difference relative to the largest value, as the goldens state tolerances."""
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedule_arrays_equal_golden(schedule):
    arrays = golden("schedules")
    rows = arrays.pop("rows")
    diffusion = Diffusion(schedule)
    mine = [key for key in arrays if key.startswith(schedule)]
    assert len(mine) == 11
    for key in mine:
        actual = getattr(diffusion, key.removeprefix(f"{schedule}_"))
        torch.testing.assert_close(actual[rows], arrays[key], rtol=1e-9, atol=0)
        assert actual.dtype == torch.float64 and actual.shape == (1000,)


@pytest.mark.parametrize("row", json.loads((GOLDEN / "respacing.json").read_text()), ids=str)
def test_kept_tasks_equal_golden(row):
    if len(row["timesteps"]) == 1:
        with pytest.raises(UserError, match="2 are the least"):
            space(row["T"], row["spec"])
    else:
        assert space(row["T"], row["spec"]) == row["timesteps"]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("steps", ["10,15,20", "ddim7", "50"])
def test_respaced_arrays_equal_golden(schedule, steps):
    prefix = f"{schedule}_T1000_{steps}_"
    arrays = {k.removeprefix(prefix): a for k, a in golden("respacing").items() if prefix in k}
    diffusion = Diffusion(schedule).respaced(steps)
    assert len(arrays) == 5
    for name, expected in arrays.items():
        torch.testing.assert_close(getattr(diffusion, name), expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        (1, "2 are the least"),
        ("ddim1", "2 are the least"),
        (0, "2 are the least"),
        (-3, "valid: 0 to 1000"),
        (1001, "valid: 0 to 1000"),
        ("600,10", "valid: 0 to 500"),
        ("ddim600", "try ddim500, ddim1000"),
        ("ddim2000", "try ddim1000"),
        ("ddim", "valid: 250"),
        ("ddim5,6", "no integer stride"),
        ("fast", "valid: 250"),
        ("", "valid: 250"),
    ],
)
def test_impossible_steps_are_refused_in_one_line(steps, message):
    with pytest.raises(UserError, match=message) as error:
        Diffusion().respaced(steps)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "options",
    [{"schedule": "sqrt"}, {"variance": "learned"}, {"T": 1}, {"schedule": "linear", "T": 20}],
)
def test_bad_options_are_refused(options):
    with pytest.raises(UserError):
        Diffusion(**options)


def test_spec_kinds_are_equivalent_and_the_map_composes():
    assert space(1000, 50) == space(1000, "50") == space(1000, [50])
    assert space(1000, [10, 15, 20]) == space(1000, "10,15,20")
    assert space(1000, "0,2") == [500, 999]
    assert space(1000, 1000) == list(range(1000))
    once = Diffusion().respaced("ddim50")
    twice = once.respaced("ddim25")
    assert twice.timestep_map == Diffusion().respaced("ddim25").timestep_map
    torch.testing.assert_close(
        twice.alphas_cumprod, Diffusion().alphas_cumprod[twice.timestep_map], rtol=1e-12, atol=0
    )
    assert (len(once), len(twice), twice.T) == (50, 25, 1000)


def test_tables_are_not_in_the_state_dict():
    assert not Diffusion().state_dict()
    assert all(b.dtype == torch.float32 for b in Diffusion().buffers())


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_terms_equal_golden(schedule):
    g = golden(f"terms_{schedule}")
    x_t, t, output = g["x_t"], g["t"], g["model_output"]
    diffusion = Diffusion(schedule)
    assert_close(diffusion.q_sample(g["x0"], t, g["noise"]), x_t, 1e-6)
    names = ("mean", "variance", "log_variance_clipped")
    for name, actual in zip(names, diffusion.posterior(g["x0"], x_t, t), strict=True):
        assert_close(actual, g[f"posterior_{name}"], 1e-6)
    for clip in (False, True):
        p = diffusion.p_mean_variance(output, x_t, t, clip)
        for name, actual in zip(
            ("mean", "variance", "log_variance", "pred_xstart"), p, strict=True
        ):
            assert_close(actual, g[f"p_clip{clip:d}_{name}"], 1e-5)
    for size in ("small", "large"):
        fixed = Diffusion(schedule, variance=f"fixed_{size}")
        p = fixed.p_mean_variance(output.chunk(2, 1)[0], x_t, t)
        for name in ("mean", "variance", "log_variance"):
            assert_close(getattr(p, name), g[f"p_fixed_{size}_{name}"], 1e-5)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_losses_and_gradients_equal_golden(schedule):
    g = golden(f"terms_{schedule}")
    output = g["model_output"].requires_grad_()
    mse, vb = Diffusion(schedule).losses(output, g["x0"], g["t"], g["noise"])
    assert_close(mse, g["train_mse_mse"], 1e-5)
    torch.testing.assert_close(vb, g["train_mse_vb"], rtol=1e-4, atol=0)  # every t, not the largest
    (mse + vb).mean().backward()
    assert_close(output.grad, g["train_mse_grad_model_output"], 1e-5)

    eps = output.detach().chunk(2, 1)[0]
    mse, vb = Diffusion(schedule, variance="fixed_large").losses(eps, g["x0"], g["t"], g["noise"])
    assert_close(mse, g["train_fixed_large_mse"], 1e-5)
    assert torch.equal(vb, torch.zeros_like(mse))


@pytest.mark.parametrize("t", [1, 40, 500, 998])
def test_posterior_equals_bayes_on_a_grid(t):
    """q(x_{t-1} | x_t, x_0) is q(x_t | x_{t-1}) q(x_{t-1} | x_0), normalised numerically."""
    diffusion, x0 = Diffusion("linear"), 0.7
    beta, prev = diffusion.betas[t], diffusion.alphas_cumprod_prev[t]
    x_t = (diffusion.sqrt_alphas_cumprod * x0 + diffusion.sqrt_one_minus_alphas_cumprod)[t].item()
    prior = torch.distributions.Normal(prev.sqrt() * x0, (1 - prev).sqrt())
    centre = prior.mean if 1 - prev < beta else x_t / (1 - beta).sqrt()
    width = 10 * torch.minimum(1 - prev, beta).sqrt()
    grid = centre + width * torch.linspace(-1, 1, 4001, dtype=torch.float64)
    step = torch.distributions.Normal((1 - beta).sqrt() * grid, beta.sqrt())
    weight = (prior.log_prob(grid) + step.log_prob(torch.tensor(x_t).double())).softmax(0)
    mean = (weight * grid).sum()
    variance = (weight * (grid - mean) ** 2).sum()

    shape = (1, 1, 1, 1)
    actual = diffusion.posterior(torch.full(shape, x0), torch.full(shape, x_t), torch.tensor([t]))
    expected = (mean, variance, variance.log())
    for a, e in zip(actual, expected, strict=True):
        assert a.item() == pytest.approx(e.item(), rel=1e-5)


def batch(n: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x0 = torch.rand(n, 2, 4, 4, generator=generator) * 2 - 1
    noise = torch.randn(n, 2, 4, 4, generator=generator)
    v = torch.rand(n, 2, 4, 4, generator=generator) * 2 - 1
    output = torch.cat([noise + 0.3 * torch.randn(n, 2, 4, 4, generator=generator), v], 1)
    return x0, noise, output


@pytest.mark.parametrize("steps", [1000, 30])
def test_vb_is_the_divergence_of_p_from_the_posterior(steps):
    """The closed form in (eps_hat - eps)^2 is KL(q || p) of the two methods, in bits."""
    diffusion = Diffusion("linear").respaced(steps)
    t = torch.arange(1, steps, max(1, steps // 16))
    x0, noise, output = batch(len(t))
    x_t = diffusion.q_sample(x0, t, noise)
    q_mean, q_variance, _ = (a.double() for a in diffusion.posterior(x0, x_t, t))
    p_mean, p_variance, *_ = (a.double() for a in diffusion.p_mean_variance(output, x_t, t))
    kl = torch.distributions.kl_divergence(
        torch.distributions.Normal(q_mean, q_variance.sqrt()),
        torch.distributions.Normal(p_mean, p_variance.sqrt()),
    )
    _, vb = diffusion.losses(output, x0, t, noise)
    torch.testing.assert_close(vb.double(), kl.mean((1, 2, 3)) / np.log(2), rtol=1e-3, atol=0)


def test_decoder_likelihoods_of_all_pixel_values_sum_to_one():
    """At t = 0 the 256 bins partition the line, whatever the mean and the variance."""
    diffusion = Diffusion("linear")
    x0 = torch.linspace(-1, 1, 256)[:, None, None, None]
    x_1, t = torch.full_like(x0, 0.52), torch.zeros(256, dtype=torch.long)
    noise = (x_1 - diffusion.sqrt_alphas_cumprod[0].float() * x0) / (
        diffusion.sqrt_one_minus_alphas_cumprod[0].float()
    )
    output = torch.cat([torch.full_like(x0, 0.3), torch.full_like(x0, -0.2)], 1)
    _, bits = diffusion.losses(output, x0, t, noise)
    assert torch.exp2(-bits).sum().item() == pytest.approx(1, abs=1e-4)


def test_vb_trains_the_variance_only():
    x0, noise, output = batch(4)
    output.requires_grad_()
    _, vb = Diffusion().losses(output, x0, torch.tensor([0, 1, 500, 999]), noise)
    vb.sum().backward()
    eps, v = output.grad.chunk(2, 1)
    assert not eps.any()
    assert v.abs().amax((1, 2, 3)).gt(0).all() and v.isfinite().all()


def test_a_row_does_not_depend_on_its_batch():
    """Neither loss nor gradient of t > 0 notices that the decoder term is computed for t = 0."""
    diffusion, t = Diffusion(), torch.tensor([0, 1, 400, 999])
    x0, noise, output = batch(4)
    # far outside [-1, 1]: the divergence is still finite, the decoder term would overflow
    output[2:, 2:] = -60 / diffusion.kl_table[t[2:], 0][:, None, None, None]
    grads = []
    for rows in ([slice(0, 4)], [slice(i, i + 1) for i in range(4)]):
        leaf = output.clone().requires_grad_()
        parts = [diffusion.losses(leaf[r], x0[r], t[r], noise[r]) for r in rows]
        losses = torch.cat([mse + vb for mse, vb in parts])
        losses.sum().backward()
        grads.append((losses.detach(), leaf.grad))
    for together, alone in zip(*grads, strict=True):
        assert together.isfinite().all()
        torch.testing.assert_close(together, alone)


def test_losses_are_float32_under_bfloat16():
    x0, noise, output = batch(4)
    t = torch.tensor([0, 1, 500, 999])
    low = output.bfloat16()
    for actual, expected in zip(
        Diffusion().losses(low, x0, t, noise),
        Diffusion().losses(low.float(), x0, t, noise),
        strict=True,
    ):
        assert actual.dtype == torch.float32
        assert torch.equal(actual, expected)


def test_losses_compile_whole_and_once_for_every_t():
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    diffusion = Diffusion()
    compiled = torch.compile(diffusion.losses, fullgraph=True, backend=backend)
    for seed, t in enumerate(([0, 1, 2, 3], [5, 6, 7, 8], [999, 0, 0, 0])):
        x0, noise, output = batch(4, seed)
        args = (output, x0, torch.tensor(t), noise)
        for actual, expected in zip(compiled(*args), diffusion.losses(*args), strict=True):
            torch.testing.assert_close(actual, expected)
    assert len(graphs) == 1
