"""A bounded choice of rows: a function of seed and indices, uniform, never more than asked."""

import itertools

import pytest
import torch

from dtr_lightning.metrics import BoundedRows

N, LIMIT = 1000, 100
ROWS = torch.arange(N * 2.0).view(N, 2)


def kept(parts, limit=LIMIT, seed=0):
    rows = BoundedRows(limit, seed)
    for part in parts:
        rows.update(ROWS[part], part)
        assert len(rows) <= limit and sum(len(x) for x in rows) == len(rows)
    return rows


@pytest.mark.parametrize("limit", [1, 99, 100, 101, 999, 1000, 2000])
def test_what_is_kept_depends_on_the_indices_alone(limit):
    index = torch.arange(N)
    order = torch.randperm(N, generator=torch.Generator().manual_seed(0))
    whole = kept([index], limit).compute()
    assert len(whole) == min(limit, N)
    assert (whole[:, 0].diff() > 0).all() and torch.isin(whole[:, 0], ROWS[:, 0]).all()
    for parts in (index.split(7), index.split(100), order.split(64), [order]):
        assert torch.equal(kept(parts, limit).compute(), whole)
    if limit >= N:
        assert torch.equal(whole, ROWS)


@pytest.mark.parametrize("world", [2, 3])
def test_processes_together_keep_what_one_keeps(world):
    index = torch.arange(N)
    ranks = [kept(index[rank::world].split(50)) for rank in range(world)]
    merged = ranks[0]
    merged.rows = torch.cat([torch.cat(list(rank)) for rank in ranks])  # as torchmetrics gathers
    merged.index = torch.cat([x for rank in ranks for x in rank.index])
    assert torch.equal(merged.compute(), kept([index]).compute())


def test_a_row_that_stays_among_many_stays_among_fewer():
    few, many = (set(kept([torch.arange(n)]).compute()[:, 0].tolist()) for n in (N // 2, N))
    first = {x for x in many if x < N}  # ROWS[:, 0] is twice the index
    assert first <= few and first != few


def test_the_choice_is_uniform_and_another_for_another_seed():
    counts = torch.zeros(10)
    sets = []
    for seed in range(50):
        index = kept([torch.arange(N)], seed=seed).compute()[:, 0].long() // 2
        counts += (index // (N // 10)).bincount(minlength=10)
        sets.append(set(index.tolist()))
    deviation = (50 * LIMIT * 0.1 * 0.9 * (1 - LIMIT / N)) ** 0.5
    assert (counts - 50 * LIMIT / 10).abs().max() < 4 * deviation
    overlaps = [len(a & b) for a, b in itertools.pairwise(sets)]
    assert abs(sum(overlaps) / len(overlaps) - LIMIT**2 / N) < 2


def test_rows_that_were_given_stay_as_they_are():
    rows, given = BoundedRows(10), ROWS.clone()
    rows.update(given[:10])
    rows.update(given[10:])
    assert torch.equal(given, ROWS)
    by_index = kept([torch.arange(N)], 10).compute()
    assert torch.equal(rows.compute(), by_index)  # indices follow on where none are given
    rows.reset()
    rows.update(ROWS[:3])
    assert torch.equal(rows.compute(), ROWS[:3])
