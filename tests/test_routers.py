"""What every router keeps, and routed networks."""

import numpy as np
import pytest
import torch

from dtr_lightning.config import valid_choices
from dtr_lightning.errors import UserError
from dtr_lightning.models import DiT
from dtr_lightning.routers import DTR, RTR, FixedMasks, NoRouting, Router

WIDTHS = [24, 24, 24]


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


def inputs(n=5):
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(n, 1, 4, 4, generator=generator)
    return x, torch.tensor([0, 1, 500, 998, 999])[:n], torch.arange(n) % 3


@pytest.mark.parametrize("cls", valid_choices(Router).values())
class TestEveryRouter:
    def test_leaves_the_global_random_state_and_adds_no_state(self, make, cls):
        torch.manual_seed(3)
        before = torch.random.get_rng_state()
        router = make(cls)
        router.build(WIDTHS, 24)
        assert torch.equal(torch.random.get_rng_state(), before)
        assert not router.state_dict()

    def test_starts_from_the_weights_of_the_plain_network(self, make, cls):
        plain, routed = small(None), small(make(cls))
        for (name, a), b in zip(plain.named_parameters(), routed.parameters(), strict=True):
            assert torch.equal(a, b), name

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

    def test_compiles_into_one_graph_for_all_t(self, make, cls):
        model = open_gates(small(make(cls)))
        graphs = []

        def count(graph, example):
            graphs.append(graph)
            return graph.forward

        compiled = torch.compile(model, fullgraph=True, backend=count)
        x, t, y = inputs()
        for shift in (0, 3, 700):
            moved = (t + shift) % 1000
            torch.testing.assert_close(compiled(x, moved, y), model(x, moved, y))
        assert len(graphs) == 1

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


def test_dtr_is_the_same_in_all_blocks_and_rtr_is_not_unless_shared():
    for router, same in ((DTR(), True), (RTR(), False), (RTR(shared=True), True)):
        router.build(WIDTHS, 24)
        assert torch.equal(router.table(0), router.table(1)) is same


def test_a_block_reads_masked_channels_as_zero_and_writes_all():
    router = DTR(alpha=1, beta=0.5)
    router.build([24], 24)
    t = torch.tensor([0, 999])
    (route,) = router(t, torch.zeros(2, 24))
    z = torch.ones(2, 4, 24)
    assert torch.equal(route(z)[:, 0] > 0, router.table(0)[t])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_masks_keep_the_dtype_of_the_features(dtype):
    router = DTR()
    router.build([24], 24)
    (route,) = router(torch.tensor([3]), torch.zeros(1, 24))
    assert route(torch.ones(1, 4, 24, dtype=dtype)).dtype is dtype


def test_routes_follow_the_channel_axis_of_images():
    router = DTR(alpha=1, beta=0.5)
    router.build([24], 24, channel_dim=1)
    (route,) = router(torch.tensor([999]), torch.zeros(1, 24))
    assert torch.equal(route(torch.ones(1, 24, 2, 3))[0, :, 1, 2] > 0, router.table(0)[999])


def test_masks_of_a_file_must_fit(tmp_path):
    np.save(tmp_path / "masks.npy", np.ones((1, 1000, 24), dtype=bool))
    with pytest.raises(UserError, match="masks for 1 blocks of 24 channels"):
        small(FixedMasks(str(tmp_path / "masks.npy")))
    with pytest.raises(UserError, match="10 tasks"):
        FixedMasks(str(tmp_path / "masks.npy"), tasks=10)
    with pytest.raises(UserError, match="cannot be read"):
        FixedMasks(str(tmp_path / "none.npy"))
