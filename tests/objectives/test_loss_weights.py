"""What every loss weight keeps; Min-SNR, P2 and UW against the official numbers."""

import pytest
import torch

from dtr_lightning.diffusion import Diffusion, FlowMatching
from dtr_lightning.errors import UserError
from dtr_lightning.objectives import CUW, P2, UW, Constant, LossWeight, MinSNR
from tests.conftest import golden, shipped


def made(loss_weight, schedule="cosine", **options):
    loss_weight.bind(Diffusion(schedule, **options))
    return loss_weight


def batch(n=8):
    generator = torch.Generator().manual_seed(0)
    mse, vb = torch.rand(2, n, generator=generator)
    return mse.requires_grad_(), vb.requires_grad_(), torch.randint(1000, (n,), generator=generator)


def arrays(name):
    return {key: torch.from_numpy(a) for key, a in golden(name).items()}


@pytest.mark.parametrize("cls", shipped(LossWeight).values())
class TestEveryLossWeight:
    def test_gives_a_finite_scalar_and_a_gradient_to_every_sample(self, cls):
        mse, vb, t = batch()
        loss = made(cls())(mse, vb, t)
        assert loss.shape == () and loss.isfinite()
        loss.backward()
        assert (mse.grad > 0).all() and (vb.grad > 0).all()

    @pytest.mark.parametrize("process", [Diffusion, FlowMatching])
    def test_draws_tasks_of_the_range(self, cls, process):
        torch.manual_seed(0)
        loss_weight = cls()
        loss_weight.bind(process(tasks=(200, 900)))
        t = loss_weight.timesteps(501, torch.device("cpu"))
        assert t.shape == (501,) and t.min() >= 200 and t.max() < 900
        assert t.min() < 210 and t.max() > 890

    def test_works_in_continuous_time(self, cls):
        mse, vb, _ = batch(9)
        loss_weight = cls()
        loss_weight.bind(FlowMatching())
        t = torch.linspace(0, 999, 9)
        loss = loss_weight(mse, torch.zeros_like(vb), t)
        loss.backward()
        assert loss.isfinite() and mse.grad.isfinite().all()

    def test_leaves_the_global_random_state(self, cls):
        before = torch.get_rng_state()
        made(cls())
        assert torch.equal(torch.get_rng_state(), before)


def test_constant_is_the_mean():
    mse, vb, t = batch()
    assert torch.equal(made(Constant())(mse, vb, t), (mse + vb).mean())


def test_min_snr_becomes_constant_as_gamma_grows():
    mse, vb, t = batch()
    torch.testing.assert_close(made(MinSNR(1e30))(mse, vb, t), made(Constant())(mse, vb, t))


@pytest.mark.parametrize("cls", [Constant, MinSNR, P2, CUW])
def test_a_batch_is_the_mean_of_its_samples(cls):
    mse, vb, t = batch()
    weight = made(cls())
    singly = torch.stack([weight(mse[i : i + 1], vb[i : i + 1], t[i : i + 1]) for i in range(8)])
    torch.testing.assert_close(weight(mse, vb, t), singly.mean())


T = torch.arange(1000)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_weights_equal_the_reference(schedule):
    g = arrays("diffusion/loss_weights.npz")

    def close(loss_weight, name, **options):
        actual = made(loss_weight, schedule, **options).weight(T).double()
        expected = g[f"{schedule}_T1000_{name}"].double()
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=0)

    close(MinSNR(5), "min_snr_5_eps_f64")
    close(MinSNR(5), "min_snr_5_eps_official")
    close(MinSNR(5), "min_snr_5_xstart_official", prediction="x0")
    close(MinSNR(5), "min_snr_5_v_f64", prediction="v")
    close(P2(1, 1), "p2_gamma1_k1_f64")


def test_p2_is_per_sample_and_not_the_official_product_of_means():
    g = arrays("diffusion/p2_bug.npz")
    diffusion = Diffusion("cosine", variance="fixed_large")
    mse, vb = diffusion.losses(g["model_output"], g["x0"], g["t"], g["noise"])
    p2 = P2(1, 1)
    p2.bind(diffusion)
    torch.testing.assert_close(mse, g["mse_per_sample"], rtol=1e-5, atol=0)
    loss = p2(mse, vb, g["t"]).double()
    torch.testing.assert_close(loss, g["correct_mean"].double(), rtol=1e-5, atol=0)
    assert abs(loss - g["official_mean"]) > 0.02 * loss


def test_uw_equals_the_official_module():
    g = arrays("ant/uw_K8.npz")
    t = torch.arange(8) * 125 + 60
    for s in ("s0", "s"):
        uw = made(UW())
        uw.s.data = g[s].clone()
        losses = (g["l"] * 8).requires_grad_()  # its l_i are divided by K already
        total = uw(losses, torch.zeros(8), t)
        total.backward()
        torch.testing.assert_close(total, g[f"{s}_total"], rtol=1e-6, atol=0)
        torch.testing.assert_close(uw.s.grad, g[f"{s}_grad_s"], rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(losses.grad * 8, g[f"{s}_grad_l"], rtol=1e-6, atol=0)


def test_uw_equals_the_official_loss_of_a_batch_in_any_order():
    g = arrays("diffusion/uw_loss.npz")
    uw = made(UW())
    uw.s.data = g["s"].clone()
    assert torch.equal(torch.stack([uw.bounds[:-1], uw.bounds[1:]], 1), g["cluster_bounds"])
    for order in (torch.arange(24), torch.randperm(24, generator=torch.Generator().manual_seed(0))):
        losses = g["per_sample_loss"][order]
        total = uw(losses, torch.zeros(24), g["t"][order])
        torch.testing.assert_close(total, g["uw_loss"], rtol=1e-5, atol=0)
    total.backward()
    torch.testing.assert_close(uw.s.grad, g["grad_s"], rtol=1e-5, atol=1e-6)


def test_uw_of_one_cluster_at_zero_is_half_the_mean():
    mse, vb, t = batch()
    torch.testing.assert_close(made(UW(clusters=1))(mse, vb, t), (mse + vb).mean() / 2)


@pytest.mark.parametrize(("n", "counts"), [(16, [2] * 8), (19, [3, 3, 3, 2, 2, 2, 2, 2])])
def test_uw_draws_every_cluster_and_spreads_the_rest(n, counts):
    uw = made(UW())
    t = uw.timesteps(n, torch.device("cpu"))
    assert torch.bincount(t // 125, minlength=8).tolist() == counts


def test_uw_refuses_a_batch_with_less_than_a_sample_per_cluster():
    with pytest.raises(UserError, match=r"a batch of 7 samples .* too small for 8 clusters"):
        UW().check(7)
    for options in ({"clusters": 0}, {"clustering": "affinity"}):
        with pytest.raises(UserError):
            UW(**options)
    with pytest.raises(UserError, match=r"1\.\.1000"):
        made(UW(clusters=1001))


def test_a_cluster_without_samples_leaves_its_uncertainty_alone():
    uw = made(UW())
    uw(torch.ones(2), torch.zeros(2), torch.tensor([3, 990])).backward()
    assert (uw.s.grad != 0).tolist() == [True, *[False] * 6, True]


def test_cuw_starts_as_the_mean_and_settles_at_the_log_of_the_loss():
    mse, vb, t = batch(64)
    cuw = made(CUW())
    torch.testing.assert_close(cuw(mse, vb, t), (mse + vb).mean())
    loss_of = lambda t: torch.exp(-t / 300)  # noqa: E731
    optimizer = torch.optim.Adam(cuw.parameters(), lr=0.05)
    generator = torch.Generator().manual_seed(0)
    for _ in range(400):
        t = torch.randint(1000, (256,), generator=generator)
        loss = cuw(loss_of(t), torch.zeros(256), t)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    error = cuw.log_variance(T).detach() - loss_of(T).log()
    assert error.abs().mean() < 0.1
