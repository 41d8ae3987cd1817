"""Fast samplers and those of flow matching: the order of their error, and whom they fit.

On Gaussian data N(mu, s^2) the exact denoiser is known and the probability flow is linear: a sample
keeps its number of standard deviations, so the end of every path is known.
"""

import math

import pytest
import torch

from dtr_lightning.diffusion import Diffusion, FlowMatching
from dtr_lightning.diffusion.samplers import DDIM, DDPM, DPMSolver, Euler, Heun
from dtr_lightning.errors import UserError

MU, S = 0.3, 0.5


def diffusion_error(sampler):
    diffusion = Diffusion("linear", T=4000, variance="fixed_small")
    abar = diffusion.alphas_cumprod

    def eps(x, t):
        a = abar[t].view(-1, 1, 1, 1).float()
        return (1 - a).sqrt() * (x - a.sqrt() * MU) / (a * S**2 + 1 - a)

    x_T = torch.linspace(-2, 2, 9).view(9, 1, 1, 1)
    end = abar[-1].item()
    exact = MU + S * (x_T - math.sqrt(end) * MU) / math.sqrt(end * S**2 + 1 - end)
    x_0 = sampler(eps, x_T, diffusion, lambda: torch.zeros_like(x_T))
    return (x_0 - exact).abs().max().item()


def flow_error(sampler):
    flow = FlowMatching()

    def velocity(x, t):
        tau = flow.tau(t).view(-1, 1, 1, 1).double()
        variance = (1 - tau) ** 2 * S**2 + tau**2
        return -MU + (tau - (1 - tau) * S**2) / variance * (x - (1 - tau) * MU)

    x_T = torch.linspace(-2, 2, 9, dtype=torch.float64).view(9, 1, 1, 1)
    return (sampler(velocity, x_T, flow, None) - (MU + S * x_T)).abs().max().item()


def test_dpm_solver_is_of_second_order_and_ddim_of_first():
    first = [diffusion_error(DDIM(steps, clip=False)) for steps in (20, 40, 80)]
    second = [diffusion_error(DPMSolver(steps, "log_snr", False)) for steps in (20, 40, 80)]
    for coarse, fine in ((0, 1), (1, 2)):
        assert 1.8 < first[coarse] / first[fine] < 2.2
        assert 3.5 < second[coarse] / second[fine] < 4.5
    assert diffusion_error(DPMSolver(20, clip=False)) < first[0] / 2


def test_one_evaluation_a_step_of_the_original_tasks():
    diffusion, seen = Diffusion(), []

    def model(x, t):
        seen.append(t[0].item())
        return torch.cat([x, x], 1)

    x = torch.zeros(2, 1, 2, 2)
    DPMSolver(10)(model, x, diffusion, lambda: x)
    assert seen == diffusion.respaced(10).timestep_map[::-1]
    assert DPMSolver(10).evaluations(diffusion) == 10


def test_euler_is_of_first_order_and_heun_of_second():
    first = [flow_error(Euler(steps, clip=False)) for steps in (20, 40, 80)]
    second = [flow_error(Heun(steps, clip=False)) for steps in (20, 40, 80)]
    for coarse, fine in ((0, 1), (1, 2)):
        assert 1.8 < first[coarse] / first[fine] < 2.2
        assert 3.5 < second[coarse] / second[fine] < 4.5


@pytest.mark.parametrize(("sampler", "evaluations"), [(Euler(8), 8), (Heun(8), 15)])
def test_a_flow_is_walked_from_noise_to_clean(sampler, evaluations):
    flow, seen, ticks = FlowMatching(T=1000), [], []
    target = torch.tensor([0.4, -1.7]).view(2, 1, 1, 1)  # the second is out of range: clipped

    def model(x, t):  # knows the only data point
        seen.append(t[0].item())
        return (x - target) / flow.tau(t).view(-1, 1, 1, 1)

    x_0 = sampler(model, torch.ones(2, 1, 1, 1), flow, None, lambda: ticks.append(None))
    torch.testing.assert_close(x_0.flatten(), torch.tensor([0.4, -1.0]))
    assert seen[0] == 999 and min(seen) > 0 and sorted(seen, reverse=True)[0] == seen[0]
    assert len(seen) == len(ticks) == sampler.evaluations(flow) == evaluations


@pytest.mark.parametrize(
    ("sampler", "process", "valid"),
    [(DDPM(), FlowMatching(), "Euler, Heun"), (Heun(), Diffusion(), "DDIM, DDPM, DPMSolver")],
)
def test_a_sampler_of_another_process_is_refused(sampler, process, valid):
    with pytest.raises(UserError, match=valid):
        sampler.check(process)
    with pytest.raises(UserError, match="at least 1"):
        Euler(0)
