"""What every router keeps, and routed networks."""

import numpy as np
import pytest
import torch

from dtr_lightning.config.registry import valid_choices
from dtr_lightning.errors import UserError
from dtr_lightning.models import DiT
from dtr_lightning.routing import (
    CDTR,
    DTR,
    ERCDT,
    RTR,
    BlockPermutedDTR,
    FixedMasks,
    FreeWindow,
    MaxRoaming,
    NoRouting,
    Router,
    SharedCore,
    Switch,
    TimeShuffledDTR,
    WeightsOnly,
)
from dtr_lightning.routing.controls import DTRControl
from dtr_lightning.routing.masks import active_channels, window
from tests.conftest import counting_graphs, shipped, slow_except

WIDTHS = [24, 24, 24]
STATEFUL = ("MaxRoaming", "Switch")


@pytest.fixture
def make(tmp_path):
    """Returns a function that makes a router by its class, with masks in a file where needed."""

    def router(cls, **options):
        if cls is FixedMasks:
            tables = np.random.default_rng(0).random((3, 1000, 24)) < 0.5
            np.save(tmp_path / "masks.npy", tables)
            options = {"path": str(tmp_path / "masks.npy"), **options}
        return cls(**options)

    return router


def small(router, **options):
    torch.manual_seed(0)
    sizes = {"input_size": 4, "patch_size": 2, "in_channels": 1, "hidden_size": 24, "depth": 3}
    return DiT(**(sizes | {"num_heads": 2, "num_classes": 3, "router": router} | options))


def open_gates(model):
    """Gives every parameter a random value: at initialisation the blocks do nothing."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.2, generator=generator)
    return model


def assert_same_routes(router, t, other):
    """Asserts that every block reads the same at two tensors of tasks."""
    emb = torch.randn(len(t), 24, generator=torch.Generator().manual_seed(3))
    z = torch.randn(len(t), 2, 24, generator=torch.Generator().manual_seed(4))
    for a, b in zip(router(t, emb), router(other, emb), strict=True):
        assert torch.equal(a(z), b(z))


def inputs(n=5):
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(n, 1, 4, 4, generator=generator)
    return x, torch.tensor([0, 1, 500, 998, 999])[:n], torch.arange(n) % 3


@pytest.mark.parametrize("cls", slow_except(shipped(Router).values(), DTR))
def test_compiles_into_one_graph_for_all_t(make, cls):
    model = open_gates(small(make(cls)))
    compiled, graphs = counting_graphs(model)
    x, t, y = inputs()
    for shift in (0, 3, 700):
        moved = (t + shift) % 1000
        torch.testing.assert_close(compiled(x, moved, y), model(x, moved, y))
    assert len(graphs) == 1
    for shift in (0.0, 0.25, 0.9):
        moved = (t + shift).clamp(max=999)
        torch.testing.assert_close(compiled(x, moved, y), model(x, moved, y))
    assert len(graphs) == 2  # one more, for fractional t


@pytest.mark.parametrize("cls", shipped(Router).values())
class TestEveryRouter:
    def test_leaves_the_global_random_state_and_adds_no_state(self, make, cls):
        torch.manual_seed(3)
        before = torch.random.get_rng_state()
        router = make(cls)
        router.bind(1000, WIDTHS, 24)
        assert torch.equal(torch.random.get_rng_state(), before)
        assert bool(router.state_dict()) is (cls.__name__ in STATEFUL)

    def test_starts_from_the_weights_of_the_plain_network(self, make, cls):
        plain, routed = small(None), dict(small(make(cls)).named_parameters())
        for name, parameter in plain.named_parameters():
            assert torch.equal(routed.pop(name), parameter), name
        assert all(name.startswith("router.") for name in routed)
        assert bool(routed) is (cls is Switch)

    def test_is_a_function_of_its_arguments(self, make, cls):
        a, b = open_gates(small(make(cls))), open_gates(small(make(cls)))
        assert torch.equal(a(*inputs()), b(*inputs()))

    def test_every_parameter_gets_a_finite_gradient(self, make, cls):
        model = open_gates(small(make(cls)))
        model(*inputs()).square().sum().backward()
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                assert parameter.grad.isfinite().all(), name
                assert parameter.grad.abs().sum() > 0, name

    def test_rows_of_a_batch_are_independent(self, make, cls):
        model = open_gates(small(make(cls)))
        x, t, y = inputs()
        alone = torch.cat([model(x[i : i + 1], t[i : i + 1], y[i : i + 1]) for i in range(5)])
        torch.testing.assert_close(model(x, t, y), alone, rtol=1e-5, atol=1e-5)

    def test_a_fractional_t_that_is_whole_is_that_task(self, make, cls):
        router = make(cls)
        router.bind(1000, WIDTHS, 24)
        assert_same_routes(router, torch.arange(1000), torch.arange(1000.0))

    def test_recomputing_the_forward_leaves_gradients_unchanged(self, make, cls):
        def gradients(recompute):
            model = open_gates(small(make(cls)))
            if recompute:
                for block in model.blocks:
                    block.forward = _checkpointed(block.forward)
            loss = model(*inputs()).square().sum()
            x, t, y = inputs()
            model(x, t.flip(0), y)  # a second forward before the backward
            loss.backward()
            return [p.grad for p in model.parameters() if p.requires_grad]

        for a, b in zip(gradients(False), gradients(True), strict=True):
            assert torch.equal(a, b)


def _checkpointed(forward):
    def run(*arguments):
        return torch.utils.checkpoint.checkpoint(forward, *arguments, use_reentrant=False)

    return run


@pytest.mark.parametrize("router", [DTR(beta=1.0), RTR(beta=1.0)], ids=["DTR", "RTR"])
def test_beta_one_is_no_routing(router):
    plain, routed = open_gates(small(NoRouting())), open_gates(small(router))
    assert torch.equal(plain(*inputs()), routed(*inputs()))


@pytest.mark.parametrize(
    "router, same",
    [
        *((router, True) for router in (DTR(), RTR(shared=True), CDTR(), ERCDT(), FreeWindow())),
        *((router, True) for router in (WeightsOnly(shared=True), TimeShuffledDTR())),
        *((router, False) for router in (RTR(), BlockPermutedDTR(), SharedCore())),
        (MaxRoaming(), False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_blocks_share_one_table_or_each_has_its_own(router, same):
    router.bind(1000, [24, 24, 40], 24)
    assert torch.equal(router.table(0), router.table(1)) is same
    assert router.table(2).shape == (1000, 40)
    assert router.tables.dtype is torch.bool
    assert router.tables.shape[1] == (24 + 40 if same else 24 + 24 + 40)


@pytest.mark.parametrize(
    "cls", [RTR, SharedCore, WeightsOnly, TimeShuffledDTR, BlockPermutedDTR, MaxRoaming]
)
def test_random_tables_are_a_function_of_the_seed(cls):
    first, again, other = cls(seed=1), cls(seed=1), cls(seed=2)
    for router in (first, again, other):
        router.bind(1000, WIDTHS, 24)
    assert torch.equal(first.tables, again.tables)
    assert not torch.equal(first.tables, other.tables)


@pytest.mark.parametrize(
    "cls", [DTR, RTR, CDTR, FreeWindow, MaxRoaming, *valid_choices(DTRControl).values()]
)
@pytest.mark.parametrize("beta", [0.5, 0.7, 1.0])
def test_every_task_reads_c_beta_channels(cls, beta):
    router = cls(beta=beta)
    router.bind(1000, [90, 24], 24)
    for block, channels in enumerate((90, 24)):
        assert (router.table(block).sum(1) == active_channels(channels, beta)).all()


@pytest.mark.parametrize(
    "cls", [DTR, CDTR, ERCDT, FreeWindow, TimeShuffledDTR], ids=lambda c: c.__name__
)
def test_masks_take_one_bool_table_per_distinct_width(cls):
    router = cls()
    router.bind(1000, [24, 32, 24, 32], 24)
    assert sum(b.nbytes for b in router.buffers()) == 1000 * (24 + 32)


def test_a_block_reads_masked_channels_as_zero_and_writes_all():
    router = DTR(alpha=1, beta=0.5)
    router.bind(1000, [24], 24)
    t = torch.tensor([0, 999])
    (route,) = router(t, torch.zeros(2, 24))
    z = torch.ones(2, 4, 24)
    assert torch.equal(route(z)[:, 0] > 0, router.table(0)[t])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mixed", [False, True])
def test_masks_keep_the_dtype_of_the_features(dtype, mixed):
    router = DTR()
    router.bind(1000, [24], 24)
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        (route,) = router(torch.tensor([3]), torch.zeros(1, 24, dtype=dtype))
        assert route(torch.ones(1, 4, 24, dtype=dtype)).dtype is dtype


def test_routes_follow_the_channel_axis_of_images():
    router = DTR(alpha=1, beta=0.5)
    router.bind(1000, [24], 24, channel_dim=1)
    (route,) = router(torch.tensor([999]), torch.zeros(1, 24))
    assert torch.equal(route(torch.ones(1, 24, 2, 3))[0, :, 1, 2] > 0, router.table(0)[999])


def test_masks_of_a_file_must_fit(tmp_path):
    np.save(tmp_path / "masks.npy", np.ones((1, 1000, 24), dtype=bool))
    with pytest.raises(UserError, match="masks for 1 blocks of 24 channels"):
        small(FixedMasks(str(tmp_path / "masks.npy")))
    with pytest.raises(UserError, match=r"1000 tasks.* 10 tasks"):
        FixedMasks(str(tmp_path / "masks.npy")).bind(10, [24], 24)
    with pytest.raises(UserError, match="cannot be read"):
        FixedMasks(str(tmp_path / "none.npy"))


@pytest.mark.parametrize("value", [0.3, np.nan, 2, "on"])
def test_masks_of_a_file_are_0_or_1(tmp_path, value):
    np.save(tmp_path / "masks.npy", np.full((1, 10, 24), value))
    with pytest.raises(UserError, match="other than 0 and 1"):
        FixedMasks(str(tmp_path / "masks.npy"))
    np.savez(tmp_path / "masks.npz", masks=np.ones((1, 10, 24)))
    with pytest.raises(UserError, match="one array"):
        FixedMasks(str(tmp_path / "masks.npz"))


def test_time_shuffled_dtr_deals_out_the_same_masks():
    plain, shuffled = DTR(), TimeShuffledDTR()
    for router in (plain, shuffled):
        router.bind(1000, [96], 96)
    expected, found = plain.table(0), shuffled.table(0)
    assert not torch.equal(found, expected)
    offsets = found.int().argmax(1)
    assert torch.equal(offsets.sort().values, expected.int().argmax(1))
    assert torch.equal(found[offsets.argsort(stable=True)], expected)


def test_block_permuted_dtr_keeps_overlaps_within_a_block_but_not_across():
    plain, permuted = DTR(), BlockPermutedDTR()
    for router in (plain, permuted):
        router.bind(1000, [96, 96], 96)
    expected = plain.table(0).float()
    a, b = (permuted.table(block).float() for block in (0, 1))
    assert torch.equal(a @ a.T, expected @ expected.T)
    assert torch.equal(b @ b.T, expected @ expected.T)
    assert not torch.equal(a @ b.T, expected @ expected.T)


@pytest.mark.parametrize("per_block", [False, True])
def test_blocks_agree_on_the_shared_core_or_on_nothing(per_block):
    router = SharedCore(core=0.75, per_block=per_block)
    router.bind(1000, [64, 64, 96], 64)
    tables = [router.table(block) for block in range(3)]
    cores = [table.all(0) for table in tables]
    assert [core.sum().item() for core in cores] == [48, 48, 72]
    assert torch.equal(cores[0], cores[1]) is not per_block
    assert not torch.equal(tables[0], tables[1])
    again = SharedCore(core=0.75, per_block=per_block, seed=1)
    again.bind(1000, [64], 64)
    assert not torch.equal(again.table(0), tables[0])


def test_fractional_windows_follow_the_formula():
    tau = np.sort(np.random.default_rng(0).random(200).astype(np.float32))
    t = torch.from_numpy(tau * 999).float()
    router = DTR(alpha=2.5)
    router.bind(1000, [384], 384)
    found = router.rows(t)
    assert (found.sum(1) == 307).all()
    assert found.int().argmax(1).tolist() == [round(77 * (x / 999) ** 2.5) for x in t.tolist()]
    text = DTR(alpha=2.5, formula="eq4")
    text.bind(1000, [384], 384)
    start = [round(77 * (x / 1000) ** 2.5) for x in t.tolist()]
    stop = [round(77 * ((x + 1) / 1000) ** 2.5) + 307 for x in t.tolist()]
    assert torch.equal(text.rows(t), window(torch.tensor(start), torch.tensor(stop), 384))


@pytest.mark.parametrize("router", [RTR(), CDTR(clusters=7), TimeShuffledDTR(), MaxRoaming()])
def test_tables_without_a_formula_read_the_nearest_task(router):
    router.bind(1000, WIDTHS, 24)
    t = torch.tensor([0.4, 0.6, 142.4, 142.7, 998.6])
    assert_same_routes(router, torch.tensor([0, 1, 142, 143, 999]), t)


def test_a_free_window_moves_where_its_knots_rise():
    router = FreeWindow([0, 0, 1, 1], beta=0.5)
    router.bind(10, [24], 24)
    offsets = router.table(0).int().argmax(1)
    assert offsets.tolist() == [0, 0, 0, 0, 4, 8, 12, 12, 12, 12]


@pytest.mark.parametrize(
    "make_wrong, message",
    [
        (lambda: CDTR(clusters=9).bind(8, [24], 24), "clusters must lie in 1 to 8"),
        (lambda: small(CDTR(clusters=0)), "clusters must lie in 1 to 1000"),
        (lambda: small(ERCDT(clusters=1001)), "clusters must lie in 1 to 1000"),
        (lambda: small(ERCDT(clusters=13)), "24 channels, .* valid: 1 to 12"),
        (lambda: small(MaxRoaming(clusters=0)), "clusters must lie in 1 to 1000"),
        (lambda: MaxRoaming(interval=0), "interval must be at least 1"),
        (lambda: small(MaxRoaming(clusters=1)), "cannot cover 24 channels; valid: .* at least 2"),
        (lambda: WeightsOnly(alpha=0), "alpha must be a positive"),
        (lambda: SharedCore(core=0.9), "core must lie in 0 to beta = 0.8"),
        (lambda: SharedCore(core=float("nan")), "core must lie in"),
        (lambda: SharedCore(beta=0), "beta must lie in"),
        (lambda: TimeShuffledDTR(beta=2), "beta must lie in"),
        (lambda: FreeWindow([0.5]), "knots must be two or more"),
        (lambda: FreeWindow([0, 0.6, 0.5]), "none below the one before"),
        (lambda: FreeWindow([-0.1, 1]), "numbers in"),
        (lambda: FreeWindow([0, float("nan"), 1]), "numbers in"),
        (lambda: FreeWindow([0, float("inf")]), "numbers in"),
    ],
)
def test_a_mistake_is_told_with_what_is_valid(make_wrong, message):
    with pytest.raises(UserError, match=message):
        make_wrong()
