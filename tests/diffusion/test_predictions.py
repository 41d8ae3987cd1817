"""What the network predicts: eps, x_0, v or a velocity are one denoiser in other words."""

import pytest
import torch

from dtr_lightning.diffusion import Diffusion, FlowMatching
from dtr_lightning.errors import UserError
from tests.conftest import golden

T = torch.tensor([0, 1, 300, 700, 950])


def column(x):
    return x[:, None, None, None].float()


def batch():
    generator = torch.Generator().manual_seed(0)
    x0 = torch.rand(5, 2, 4, 4, generator=generator) * 2 - 1
    noise, error, v = torch.randn(3, 5, 2, 4, 4, generator=generator)
    return x0, noise, 0.1 * error, v.tanh()


def outputs(diffusion, x0, noise, error, v):
    """Returns the same x_0 in terms of every prediction: eps is off by the error."""
    signal = column(diffusion.sqrt_alphas_cumprod[T])
    sigma = column(diffusion.sqrt_one_minus_alphas_cumprod[T])
    x_t = signal * x0 + sigma * noise
    eps = noise + error
    x0_hat = (x_t - sigma * eps) / signal
    predicted = {"eps": eps, "x0": x0_hat, "v": signal * eps - sigma * x0_hat}
    return x_t, {name: torch.cat([p, v], 1) for name, p in predicted.items()}


@pytest.mark.parametrize("prediction", ["x0", "v"])
def test_every_prediction_of_one_denoiser_has_the_same_bound_and_the_same_step(prediction):
    x0, noise, error, v = batch()
    x_t, output = outputs(Diffusion("linear"), x0, noise, error, v)
    as_eps, other = Diffusion("linear"), Diffusion("linear", prediction=prediction)
    _, expected = as_eps.losses(output["eps"], x0, T, noise)
    _, vb = other.losses(output[prediction], x0, T, noise)
    torch.testing.assert_close(vb, expected, rtol=2e-3, atol=1e-5)
    for a, b in zip(
        as_eps.p_mean_variance(output["eps"], x_t, T),
        other.p_mean_variance(output[prediction], x_t, T),
        strict=True,
    ):
        torch.testing.assert_close(b, a, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
def test_factors_turn_the_mse_into_that_of_x0_and_eps(prediction):
    x0, noise, error, v = batch()
    diffusion = Diffusion("linear", prediction=prediction)
    x_t, output = outputs(diffusion, x0, noise, error, v)
    mse, _ = diffusion.losses(output[prediction], x0, T, noise)
    snr, to_x0, to_eps = diffusion.loss_conversion(T)
    x0_hat = diffusion.p_mean_variance(output[prediction], x_t, T).x0
    torch.testing.assert_close(mse * to_eps, error.square().mean((1, 2, 3)), rtol=2e-2, atol=0)
    mse_x0 = (x0_hat - x0).square().mean((1, 2, 3))
    torch.testing.assert_close((mse * to_x0)[1:], mse_x0[1:], rtol=1e-3, atol=0)
    torch.testing.assert_close(snr, diffusion.snr[T].float())


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_x0_losses_equal_golden(schedule):
    g = {k: torch.from_numpy(a) for k, a in golden(f"diffusion/terms_{schedule}.npz").items()}
    output = g["model_output"].requires_grad_()
    diffusion = Diffusion(schedule, prediction="x0")
    mse, vb = diffusion.losses(output, g["x0"], g["t"], g["noise"])
    torch.testing.assert_close(mse, g["train_xstart_mse"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(vb, g["train_xstart_vb"], rtol=1e-4, atol=1e-6)
    (mse + vb).mean().backward()
    expected = g["train_xstart_grad_model_output"]
    assert (output.grad - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_a_flow_predicts_its_velocity():
    x0, noise, error, _ = batch()
    flow = FlowMatching()
    t = torch.tensor([0.0, 0.5, 500.25, 900.0, 999.0])
    x_t = flow.q_sample(x0, t, noise)
    torch.testing.assert_close(x_t[0], x0[0])
    torch.testing.assert_close(x_t[-1], noise[-1])
    mse, vb = flow.losses(noise - x0 + error, x0, t, noise)
    torch.testing.assert_close(mse, error.square().mean((1, 2, 3)), rtol=1e-4, atol=0)
    assert not vb.any() and not flow.learns_variance
    x0_hat = x_t - column(flow.tau(t)) * (noise - x0 + error)
    _, to_x0, to_eps = flow.loss_conversion(t)
    torch.testing.assert_close(
        mse * to_x0, (x0_hat - x0).square().mean((1, 2, 3)), rtol=1e-3, atol=1e-9
    )
    eps_hat = x_t + column(1 - flow.tau(t)) * (noise - x0 + error)
    torch.testing.assert_close(
        mse * to_eps, (eps_hat - noise).square().mean((1, 2, 3)), rtol=1e-3, atol=1e-9
    )


@pytest.mark.parametrize("process", [Diffusion, FlowMatching])
def test_an_expert_draws_from_its_range_only(process):
    torch.manual_seed(0)
    expert = process(tasks=(250, 500))
    t = expert.timesteps(4000, torch.device("cpu"))
    assert t.min() >= 250 and t.max() < 500 and 370 < t.float().mean() < 380
    spread = expert.timesteps_at(torch.linspace(0, 0.999, 500, dtype=torch.float64))
    assert spread.min() == 250 and 499 <= spread.max() < 500
    everything = process().timesteps(4000, torch.device("cpu"))
    assert everything.max() > 990 and everything.min() < 10 and everything.max() <= 999


@pytest.mark.parametrize("tasks", [(5, 5), (-1, 3), (900, 1001)])
def test_a_range_outside_the_timeline_is_refused(tasks):
    with pytest.raises(UserError, match="0 <= low < high <= T = 1000"):
        Diffusion(tasks=tasks)


def test_log_snr_falls_and_is_finite():
    for process in (Diffusion("linear"), Diffusion("cosine"), FlowMatching()):
        log_snr = process.log_snr()
        assert log_snr.isfinite().all() and (log_snr.diff() < 0).all()
