"""Mask tables against the official numbers, and the laws of Section 4."""

import numpy as np
import pytest
import torch

from dtr_lightning.errors import UserError
from dtr_lightning.routing import masks
from dtr_lightning.seeds import generator_of
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


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["key"])
@pytest.mark.parametrize("knots", [(0, 1), (0, 0.25, 0.5, 0.75, 1)])
def test_a_free_window_with_straight_knots_is_dtr(case, knots):
    tasks, channels, alpha, beta = (case[key] for key in ("T", "C", "alpha", "beta"))
    expected = masks.dtr(tasks, channels, alpha, beta)
    assert torch.equal(masks.free_window(tasks, channels, knots, alpha, beta), expected)


def test_a_free_window_never_moves_back():
    knots = np.sort(np.random.default_rng(0).random(7)).tolist()
    start = offsets(masks.free_window(1000, 768, knots))
    assert (start.diff() >= 0).all()
    slack = 768 - 614
    assert (start[0], start[-1]) == (round(slack * knots[0]), round(slack * knots[-1]))


def test_cdtr_is_dtr_over_clusters():
    table = masks.cdtr(1000, 768)
    start = offsets(table)
    assert start[::125].tolist() == [0, 0, 1, 5, 16, 40, 83, 154]
    assert torch.equal(start, start[::125].repeat_interleave(125))
    assert torch.equal(masks.cdtr(50, 96, 2, 0.6, clusters=50), masks.dtr(50, 96, 2, 0.6))
    assert (masks.cdtr(10, 96, clusters=1) == masks.dtr(1, 96)).all()


def test_clusters_of_tasks_are_half_open_and_cover_all():
    cluster = masks.clusters_of_tasks(10, 4)
    assert cluster.tolist() == [0, 0, 0, 1, 1, 2, 2, 2, 3, 3]


@pytest.mark.parametrize("channels, clusters", [(768, 8), (90, 8), (91, 8), (24, 12), (24, 1)])
def test_ercdt_shares_half_and_splits_the_rest(channels, clusters):
    table = masks.ercdt(1000, channels, clusters)
    shared, own = table[:, : -(channels // 2)], table[:, -(channels // 2) :]
    assert shared.all()
    rows = own[masks.clusters_of_tasks(1000, clusters).diff(prepend=torch.tensor([-1])) > 0]
    assert len(rows) == clusters and (rows.sum(0) == 1).all() and rows.any(1).all()
    sizes = rows.sum(1)
    assert sizes.max() - sizes.min() <= 1 + (channels // 2 % clusters > 0)
    if (channels, clusters) == (768, 8):
        assert (table.sum(1) == 432).all()


def test_weights_only_gives_clusters_as_many_channels_of_their_own_as_dtr():
    table = masks.weights_only(1000, 768)
    assert (table.sum(1) == 614).all()
    clusters = torch.stack([part.any(0) for part in table.split(125)])  # who reads what at all
    always = torch.stack([part.all(0) for part in table.split(125)])
    alone = clusters.sum(0) == 1
    assert (clusters & alone).sum(1).tolist() == [0, 0, 1, 4, 11, 24, 43, 71]
    assert torch.equal(clusters & alone, always & alone)  # what a cluster owns all its tasks read
    assert (clusters.sum(0) > 0).all() and set(clusters.sum(0).tolist()) == {1, 8}


def test_weights_only_overlaps_do_not_depend_on_the_distance_in_time():
    table = masks.weights_only(1000, 768, generator=generator_of(3)).double()
    overlap = table @ table.T
    near = torch.stack([overlap[t, t + 1] for t in range(0, 249)]).mean()
    far = overlap[:125, 125:250].mean()  # the first two clusters own nothing: random masks
    assert near.item() == pytest.approx(614**2 / 614, abs=1e-9)  # all of the C_beta shared ones
    assert far.item() == pytest.approx(near.item(), abs=1e-9)
    own, rest = 71, 614 - 71  # in the last cluster: its own channels and random others
    pairs = overlap[875:, 875:][~torch.eye(125, dtype=torch.bool)]
    assert pairs.mean().item() == pytest.approx(own + rest**2 / 614, rel=2e-3)


def shared(table):
    """Returns |A_i and A_j| of all pairs i != j, by counting."""
    overlap = table.double() @ table.double().T
    return overlap[~torch.eye(len(table), dtype=torch.bool)]


@pytest.mark.parametrize("table", [masks.dtr(50, 64), masks.random(50, 64), masks.ercdt(50, 64)])
def test_the_mean_overlap_is_that_of_all_pairs(table):
    assert masks.mean_overlap(table) == pytest.approx(shared(table).mean().item(), rel=1e-12)


@pytest.mark.parametrize(
    "channels, alpha, beta", [(64, 4, 0.8), (96, 1, 0.8), (64, 0.5, 0.6), (768, 4, 0.8)]
)
def test_a_shared_core_overlaps_as_dtr_does(channels, alpha, beta):
    active, core = (
        masks.active_channels(channels, beta),
        masks.core_size(1000, channels, alpha, beta),
    )
    table = masks.shared_core(1000, channels, core, beta, generator_of(5))
    assert (table.sum(1) == active).all()
    assert table.all(0).sum() == core  # always on, and no other is
    found, wanted = (
        masks.mean_overlap(table),
        masks.mean_overlap(masks.dtr(1000, channels, alpha, beta)),
    )
    rest = active - core
    assert found == pytest.approx(core + rest**2 / (channels - core), abs=0.02)
    assert wanted - 0.02 < found < wanted + 1
    assert (shared(table[::100]) >= core).all()
    if (channels, alpha, beta) == (64, 4, 0.8):
        assert (core, rest) == (47, 4) and found == pytest.approx(47.94, abs=0.02)


def test_a_shared_core_gives_no_task_channels_of_its_own_and_no_affinity():
    table = masks.shared_core(1000, 64, 47, generator=generator_of(1))
    readers = table.sum(0)[~table.all(0)]  # of 17 channels every task reads 4
    assert len(readers) == 17 and (readers - 1000 * 4 / 17).abs().max() < 5 * 1000**0.5 / 2
    near = (table[1:] & table[:-1]).sum(1).double().mean()
    assert near.item() == pytest.approx(masks.mean_overlap(table), abs=0.15)


@pytest.mark.parametrize("core", [0, 51])
def test_a_core_of_nothing_is_random_and_of_all_one_mask(core):
    table = masks.shared_core(200, 64, core)
    expected = 51**2 / 64 if core == 0 else 51
    assert masks.mean_overlap(table) == pytest.approx(expected, abs=0.1)


@pytest.mark.parametrize("tasks, channels", [(1000, 24), (8, 90), (2, 25), (3, 90)])
def test_a_cover_has_every_channel_in_some_mask(tasks, channels):
    table = masks.cover(tasks, channels, 0.7)
    assert (table.sum(1) == masks.active_channels(channels, 0.7)).all()
    assert table.any(0).all()


def test_a_cover_is_random_beside_its_diagonal():
    share = masks.cover(20_000, 10, 0.3).float().mean(0)
    assert (share - 0.3).abs().max() < 0.015


def test_seeds_of_a_key_differ_from_those_of_its_neighbours():
    keys = [(seed, block, swap) for seed in range(4) for block in range(4) for swap in range(4)]
    assert len({generator_of(*key).initial_seed() for key in keys}) == len(keys)


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
