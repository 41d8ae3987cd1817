"""Clusters of tasks: the cheapest partition by brute force and by goldens, and their use."""

import itertools

import numpy as np
import pytest
import torch

from dtr_lightning.diffusion import Diffusion, FlowMatching
from dtr_lightning.diffusion import clusters as tasks
from dtr_lightning.errors import UserError
from tests.conftest import golden

INPUTS = golden("ant/cluster_inputs.npz")
ROWS = {
    f"{row['name']}_K{row['k']}": row
    for row in golden("ant/clusters.json")
    if "exact_floor_centre" in row
}
UNIFORM = golden("ant/clusters.json")[-1]["official"]


def total_cost(bounds, cost):
    """Returns what bounds cost, summed task by task; cost(centre, task) is one task's."""
    return sum(
        cost((left + right - 1) // 2, s)
        for left, right in itertools.pairwise(bounds)
        for s in range(left, right)
    )


def brute_force(tasks, clusters, cost):
    inner = itertools.combinations(range(1, tasks), clusters - 1)
    return min(total_cost((0, *cuts, tasks), cost) for cuts in inner)


def is_partition(bounds, tasks, clusters):
    return (
        bounds.dtype == torch.int64
        and bounds.shape == (clusters + 1,)
        and bounds[0] == 0
        and bounds[-1] == tasks
        and bool((bounds.diff() > 0).all())
    )


@pytest.mark.parametrize("n", range(1, 10))
def test_partitions_are_the_cheapest_of_all(n):
    generator = torch.Generator().manual_seed(n)
    walk = torch.randn(n, generator=generator, dtype=torch.float64)
    falling = walk.sort(descending=True).values
    affinity = torch.randn(n, n, generator=generator, dtype=torch.float64)
    for k in range(1, n + 1):
        for values in (walk, falling, falling.flip(0), torch.arange(n).double()):
            found = tasks.by_log_snr(values, k)
            assert is_partition(found, n, k)
            v = values.tolist()
            cost = lambda c, s, v=v: abs(v[s] - v[c])  # noqa: E731
            assert total_cost(found.tolist(), cost) == pytest.approx(brute_force(n, k, cost))
        found = tasks.by_affinity(affinity, k)
        assert is_partition(found, n, k)
        a = affinity.tolist()
        cost = lambda c, s: -a[c][s]  # noqa: B023, E731
        assert total_cost(found.tolist(), cost) == pytest.approx(brute_force(n, k, cost))


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
@pytest.mark.slow
def test_partitions_cost_as_much_as_the_reference_optimum(row):
    kind, *schedule = row["name"].removesuffix(f"_T{row['n']}").split("_")
    if kind == "affinity":
        features = torch.from_numpy(INPUTS[f"affinity_features_T{row['n']}"])
        affinity = features @ features.T
        found, each = tasks.by_affinity(affinity, row["k"]), -affinity
    else:
        values = torch.arange(row["n"]).double()
        if kind != "time":
            values = torch.from_numpy(INPUTS[f"snr_{schedule[0]}_T{row['n']}"])
        if kind == "logsnr":
            values = values.log()
        found, each = tasks.by_log_snr(values, row["k"]), (values[:, None] - values).abs()
    assert is_partition(found, row["n"], row["k"])
    each = each.tolist()
    cost = total_cost(found.tolist(), lambda c, s: each[c][s])
    assert cost == pytest.approx(row["exact_floor_centre"]["cost"], rel=1e-9)


@pytest.mark.parametrize("case", UNIFORM)
def test_equal_clusters_are_the_official_ones(case):
    n, k = (int(part[1:]) for part in case.split("_"))
    expected = UNIFORM[case]
    expected[-1][1] = n  # int(T / K * K) in floating point is 996 for T = 997, K = 7
    assert [list(pair) for pair in tasks.intervals(tasks.equal(n, k))] == expected


@pytest.mark.parametrize("n", range(1, 30))
def test_equal_clusters_differ_by_one_task_at_most(n):
    for k in range(1, n + 1):
        bounds = tasks.equal(n, k)
        assert is_partition(bounds, n, k) and bounds.diff().max() - bounds.diff().min() <= 1


def test_the_cluster_of_a_task_is_the_interval_that_holds_it():
    bounds = torch.tensor([0, 3, 4, 10])
    t = torch.arange(10)
    assert tasks.cluster_of(t, bounds).tolist() == [0, 0, 0, 1, 2, 2, 2, 2, 2, 2]
    fractional = torch.tensor([0.0, 2.99, 3.0, 3.99, 4.0, 9.0])
    found = tasks.cluster_of(fractional, bounds)
    assert found.tolist() == [0, 0, 1, 1, 2, 2] and found.dtype == torch.int64
    assert tasks.cluster_of(t, torch.tensor([0, 10])).tolist() == [0] * 10


def test_finding_clusters_compiles_into_one_graph():
    bounds = tasks.equal(1000, 8)
    compiled = torch.compile(tasks.cluster_of, fullgraph=True, backend="eager")
    t = torch.tensor([0, 124, 125, 999])
    assert compiled(t, bounds).tolist() == [0, 0, 1, 7]


@pytest.mark.parametrize("process", [Diffusion("cosine"), FlowMatching()], ids=["ddpm", "flow"])
@pytest.mark.parametrize("clustering", ["equal", "log_snr"])
def test_stratified_draws_give_every_cluster_its_share(process, clustering):
    bounds = tasks.bounds(clustering, 8, process.log_snr())
    t = tasks.stratified(process, 803, tasks.intervals(bounds), torch.device("cpu"))
    which = tasks.cluster_of(t, bounds)
    assert which.bincount(minlength=8).tolist() == tasks.shares(803, 8)
    assert (which.diff() >= 0).all()


@pytest.mark.parametrize("n", [5, 8, 11, 16])
def test_shares_are_equal_up_to_one(n):
    shares = tasks.shares(n, 5)
    assert sum(shares) == n and max(shares) - min(shares) <= 1
    assert shares == sorted(shares, reverse=True)


def saved(path, array):
    np.save(path / "affinity.npy", array)
    return str(path / "affinity.npy")


def test_bounds_choose_by_name(tmp_path):
    log_snr = Diffusion("linear").log_snr()
    features = INPUTS["affinity_features_T1000"]
    affinity = features @ features.T
    path = saved(tmp_path, affinity.astype(np.float32))
    assert torch.equal(tasks.bounds("equal", 8, log_snr), tasks.equal(1000, 8))
    assert torch.equal(tasks.bounds("log_snr", 8, log_snr), tasks.by_log_snr(log_snr, 8))
    expected = tasks.by_affinity(torch.from_numpy(affinity), 8)
    assert torch.equal(tasks.bounds("affinity", 8, log_snr, path), expected)


@pytest.mark.parametrize("clustering", ["equal", "log_snr", "affinity"])
def test_bounds_within_a_range_are_those_of_its_tasks_alone(tmp_path, clustering):
    log_snr = Diffusion("cosine").log_snr()[:100]
    features = INPUTS["affinity_features_T100"]
    affinity = features @ features.T
    found = tasks.bounds(clustering, 3, log_snr, saved(tmp_path, affinity), (40, 70))
    (tmp_path / "part").mkdir()
    part = saved(tmp_path / "part", affinity[40:70, 40:70])
    assert torch.equal(found, 40 + tasks.bounds(clustering, 3, log_snr[40:70], part))


class TestBadInput:
    @pytest.mark.parametrize("clusters", [0, -1, 11])
    def test_more_clusters_than_tasks_or_none(self, clusters):
        for call in (
            lambda: tasks.equal(10, clusters),
            lambda: tasks.by_log_snr(torch.arange(10.0), clusters),
            lambda: tasks.by_affinity(torch.eye(10), clusters),
            lambda: tasks.bounds("equal", clusters, torch.zeros(20), within=(5, 15)),
        ):
            with pytest.raises(UserError, match=f"clusters must .*got {clusters}"):
                call()

    def test_values_that_are_not_finite(self):
        with pytest.raises(UserError, match="finite log-SNR"):
            tasks.by_log_snr(torch.tensor([1.0, torch.inf]), 1)
        with pytest.raises(UserError, match="finite; got NaN"):
            tasks.by_affinity(torch.full((3, 3), torch.nan), 2)

    def test_affinities_that_are_not_square(self):
        for shape in ((3, 4), (9,), (3, 3, 3)):
            with pytest.raises(UserError, match="square"):
                tasks.by_affinity(torch.zeros(shape), 2)

    def test_unknown_clustering_or_no_file(self):
        with pytest.raises(UserError, match="valid: equal, log_snr, affinity"):
            tasks.bounds("snr", 2, torch.arange(10.0))
        with pytest.raises(UserError, match=r"needs affinity: a \.npy file"):
            tasks.bounds("affinity", 2, torch.arange(10.0))

    def test_files_that_hold_no_affinities(self, tmp_path):
        bad = np.eye(10)
        bad[3, 4] = np.nan
        for array, message in (
            (np.eye(9), "needed: .10, 10."),
            (bad, "NaN or infinity"),
            (np.full((10, 10), "a"), "real numbers"),
            (np.eye(10) + 1j, "real numbers"),
            (np.full((10, 10), None), "cannot be read"),
        ):
            with pytest.raises(UserError, match=message):
                tasks.read_affinity(saved(tmp_path, array), 10)
        for name, content in (("empty.npy", b""), ("text.npy", b"hello"), ("zip.npy", b"PK\3\4")):
            (tmp_path / name).write_bytes(content)
            with pytest.raises(UserError, match="cannot be read"):
                tasks.read_affinity(str(tmp_path / name), 10)
        with pytest.raises(UserError, match="cannot be read"):
            tasks.read_affinity(str(tmp_path / "none.npy"), 10)
        np.savez(tmp_path / "many.npz", a=np.eye(10))
        with pytest.raises(UserError, match="one array"):
            tasks.read_affinity(str(tmp_path / "many.npz"), 10)

    def test_a_batch_smaller_than_the_clusters(self):
        with pytest.raises(UserError, match=r"7 samples .* 8 clusters; use a batch of at least 8"):
            tasks.shares(7, 8)
