"""The laws of maximum roaming: what its masks keep, and that they belong to (seed, step) alone."""

import copy

import pytest
import torch

from dtr_lightning.routing import MaxRoaming

WIDTHS = [20, 30]
ACTIVE = [16, 24]


def embed(t):
    return torch.zeros(len(t), 8)


def roaming(**options):
    router = MaxRoaming(**{"clusters": 5, "interval": 10, "seed": 3, **options})
    router.bind(50, WIDTHS, 8)
    return router


def tables(router):
    return [router.table(block)[::10] for block in range(2)]


def same_state(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_starts_with_every_channel_in_some_mask():
    for table, active in zip(tables(roaming()), ACTIVE, strict=True):
        assert table.any(0).all()
        assert (table.sum(1) == active).all()


def test_swaps_one_channel_per_mask_and_block_and_never_returns():
    router = roaming()
    before = tables(router)
    had = [table.clone() for table in before]
    for swap in range(1, 8):
        router.advance(10 * swap - 1, embed)
        assert all(torch.equal(a, b) for a, b in zip(before, tables(router), strict=True))
        router.advance(10 * swap, embed)
        for block, (old, new) in enumerate(zip(before, tables(router), strict=True)):
            gained = new & ~old
            moves = swap <= WIDTHS[block] - ACTIVE[block]
            assert (gained.sum(1) == moves).all()
            assert (new.sum(1) == ACTIVE[block]).all()
            assert not (gained & had[block]).any()
            had[block] |= new
        before = tables(router)
    assert had[0].all() and had[1].all()  # the first block stopped two swaps earlier
    assert router.visited.all()
    router.advance(10_000, embed)
    assert all(torch.equal(a, b) for a, b in zip(before, tables(router), strict=True))


def test_swaps_are_uniform_over_what_may_be_swapped():
    router = MaxRoaming(beta=0.5, interval=1)
    router.bind(20_000, [10], 8)
    old = router.table(0).clone()
    router.advance(1, embed)
    new = router.table(0)
    for moved, pool in ((new & ~old, ~old), (old & ~new, old)):
        share = moved.sum(0) / pool.sum(0)
        assert (share - 0.2).abs().max() < 0.02  # five deviations


def test_is_a_function_of_seed_and_step():
    walked, jumped, back, other = roaming(), roaming(), roaming(), roaming(seed=4)
    for step in range(41):
        walked.advance(step, embed)
    back.advance(55, embed)
    for router in (jumped, back, other):
        router.advance(40, embed)
    assert same_state(walked, jumped) and same_state(walked, back)
    assert not same_state(walked, other)


def test_survives_a_checkpoint_in_the_middle(tmp_path):
    whole, resumed, stale = roaming(), roaming(), roaming()
    whole.advance(30, embed)
    torch.save(whole.state_dict(), tmp_path / "state.pt")
    stale.advance(50, embed)
    for router in (resumed, stale):
        router.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
        assert same_state(router, whole)
    whole.advance(50, embed)
    for router in (resumed, copy.deepcopy(resumed), stale):
        router.advance(50, embed)
        assert same_state(router, whole)


def test_masks_change_in_place():
    router = roaming()
    places = [buffer.data_ptr() for buffer in router.buffers()]
    router.advance(30, embed)
    assert [buffer.data_ptr() for buffer in router.buffers()] == places


def test_compiled_routes_follow_the_masks():
    router = roaming()
    graphs = []

    def count(graph, example):
        graphs.append(graph)
        return graph.forward

    def read(t, z):
        return [route(z[..., :width]) for route, width in zip(router(t, z), WIDTHS, strict=True)]

    compiled = torch.compile(read, fullgraph=True, backend=count)
    t, z = torch.tensor([0, 10, 49]), torch.ones(3, 30)
    for step in (0, 20, 60):
        router.advance(step, embed)
        for block, found in enumerate(compiled(t, z)):
            assert torch.equal(found > 0, router.table(block)[t])
    assert len(graphs) == 1


@pytest.mark.parametrize("steps, interval", [(100_000, 584), (400_000, 2337), (100, 1)])
def test_the_default_interval_ends_all_swaps_within_the_run(steps, interval):
    router = MaxRoaming(clusters=8, steps=steps)
    router.bind(1000, [768, 384], 8)
    assert router.interval == interval
    router.advance(steps, embed)
    assert bool(router.visited.all()) is (steps > 154)


def test_without_slack_nothing_moves():
    router = roaming(beta=1.0, interval=None)
    router.advance(10**6, embed)
    assert router.tables.all() and router.swaps == 0
