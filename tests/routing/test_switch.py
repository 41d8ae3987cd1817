"""Switch-DiT: the official network's numbers, and what the router and its matching keep."""

import copy
import itertools

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from dtr_lightning.errors import UserError
from dtr_lightning.models import DiT
from dtr_lightning.routing import NoRouting, Switch, masks
from dtr_lightning.routing.switch import costs, jsd, match
from tests.conftest import GOLDEN, counting_graphs, golden, max_relative

WIDTHS = [16, 24, 8]
SIZES = ("input_size", "patch_size", "in_channels", "hidden_size", "depth", "num_heads")


@pytest.fixture
def official():
    """Returns the network with the official weights, the stored matching, arrays and numbers."""
    numbers = golden("switch/switch_cond4.json")
    config = numbers["config"]
    arrays = golden("switch/switch_cond4.npz")
    a = {key: torch.from_numpy(np.asarray(arrays[key])) for key in arrays}
    router = Switch(config["num_experts"], config["k"], config["w_JSD"])
    options = {key: config[key] for key in (*SIZES, "num_classes", "learn_sigma")}
    model = DiT(**options, class_dropout_prob=0.0, router=router)
    weights = load_file(GOLDEN / "switch/switch_cond4.safetensors")
    derived = {"full_time": torch.arange(1000), "prior._unit_mapping": a["prior_mask"]}
    model.load_state_dict({key: value.float() for key, value in weights.items()} | derived)
    router.assignment.copy_(a["assigned_prior_column"])
    return model, a, numbers


def check_gradients(model, expected):
    floor = 1e-4 * max(e["norm"] for e in expected.values())
    for name, e in expected.items():
        key = f"router.{name}" if name.startswith("routers.") else name
        grad = model.get_parameter(key).grad.double()
        scale = 1e-4 * max(e["norm"], floor)
        assert abs(grad.norm().item() - e["norm"]) <= scale, name
        first = torch.tensor(e["first5"], dtype=torch.float64)
        assert (grad.flatten()[: len(first)] - first).abs().max() <= scale, name


class TestOfficialNumbers:
    @pytest.mark.parametrize("mode", ["eval", "train"])
    def test_output(self, official, mode):
        model, a, _ = official
        out = getattr(model, mode)()(a["x"], a["t"], a["y"])
        assert max_relative(out.detach(), a[f"out_{mode}"]) < 1e-5

    def test_auxiliary_loss_and_its_gradients(self, official):
        model, a, numbers = official
        aux = model.router.penalty(a["t"], model.embed)
        assert aux.item() == pytest.approx(a["aux_loss"].item(), rel=1e-5)
        aux.backward()
        check_gradients(model, numbers["aux_only"]["grads"])

    def test_gradients_of_output_and_auxiliary_loss(self, official):
        model, a, numbers = official
        out = model(a["x"], a["t"], a["y"])
        loss = (out * a["probe"]).sum() + model.router.penalty(a["t"], model.embed)
        assert loss.item() == pytest.approx(numbers["probe_plus_aux"]["loss"], rel=1e-4)
        loss.backward()
        check_gradients(model, numbers["probe_plus_aux"]["grads"])

    def test_gates_and_targets(self, official):
        model, a, _ = official
        router = model.router
        p = router.probabilities(model.embed(torch.arange(1000))).detach()
        assert max_relative(p.transpose(0, 1), a["gate_probs_all_t"]) < 1e-5
        target = router.prior[a["t"]][:, router.assignment] / (2 * 3)
        assert max_relative(target, a["prior_target_batch"]) < 1e-6

    def test_soft_masks(self, official):
        model, a, _ = official
        routes = model.router(a["t"], model.embed(a["t"]))
        for route, z, mask in zip(routes, a["block_inputs"], a["soft_masks"], strict=True):
            assert max_relative(route(z).detach(), z * mask) < 1e-5

    def test_cost_matrix_and_its_optimum(self, official):
        model, a, _ = official
        gates = a["gate_topk_all_t"].transpose(0, 1).flatten(1)
        cost = costs(gates, a["prior_mask"])
        assert torch.equal(cost, a["cost_matrix"])
        assert torch.equal(model.router.prior, a["prior_mask"].bool())
        model.router.advance(0, model.embed)
        reached = cost[torch.arange(9), model.router.assignment].sum()
        assert reached == a["cost_optimum"]


def test_divergence_is_the_official_one():
    a = golden("switch/jsd_and_priors.npz")
    rows = jsd(torch.from_numpy(a["a"]), torch.from_numpy(a["b"]))
    assert max_relative(rows, a["jsd_rows"]) < 1e-5
    assert rows.mean().item() == pytest.approx(a["jsd_mean"].item(), rel=1e-5)


@pytest.mark.parametrize(
    ("blocks", "experts", "k", "tasks"),
    [
        (12, 3, 2, 1000),
        (24, 3, 2, 1000),
        (28, 3, 2, 1000),
        (3, 4, 1, 100),
        (6, 4, 3, 250),
        (2, 8, 2, 16),
        (5, 5, 3, 50),
    ],
)
def test_prior_is_the_official_one(blocks, experts, k, tasks):
    router = Switch(experts, k)
    router.bind(tasks, [4] * blocks, 4)
    packed = golden("switch/jsd_and_priors.npz")[f"prior_N{blocks}_M{experts}_k{k}_T{tasks}"]
    table = np.unpackbits(packed, axis=1, count=blocks * experts)
    assert torch.equal(router.prior, torch.from_numpy(table).bool())


def small(router):
    torch.manual_seed(0)
    return DiT(4, 2, 1, 24, 3, 2, num_classes=3, router=router)


def opened(module, seed=1):
    """Gives every parameter a random value: at initialisation experts and blocks do nothing."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.data.normal_(0, 0.2, generator=generator)
    return module


def built(widths=WIDTHS, channel_dim=-1, tasks=1000, **options):
    router = Switch(**options)
    router.bind(tasks, widths, 12, channel_dim)
    return router


def embed(t):
    """Returns an embedding (N, 12) of timesteps that tells them apart."""
    return 3 * torch.cos(t[:, None] / 1000 * torch.arange(1, 13))


def inputs():
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(5, 1, 4, 4, generator=generator)
    return x, torch.tensor([0, 1, 500, 998, 999]), torch.arange(5) % 3


def test_starts_as_the_plain_network():
    plain, routed = small(NoRouting()), small(Switch(seed=7))
    for module in (plain, routed):
        opened(module.blocks)
        opened(module.final_layer)
    assert torch.equal(plain(*inputs()), routed(*inputs()))


def test_sum_starts_as_the_kept_share_of_probability():
    router = built(mask="sum")
    t = torch.tensor([3, 900])
    kept = router.probabilities(embed(t)).topk(2).values.sum(-1)  # (N, blocks)
    for block, route in enumerate(router(t, embed(t))):
        z = torch.randn(2, 5, WIDTHS[block])
        torch.testing.assert_close(route(z), z * kept[:, block, None, None])


def test_sum_is_residual_without_the_one():
    residual, paper = opened(built()), opened(built(mask="sum"))
    t, z = torch.tensor([3, 900]), torch.randn(2, 5, 16)
    torch.testing.assert_close(
        residual(t, embed(t))[0](z), z + paper(t, embed(t))[0](z), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize(("experts", "k"), [(3, 2), (4, 1), (2, 2), (1, 1)])
def test_mask_is_that_of_k_experts_one_by_one(experts, k):
    router = opened(built(experts=experts, k=k))
    t = torch.tensor([0, 400, 999])
    p = router.probabilities(embed(t))
    for block, route in enumerate(router(t, embed(t))):
        maps, z = router.routers[block].experts, torch.randn(3, 5, WIDTHS[block])
        for n in range(3):
            mask = torch.ones_like(z[n])
            for j in p[n, block].argsort(descending=True)[:k]:
                mask = mask + p[n, block, j] * (z[n] @ maps.w[j] + maps.b[j])
            torch.testing.assert_close(route(z)[n], mask * z[n], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("space", [(6,), (2, 3)], ids=["tokens", "images"])
def test_channels_first_equals_channels_last(space):
    last, first = opened(built()), opened(built(channel_dim=1))
    t = torch.tensor([3, 900])
    for a, b, width in zip(last(t, embed(t)), first(t, embed(t)), WIDTHS, strict=True):
        z = torch.randn(2, 6, width)
        images = z.mT.reshape(2, width, *space)
        torch.testing.assert_close(b(images).flatten(2).mT, a(z), rtol=1e-5, atol=1e-5)
        strided = z.view(2, *space, width).movedim(-1, 1)  # channels_last in memory
        torch.testing.assert_close(b(strided), b(images))


@pytest.mark.parametrize("features", [torch.float32, torch.bfloat16])
def test_features_keep_their_dtype_under_autocast(features):
    router = opened(built())
    t, z = torch.tensor([3, 900]), torch.randn(2, 5, 16).to(features)
    with torch.autocast("cpu", torch.bfloat16):
        out = router(t, embed(t))[0](z)
    assert out.dtype is features
    expected = router(t, embed(t))[0](z.float())
    torch.testing.assert_close(out.float(), expected, rtol=0.05, atol=0.05)


def test_rows_of_a_batch_are_independent():
    model = opened(small(Switch()))
    x, t, y = inputs()
    alone = torch.cat([model(x[i : i + 1], t[i : i + 1], y[i : i + 1]) for i in range(5)])
    torch.testing.assert_close(model(x, t, y), alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"mask": "sum"}, {"experts": 1, "k": 1}])
def test_every_parameter_gets_a_finite_gradient(options):
    model = opened(small(Switch(**options)))
    x, t, y = inputs()
    (model(x, t, y).square().sum() + model.router.penalty(t, model.embed)).backward()
    for name, parameter in model.router.named_parameters():
        assert parameter.grad.isfinite().all(), name
        only = "f_gate" in name and options.get("experts") == 1  # the softmax of one is constant
        assert (parameter.grad.abs().sum() > 0) is not only, name


def test_penalty_reaches_gates_and_embedding_but_no_expert():
    model = opened(small(Switch()))
    model.router.penalty(inputs()[1], model.embed).backward()
    assert all(p.grad.abs().sum() > 0 for p in model.t_embedder.parameters())
    for name, parameter in model.router.named_parameters():
        assert (parameter.grad is None) is ("experts" in name)


def test_compiles_into_one_graph_for_all_t():
    model = opened(small(Switch()))
    compiled, graphs = counting_graphs(model)
    x, t, y = inputs()
    for shift in (0, 3, 700):
        moved = (t + shift) % 1000
        torch.testing.assert_close(compiled(x, moved, y), model(x, moved, y))
        model.router.advance(shift, model.embed)
    assert len(graphs) == 1


class TestDivergence:
    def test_zero_for_equal_rows_and_only_for_them(self):
        a = torch.rand(6, 9).softmax(-1)
        assert not jsd(a, a).any()
        assert (jsd(a, a.roll(1, 0)) > 0).all()

    def test_symmetric_and_log_two_for_disjoint_rows(self):
        a, b = torch.rand(2, 6, 9).softmax(-1)
        torch.testing.assert_close(jsd(a, b), jsd(b, a))
        disjoint = jsd(torch.tensor([[1.0, 0]]), torch.tensor([[0.0, 1]]))
        assert disjoint.item() == pytest.approx(np.log(2), abs=1e-4)

    def test_penalty_is_zero_where_gates_are_the_prior(self):
        router = built(experts=3, k=3)
        t = torch.tensor([0, 500, 999])
        assert router.penalty(t, embed).item() > 1e-4
        for parameter in router.parameters():
            parameter.data.zero_()
        assert router.penalty(t, embed).item() == pytest.approx(0, abs=1e-7)

    def test_penalty_scales_with_its_weight_and_is_a_mean(self):
        t = torch.tensor([0, 500, 999])
        one, two, none = (opened(built(weight=weight)) for weight in (1, 2, 0))
        whole = one.penalty(t, embed)
        torch.testing.assert_close(two.penalty(t, embed), 2 * whole)
        assert none.penalty(t, embed) == 0
        singly = [one.penalty(t[i : i + 1], embed) for i in range(3)]
        torch.testing.assert_close(torch.stack(singly).mean(), whole)

    def test_continuous_time_takes_the_prior_of_the_nearest_task(self):
        router = opened(built())
        t = torch.tensor([0.4, 400.6, 998.9])
        fixed = embed(t).detach()
        a = router.penalty(t, lambda t: fixed)
        b = router.penalty(torch.tensor([0, 401, 999]), lambda t: fixed)
        assert a.item() == b.item()


class TestMatching:
    def test_optimal_and_one_to_one(self):
        rng = np.random.default_rng(0)
        for size in (1, 2, 4, 6):
            cost = rng.integers(0, 4, (size, size)).astype(np.float32)  # with many ties
            found = match(cost, rng)
            assert sorted(found) == list(range(size))
            best = min(cost[range(size), p].sum() for p in itertools.permutations(range(size)))
            assert cost[range(size), found].sum() == best

    def test_ties_fall_by_chance(self):
        found = {tuple(match(np.zeros((3, 3)), np.random.default_rng(i))) for i in range(60)}
        assert len(found) == 6

    def test_costs_count_the_tasks_that_differ(self):
        gates, prior = torch.rand(2, 50, 7).round()
        by_hand = (gates[:, :, None] - prior[:, None, :]).abs().sum(0)
        assert torch.equal(costs(gates, prior), by_hand)

    def test_starts_as_the_identity_and_lowers_the_cost(self):
        router = opened(built())
        p = router.probabilities(embed(torch.arange(1000)))
        gates = (p >= p.topk(2).values[..., -1:]).flatten(1)
        cost = costs(gates, router.prior)
        columns = torch.arange(9)
        assert torch.equal(router.assignment, columns)
        before = cost.trace()
        router.advance(0, embed)
        assert sorted(router.assignment.tolist()) == columns.tolist()
        assert cost[columns, router.assignment].sum() < before

    def test_a_function_of_seed_and_step_made_every_few_steps(self):
        def states(router, steps):
            router = copy.deepcopy(router)
            before = torch.random.get_rng_state()
            for step in steps:
                router.advance(step, embed)
            assert torch.equal(torch.random.get_rng_state(), before)
            return router.assignment

        for parameter in (router := built(match_every=3)).parameters():
            parameter.data.zero_()  # all gates equal: the matching is all ties
        assert torch.equal(states(router, [3]), states(router, [0, 1, 2, 3, 4, 5]))
        assert torch.equal(states(router, [1, 2]), torch.arange(9))
        assert not torch.equal(states(router, [3]), states(router, [6]))
        other = copy.deepcopy(router)
        other.seed = 1
        assert not torch.equal(states(router, [3]), states(other, [3]))

    def test_not_made_where_the_prior_has_no_weight(self):
        router = opened(built(weight=0))
        router.advance(0, embed)
        assert torch.equal(router.assignment, torch.arange(9))


def test_state_survives_a_round_trip_and_the_forward_leaves_it():
    model = opened(small(Switch()))
    model.router.advance(5, model.embed)
    kept = copy.deepcopy(model.state_dict())
    other = small(Switch(seed=9))
    other.load_state_dict(kept)
    other(*inputs())
    other.router.penalty(inputs()[1], other.embed)
    assert list(other.state_dict()) == list(kept)
    assert all(torch.equal(value, kept[key]) for key, value in other.state_dict().items())
    assert kept["router.assignment"].dtype is torch.int64
    assert all(key.startswith("router.") for key in kept if "rout" in key)


def test_official_names_of_another_size_are_refused():
    state = small(Switch()).state_dict()
    official = {key.removeprefix("router."): value for key, value in state.items()}
    del official["assignment"], official["routers.2.experts.b"]
    with pytest.raises(RuntimeError, match=r"Missing key.*router\.routers\.2\.experts\.b"):
        small(Switch()).load_state_dict(official)
    with pytest.raises(RuntimeError, match=r"Unexpected key.*router\.routers\.0"):
        small(NoRouting()).load_state_dict(official)


def test_seeds_give_different_gates():
    a, b, c = (built(seed=seed).routers[1].f_gate[1].weight for seed in (0, 0, 1))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_parameter_count_is_the_official_one():
    shapes = {"input_size": 32, "hidden_size": 384, "depth": 12, "num_heads": 6}
    with torch.device("meta"):
        model = DiT(**shapes, router=Switch())
    assert sum(p.numel() for p in model.parameters()) == 38_299_460
    assert model.router.table(0) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 4}, r"k must lie in 1\.\.3"),
        ({"k": 0}, r"k must lie in 1\.\.3"),
        ({"experts": 0, "k": 0}, "experts must be 1 or more"),
        ({"weight": -1}, "weight must be 0 or more"),
        ({"weight": float("nan")}, "weight must be 0 or more"),
        ({"match_every": 0}, "match_every must be 1"),
        ({"alpha": 0}, "alpha must be"),
        ({"mask": "none"}, "valid: residual, sum"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(UserError, match=message):
        Switch(**options)


def test_the_prior_is_dtr_over_the_columns():
    router = built(alpha=2.0, tasks=50)
    assert torch.equal(router.prior, masks.dtr(50, 9, 2.0, 2 / 3))
