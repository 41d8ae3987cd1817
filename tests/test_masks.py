"""Mask tables against the official numbers, and the laws of Section 4."""

import pytest
import torch

from dtr_lightning import masks
from dtr_lightning.errors import UserError
from tests.conftest import golden

CASES = [case for case in golden("masks/cases.json") if case["exact_active"] > 0]
OFFSETS = golden("masks/offsets.npz")


def offsets(table):
    return table.int().argmax(1)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["key"])
def test_dtr_equals_the_official_masks(case):
    key = case["key"]
    key = f"{key}_exactactive" if f"{key}_exactactive" in OFFSETS else key
    table = masks.dtr(case["T"], case["C"], case["alpha"], case["beta"])
    assert torch.equal(offsets(table), torch.from_numpy(OFFSETS[key]).long())
    start = offsets(table)
    assert torch.equal(table, masks.window(start, start + case["exact_active"], case["C"]))


@pytest.mark.parametrize("width", [384, 768])
def test_eq4_equals_the_text(width):
    key = next(k for k in OFFSETS if f"C{width}_a4_b0.8_paperEq4_L" in k)
    left, right = OFFSETS[key], OFFSETS[key.replace("_L", "_R")]
    expected = masks.window(*(torch.from_numpy(x).long() for x in (left, right)), width)
    assert torch.equal(masks.dtr(1000, width, formula="eq4"), expected)


@pytest.mark.parametrize("channels", [5, 90, 768])
@pytest.mark.parametrize("beta", [0.3, 0.7, 0.8, 1.0])
def test_every_task_reads_c_beta_channels(channels, beta):
    active = masks.active_channels(channels, beta)
    assert (masks.dtr(50, channels, 2, beta).sum(1) == active).all()
    assert (masks.random(50, channels, beta).sum(1) == active).all()


def test_c_beta_is_the_floor_of_the_decimal_product():
    assert masks.active_channels(90, 0.7) == 63
    assert masks.active_channels(768, 0.8) == 614


def test_dtr_overlap_falls_with_the_distance_of_the_windows():
    table = masks.dtr(40, 100, 1.5, 0.7)
    overlap = table.float() @ table.float().T
    o = offsets(table)
    assert torch.equal(overlap, 70 - (o[:, None] - o).abs().float())


def test_random_overlap_has_the_hypergeometric_mean():
    table = masks.random(400, 64, 0.8).float()
    overlap = (table @ table.T).triu(1)
    mean = overlap.sum() / (400 * 399 / 2)
    assert mean.item() == pytest.approx(51**2 / 64, rel=2e-3)


def test_random_rows_are_uniform_over_channels():
    share = masks.random(20_000, 10, 0.3).float().mean(0)
    assert (share - 0.3).abs().max() < 0.015  # more than four standard deviations


def test_random_depends_on_the_generator_alone():
    before = torch.random.get_rng_state()
    first = masks.random(9, 30, 0.5, torch.Generator().manual_seed(1))
    again = masks.random(9, 30, 0.5, torch.Generator().manual_seed(1))
    other = masks.random(9, 30, 0.5, torch.Generator().manual_seed(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("alpha", [0, -1, float("nan"), float("inf")])
def test_alpha_out_of_range(alpha):
    with pytest.raises(UserError, match="alpha must be a positive finite number"):
        masks.dtr(10, 10, alpha)


@pytest.mark.parametrize("beta", [0, -0.1, 1.2, float("nan")])
def test_beta_out_of_range(beta):
    for make in (lambda: masks.dtr(10, 10, 4, beta), lambda: masks.random(10, 10, beta)):
        with pytest.raises(UserError, match="beta must lie in"):
            make()


def test_formula_is_one_of_two():
    with pytest.raises(UserError, match="linspace, eq4"):
        masks.dtr(10, 10, formula="eq5")
