"""What every loss weight keeps; Min-SNR against the official weights."""

import pytest
import torch

from dtr_lightning.config import valid_choices
from dtr_lightning.diffusion import Diffusion
from dtr_lightning.loss_weights import Constant, LossWeight, MinSNR
from tests.conftest import golden


def made(loss_weight, schedule="cosine"):
    loss_weight.build(Diffusion(schedule))
    return loss_weight


def batch(n=8):
    generator = torch.Generator().manual_seed(0)
    mse, vb = torch.rand(2, n, generator=generator)
    return mse.requires_grad_(), vb.requires_grad_(), torch.randint(1000, (n,), generator=generator)


@pytest.mark.parametrize("cls", valid_choices(LossWeight).values())
class TestEveryLossWeight:
    def test_gives_a_finite_scalar_and_a_gradient_to_every_sample(self, cls):
        mse, vb, t = batch()
        loss = made(cls())(mse, vb, t)
        assert loss.shape == () and loss.isfinite()
        loss.backward()
        assert (mse.grad > 0).all() and (vb.grad > 0).all()

    def test_draws_tasks_of_the_timeline(self, cls):
        torch.manual_seed(0)
        t = made(cls()).timesteps(500, torch.device("cpu"))
        assert t.shape == (500,) and t.min() >= 0 and t.max() < 1000


def test_constant_is_the_mean():
    mse, vb, t = batch()
    assert torch.equal(made(Constant())(mse, vb, t), (mse + vb).mean())


def test_min_snr_becomes_constant_as_gamma_grows():
    mse, vb, t = batch()
    torch.testing.assert_close(made(MinSNR(1e30))(mse, vb, t), made(Constant())(mse, vb, t))


def test_min_snr_of_a_batch_is_the_mean_of_its_samples():
    mse, vb, t = batch()
    weight = made(MinSNR())
    singly = torch.stack([weight(mse[i : i + 1], vb[i : i + 1], t[i : i + 1]) for i in range(8)])
    torch.testing.assert_close(weight(mse, vb, t), singly.mean())


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_min_snr_equals_the_official_weights(schedule):
    expected = golden("diffusion/loss_weights.npz")[f"{schedule}_T1000_min_snr_5_eps_f64"]
    weight = made(MinSNR(5), schedule).weight(torch.arange(1000)).double()
    torch.testing.assert_close(weight, torch.from_numpy(expected), rtol=1e-5, atol=0)
