"""Gradient rules: PCGrad and Nash-MTL against goldens, their laws, and a small network."""

import copy

import pytest
import torch
from torch import nn

from dtr_lightning.config.parser import valid_choices
from dtr_lightning.errors import UserError
from dtr_lightning.objectives import (
    Gradients,
    Joint,
    NashMTL,
    PCGrad,
    PerCluster,
    gram,
    nash_weights,
    project_conflicts,
)
from tests.conftest import golden, max_relative

MTL = {key: torch.from_numpy(array) for key, array in golden("ant/mtl.npz").items()}
KEYS = [key.removesuffix("_grads") for key in MTL if key.endswith("_grads")]


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class TestProjection:
    @pytest.mark.parametrize("key", KEYS)
    def test_equals_the_official_result(self, key):
        combined = project_conflicts(MTL[f"{key}_grads"], orders=MTL[f"{key}_pcgrad_orders"])
        assert max_relative(combined, MTL[f"{key}_pcgrad_combined"]) < 1e-5

    def test_of_gradients_without_conflict_is_their_sum(self):
        same = random(1, 6).expand(4, 6)
        for grads in (same, torch.eye(4, 6), random(4, 6).abs()):
            torch.testing.assert_close(project_conflicts(grads), grads.sum(0))

    def test_of_a_conflict_by_hand(self):
        # (1, 0) loses its part along (-1, 1): to (.5, .5); (-1, 1) its part along (1, 0): to (0, 1)
        combined = project_conflicts(torch.tensor([[1.0, 0.0], [-1.0, 1.0]]))
        torch.testing.assert_close(combined, torch.tensor([0.5, 1.5]))

    def test_of_opposite_or_zero_gradients_is_finite(self):
        g = random(1, 6)
        assert project_conflicts(torch.cat([g, -g])).abs().max() < 1e-6
        torch.testing.assert_close(project_conflicts(torch.cat([g, 0 * g])), g[0])

    @pytest.mark.parametrize("seed", range(20))
    def test_of_two_gradients_opposes_neither(self, seed):
        grads = random(2, 3, seed=seed)
        square = grads[0] @ grads[0]
        grads[1] -= (grads[0] @ grads[1] / square + 0.5) * grads[0]
        assert grads[0] @ grads[1] < -0.4 * square
        assert (grads @ project_conflicts(grads) >= -1e-5).all()

    @pytest.mark.parametrize("seed", range(5))
    def test_equals_the_algorithm_on_the_gradients_themselves(self, seed):
        grads = random(6, 4, seed=seed).double()
        orders = torch.stack([torch.randperm(6) for _ in range(6)])
        projected = grads.clone()
        for own, order in zip(projected, orders, strict=True):
            for g in grads[order]:
                own -= (own @ g).clamp(max=0) / (g @ g) * g
        assert max_relative(project_conflicts(grads, orders=orders), projected.sum(0)) < 1e-12

    def test_follows_its_generator(self):
        grads = random(8, 3)

        def draw(seed):
            return project_conflicts(grads, torch.Generator().manual_seed(seed))

        assert torch.equal(draw(1), draw(1)) and not torch.allclose(draw(1), draw(2))


def test_inner_products_of_many_parameters_are_those_of_float64():
    grads = random(3, 2**20 + 5)
    assert max_relative(gram(grads), grads.double() @ grads.double().T) < 1e-12


def length(weights, grads):
    return (weights @ grads.double()).norm().item()


class TestNashWeights:
    @pytest.mark.parametrize("key", KEYS)
    def test_equal_the_exact_and_the_official_ones(self, key):
        weights = nash_weights(gram(MTL[f"{key}_grads"]))
        exact, official = (
            MTL[f"{key}_nash_alpha_{which}"] for which in ("exact_unnormalised", "official")
        )
        torch.testing.assert_close(weights, exact, rtol=1e-8, atol=0)
        torch.testing.assert_close(weights, official, rtol=1e-5, atol=0)

    @pytest.mark.parametrize("scale", [1e-12, 1e-6, 1.0, 1e6, 1e12])
    def test_give_a_gradient_of_length_sqrt_k_at_every_scale(self, scale):
        grads = random(8, 40).double()
        weights = nash_weights(gram(grads * scale))
        assert length(weights, grads * scale) == pytest.approx(8**0.5, rel=1e-9)
        torch.testing.assert_close(weights * scale, nash_weights(gram(grads)), rtol=1e-9, atol=0)

    def test_undo_the_scale_of_each_loss(self):
        grads, scales = random(8, 40).double(), torch.logspace(-12, 12, 8, dtype=torch.float64)
        weights = nash_weights(gram(grads * scales[:, None]))
        torch.testing.assert_close(weights * scales, nash_weights(gram(grads)), rtol=1e-9, atol=0)

    def test_of_equal_and_of_more_gradients_than_parameters(self):
        same = random(1, 5).expand(8, 5)
        wide = random(8, 3).abs()
        for grads in (same, wide):
            weights = nash_weights(gram(grads))
            assert (weights > 0).all()
            assert length(weights, grads) == pytest.approx(8**0.5, rel=1e-6)
            products = gram(grads) @ weights
            torch.testing.assert_close(products, 1 / weights, rtol=1e-6, atol=0)

    def test_are_finite_where_gradients_cancel(self):
        g = random(1, 5)
        for grads in (torch.cat([g, -g]), random(8, 2)):
            weights = nash_weights(gram(grads))
            assert weights.isfinite().all() and (weights > 0).all()

    def test_leave_a_zero_gradient_out(self):
        grads = random(4, 9)
        grads[2] = 0
        weights = nash_weights(gram(grads))
        others = nash_weights(gram(grads[[0, 1, 3]]))
        torch.testing.assert_close(weights[[0, 1, 3]], others)
        torch.testing.assert_close(weights[2], others.mean())

    @pytest.mark.parametrize("value", [0.0, torch.nan, torch.inf])
    def test_are_ones_without_a_system_to_solve(self, value):
        assert torch.equal(nash_weights(torch.full((3, 3), value)), torch.ones(3).double())


class Problem:
    """A linear network, four clusters of samples, and a weight s of each cluster's loss."""

    clusters = 4

    def __init__(self, seed=0, per_cluster=6):
        torch.manual_seed(1)
        self.network, self.s = nn.Linear(5, 3), nn.Parameter(torch.zeros(self.clusters))
        self.unused = nn.Parameter(torch.ones(2))
        self.x = random(self.clusters, per_cluster, 5, seed=seed)
        self.y = random(self.clusters, per_cluster, 3, seed=seed + 1)
        self.parameters = [*self.network.parameters(), self.unused]
        self.calls = []

    def half(self, rank):
        part = copy.copy(self)
        part.x, part.y = self.x.chunk(2, 1)[rank], self.y.chunk(2, 1)[rank]
        return part

    def loss(self, i):
        self.calls.append(i)
        error = (self.network(self.x[i]) - self.y[i]).square().mean()
        return torch.exp(-self.s[i]) * error + self.s[i]

    def gradients(self):
        """Returns the gradients (K, D) of the clusters' losses by ordinary backward passes."""
        rows = []
        for i in range(self.clusters):
            grads = torch.autograd.grad(
                self.loss(i), [*self.parameters, self.s], materialize_grads=True, allow_unused=True
            )
            rows.append(torch.cat([g.flatten() for g in grads]))
        return torch.stack(rows)

    def combine(self, rule, step=0, reduce=lambda flat: flat):
        loss = rule.combine(self.parameters, [self.s], self.loss, reduce, step)
        return loss, torch.cat([p.grad.flatten() for p in self.parameters])


def rules(**options):
    return [cls(clusters=4, **options) for cls in (PCGrad, NashMTL)]


@pytest.mark.parametrize("rule", [*rules(), NashMTL(4, max_norm=0.0)], ids=lambda r: str(r))
@pytest.mark.parametrize("step", [0, 1])
class TestEveryRule:
    def test_sets_every_gradient_and_returns_the_mean_loss(self, rule, step):
        problem = Problem()
        loss, _ = problem.combine(rule, step)
        assert problem.calls == [0, 1, 2, 3]
        losses = torch.stack([problem.loss(i) for i in range(4)]).detach()
        torch.testing.assert_close(loss, losses.mean())
        assert not loss.requires_grad
        torch.testing.assert_close(problem.s.grad, problem.gradients()[:, -4:].mean(0))
        for p in problem.parameters:
            assert p.grad.shape == p.shape and p.grad.dtype == p.dtype
        assert torch.equal(problem.unused.grad, torch.zeros(2))

    def test_takes_a_loss_weight_without_parameters(self, rule, step):
        problem = Problem()
        rule.combine(problem.parameters, [], problem.loss, lambda flat: flat, step)
        assert problem.network.weight.grad.abs().sum() > 0

    def test_of_two_processes_equals_one_with_the_whole_batch(self, rule, step):
        problem = Problem()
        if isinstance(rule, NashMTL):
            rule.weights.copy_(torch.tensor([0.3, 2.0, 1.0, 0.7]))
        state = copy.deepcopy(rule.state_dict())
        _, expected = problem.combine(rule, step)
        expected_s = problem.s.grad
        rule.load_state_dict(state)
        first, second = problem.half(0), problem.half(1)
        # what the other process sends, in the order of the calls
        others = second.gradients()
        sent = list(others)
        if isinstance(rule, NashMTL) and step % 25:
            weights = rule.weights[:, None].expand(-1, others.shape[1]).clone()
            weights[:, -4:] = 1
            sent = [(weights * others).mean(0)]
        _, found = first.combine(rule, step, lambda flat: (flat + sent.pop(0)) / 2)
        assert not sent
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(first.s.grad, expected_s)


def test_projecting_before_the_mean_over_processes_would_be_another_gradient():
    problem, rule = Problem(), PCGrad(4)
    _, expected = problem.combine(rule)
    singly = [problem.half(rank).combine(rule)[1] for rank in (0, 1)]
    assert max_relative(sum(singly) / 2, expected) > 1e-3


def test_pcgrad_without_conflicts_is_the_joint_gradient():
    problem = Problem()
    problem.x, problem.y = problem.x[:1].expand(4, -1, -1), problem.y[:1].expand(4, -1, -1)
    _, combined = problem.combine(PCGrad(4))
    torch.testing.assert_close(combined, problem.gradients()[:, :-4].mean(0))


def test_pcgrad_is_the_projection_of_the_gradients_over_k():
    problem = Problem()
    _, combined = problem.combine(PCGrad(4, seed=3), 7)
    generator = torch.Generator().manual_seed(3 * 100_003 + 7)
    expected = project_conflicts(problem.gradients()[:, :-4] / 4, generator)
    torch.testing.assert_close(combined, expected)
    assert max_relative(expected, problem.gradients()[:, :-4].mean(0)) > 1e-3


def test_pcgrad_is_a_function_of_seed_and_step():
    grads = random(4, 3)

    def merged(global_seed, seed, step):
        torch.manual_seed(global_seed)
        before = torch.random.get_rng_state()
        combined = PCGrad(4, seed=seed).merge(grads, step)
        assert torch.equal(torch.random.get_rng_state(), before)
        return tuple(combined.tolist())

    assert merged(1, 0, 5) == merged(2, 0, 5)
    assert len({merged(1, 0, step) for step in range(8)}) > 1
    assert len({merged(1, seed, 0) for seed in range(8)}) > 1


def test_nash_solves_every_few_steps_and_keeps_the_weights_in_its_state():
    problem, rule = Problem(), NashMTL(4, update_every=3, max_norm=0)
    assert torch.equal(rule.state_dict()["weights"], torch.ones(4))
    seen = []
    for step in range(7):
        _, combined = problem.combine(rule, step)
        grads = problem.gradients()[:, :-4]
        torch.testing.assert_close(combined, rule.weights @ grads / 4)
        seen.append(rule.weights.clone())
        with torch.no_grad():
            problem.network.weight += 0.1 * random(3, 5, seed=step)
    changed = [not torch.equal(a, b) for a, b in zip([torch.ones(4), *seen], seen, strict=False)]
    assert changed == [True, False, False, True, False, False, True]
    resumed = NashMTL(4, update_every=3, max_norm=0)
    resumed.load_state_dict(rule.state_dict())
    assert torch.equal(problem.combine(resumed, 7)[1], problem.combine(rule, 7)[1])


def test_nash_at_a_solving_step_is_as_long_as_sqrt_k_over_k():
    _, combined = Problem().combine(NashMTL(4, max_norm=0))
    assert combined.norm().item() == pytest.approx(4**0.5 / 4, rel=1e-5)


def test_nash_clips_the_network_only():
    problem, free = Problem(), NashMTL(4, max_norm=0)
    _, combined = problem.combine(free)
    s = problem.s.grad
    _, clipped = problem.combine(NashMTL(4, max_norm=0.1))
    torch.testing.assert_close(clipped, combined / combined.norm() * 0.1, rtol=1e-4, atol=0)
    assert torch.equal(problem.s.grad, s)
    _, untouched = problem.combine(NashMTL(4, max_norm=100.0))
    assert torch.equal(untouched, combined)


def test_gradients_keep_the_dtype_of_their_parameters():
    problem = Problem()
    problem.network.to(torch.bfloat16)
    problem.x, problem.y = problem.x.bfloat16(), problem.y.bfloat16()
    for rule in rules():
        for step in (0, 1):
            problem.combine(rule, step)
            assert problem.network.weight.grad.dtype == torch.bfloat16


def test_choices_and_clusters():
    assert set(valid_choices(Gradients)) >= {"Joint", "PCGrad", "NashMTL"}
    assert Joint().joint and not any(rule.joint for rule in rules())
    log_snr = torch.linspace(9, -9, 100, dtype=torch.float64)
    for rule in rules(clustering="log_snr"):
        rule.bind(log_snr)
        assert rule.bounds.tolist() == [0, 25, 50, 75, 100]
        assert "bounds" not in rule.state_dict()
        rule.bind(log_snr, (20, 40))
        assert rule.intervals == [(20, 25), (25, 30), (30, 35), (35, 40)]
    Joint().bind(log_snr)


class TestBadInput:
    @pytest.mark.parametrize("cls", [PCGrad, NashMTL])
    def test_clusters(self, cls):
        with pytest.raises(UserError, match=f"{cls.__name__} combines at least 2 clusters.*got 1"):
            cls(clusters=1)
        with pytest.raises(UserError, match="valid: equal, log_snr, affinity"):
            cls(clustering="snr")
        with pytest.raises(UserError, match="needs affinity"):
            cls(clustering="affinity")
        with pytest.raises(UserError, match=r"must lie in 1\.\.5, the number of tasks; got 8"):
            cls().bind(torch.arange(5.0))

    def test_batches(self):
        with pytest.raises(UserError, match=r"3 samples .* 4 clusters"):
            PCGrad(4).check(3)
        PCGrad(4).check(4)
        Joint().check(1)

    def test_nash_options(self):
        with pytest.raises(UserError, match="update_every must be at least 1"):
            NashMTL(update_every=0)
        with pytest.raises(UserError, match="max_norm must be 0"):
            NashMTL(max_norm=-1.0)

    def test_a_rule_must_say_how_it_merges(self):
        with pytest.raises(TypeError, match="merge"):
            PerCluster()
