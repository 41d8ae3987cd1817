"""Diffusion: equal to the reference numbers, and to the definitions it is derived from."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from dtr_lightning.diffusion import Diffusion, space
from dtr_lightning.errors import UserError

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
        (-3, "valid: 2 to 1000"),
        (1001, "valid: 2 to 1000"),
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


def test_tables_follow_the_device_and_stay_out_of_the_state_dict():
    diffusion = Diffusion().to("meta").respaced(10)
    assert {(b.dtype, b.device.type) for b in diffusion.buffers()} == {(torch.float32, "meta")}
    assert diffusion.betas.device.type == "cpu"
    assert not diffusion.state_dict()


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
