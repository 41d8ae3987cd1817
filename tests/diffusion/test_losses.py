"""Diffusion.losses: equal to the reference numbers, and to the definitions it is derived from."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from dtr_lightning.diffusion import Diffusion

GOLDEN = Path(__file__).parent.parent / "golden" / "diffusion"
SCHEDULES = ("linear", "cosine")


def golden(name: str) -> dict[str, Tensor]:
    with np.load(GOLDEN / f"{name}.npz") as arrays:
        return {key: torch.from_numpy(arrays[key]) for key in arrays}


def assert_close(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    """Largest difference relative to the largest value, as the goldens state tolerances."""
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= tolerance * expected.abs().max()


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
    # a divergence that is still finite where the decoder term's gradient would overflow to nan
    output[2, 0, 0, 0], output[2, 2, 0, 0] = 1e3, -78 / diffusion.kl_table[400, 0]
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
