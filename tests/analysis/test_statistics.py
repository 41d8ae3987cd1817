"""Statistics over seeds against SciPy, brute force and laws."""

import math
from itertools import permutations, product

import numpy as np
import pandas as pd
import pytest
import yaml
from scipy import stats

from analysis.read import statistics
from analysis.read.runs import read
from analysis.read.statistics import EXACT, holm, least_p, over_seeds, paired, sign_flip, t_interval
from analysis.tables.tables import table
from dtr_lightning.rundir.run import find_runs
from tests.analysis.synthetic_runs import make_run

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("n", [2, 3, 6, 20])
def test_t_interval_is_scipys(n):
    values = RNG.normal(3, 2, n)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert t_interval(values) == pytest.approx(expected, rel=1e-12)


def test_t_interval_by_hand():
    # mean 2, standard deviation 1, t(0.975; 2) = 4.302653
    assert t_interval([1, 2, 3]) == pytest.approx((2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5))
    assert t_interval([5, 5, 5]) == (5, 5)
    assert all(map(math.isnan, [*t_interval([1.0]), *t_interval([])]))


def brute_force(values):
    observed = abs(sum(values))
    sums = [
        abs(sum(s * x for s, x in zip(signs, values, strict=True)))
        for signs in product((1, -1), repeat=len(values))
    ]
    return np.mean([x >= observed - 1e-9 for x in sums])


@pytest.mark.parametrize("n", range(1, 11))
def test_sign_flip_is_brute_force(n):
    for values in (RNG.normal(0.5, 1, n), RNG.integers(-2, 4, n) / 10, np.zeros(n)):
        assert sign_flip(values) == pytest.approx(brute_force(values), abs=1e-12)


def test_flips_that_tie_are_counted_whatever_their_rounding():
    for _ in range(200):
        n = int(RNG.integers(2, 9))
        for values in (RNG.integers(-4, 5, n) * 0.07, RNG.uniform(0.1, 1, n)):
            assert sign_flip(values) == pytest.approx(brute_force(values), abs=1e-12)


@pytest.mark.parametrize("n", [*range(1, 12), EXACT])
@pytest.mark.slow
def test_equal_signs_reach_the_least_p(n):
    assert sign_flip(RNG.uniform(0.1, 1, n)) == least_p(n) == 2 / 2**n
    assert (least_p(n) < 0.05) == (n >= 6)


def test_sign_flip_is_symmetric_and_ignores_order_and_scale():
    values = RNG.normal(0.3, 1, 8)
    p = sign_flip(values)
    for other in (-values, values[::-1], 1e-9 * values, 1e9 * values):
        assert sign_flip(other) == p


@pytest.mark.slow
def test_many_pairs_are_flipped_at_random_but_always_alike(monkeypatch):
    values = RNG.normal(0.4, 1, 17)  # of more flips than are drawn
    exact = sign_flip(values)
    monkeypatch.setattr(statistics, "EXACT", 10)
    assert sign_flip(values) == sign_flip(values) != exact
    assert sign_flip(values) == pytest.approx(exact, abs=0.005)
    assert sign_flip(np.ones(40)) == pytest.approx(least_p(40)) and least_p(40) > 0


def test_sign_flip_holds_its_level():
    ps = np.array([sign_flip(row) for row in RNG.normal(0, 1, (1000, 7))])
    assert np.mean(ps <= 0.05) < 0.07


def test_paired_differences():
    mine, theirs = [1.0, 2.0, 4.0], [2.0, 2.5, 4.25]
    test = paired(mine, theirs)
    differences = [-1, -0.5, -0.25]
    assert test.difference == pytest.approx(np.mean(differences)) and test.n == 3
    assert (test.low, test.high) == t_interval(differences) and test.p == 0.25
    back = paired(theirs, mine)
    expected = (-test.difference, -test.high, -test.low, test.p)
    assert back[:4] == pytest.approx(expected)
    one, none = paired([1.0], [3.0]), paired([], [])
    assert (one.difference, one.p) == (-2, 1) and math.isnan(one.low)
    assert none.n == 0 and all(map(math.isnan, none[:4]))


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.6, 0.02]) == pytest.approx([1, 1, 0.06])
    assert holm([0.02, 0.02, 0.02]) == pytest.approx([0.06] * 3)
    assert holm([]) == [] and holm([0.03]) == [0.03]


def test_holm_does_not_count_nan_and_follows_a_permutation():
    p = [0.01, 0.04, 0.03]
    with_nan = holm([math.nan, *p, math.nan])
    assert with_nan[1:4] == holm(p) and math.isnan(with_nan[0]) and math.isnan(with_nan[4])
    for order in permutations(range(3)):
        assert holm([p[i] for i in order]) == [holm(p)[i] for i in order]


def test_holm_is_between_p_and_bonferroni_and_monotone():
    p = RNG.uniform(0, 0.3, 12)
    corrected = np.array(holm(p))
    assert (corrected >= p).all() and (corrected <= np.minimum(1, 12 * p)).all()
    assert (np.diff(corrected[np.argsort(p)]) >= 0).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("n", [2, 6, EXACT + 2])
def test_what_is_not_finite_has_no_statistic(bad, n):
    values = [bad, *RNG.normal(1, 1, n - 1)]
    assert math.isnan(sign_flip(values)) and all(map(math.isnan, t_interval(values)))
    for pair in (paired(values, np.zeros(n)), paired(np.zeros(n), values), paired(values, values)):
        assert all(map(math.isnan, pair[:4])) and pair.n == n


@pytest.mark.parametrize(
    "mine, theirs", [([1.0], [1, 2, 3]), ([1, 2, 3], [1]), ([], [1]), ([1], [])]
)
def test_sides_of_unequal_length_are_no_pairs(mine, theirs):
    with pytest.raises(ValueError, match=f"{len(mine)} scores cannot be paired with {len(theirs)}"):
        paired(mine, theirs)


def test_pairs_are_scipys_paired_t_test():
    mine, theirs = RNG.normal(1.2, 0.2, (2, 7))
    test = paired(mine, theirs)
    expected = stats.ttest_rel(mine, theirs).confidence_interval(0.95)
    assert (test.low, test.high) == pytest.approx(tuple(expected), rel=1e-10)


def test_equal_scores_and_ties_are_no_evidence():
    for n in (1, 6, EXACT + 2):
        same = paired([1.3] * n, [1.3] * n)
        assert (same.difference, same.p) == (0, 1)
    assert sign_flip([0, 0, 0, 0, 0, 1]) == 1
    assert sign_flip([0, 0, 1, 1, 1, 1]) == 2 / 2**4  # a zero has no sign to flip


def test_huge_differences_stay_finite():
    values = RNG.normal(0.5, 1, 8)
    assert sign_flip(1e308 * (values / np.abs(values).max())) == sign_flip(values)


@pytest.mark.parametrize("p", [1.1, -0.1, math.inf])
def test_holm_refuses_what_is_no_p_value(p):
    with pytest.raises(ValueError, match="is no p-value"):
        holm([0.02, p])


def test_a_gain_and_a_loss_of_equal_size_have_the_same_p():
    """Lower is better: a difference below zero is a gain, and its test is two-sided."""
    gain, loss = paired([1, 2, 3], [2, 3, 4.5]), paired([2, 3, 4.5], [1, 2, 3])
    assert gain.difference < 0 < loss.difference and gain.p == loss.p == 0.25


def test_a_seed_twice_in_a_setting_is_a_bug(tmp_path):
    make_run(tmp_path / "a")
    frame = table(find_runs([tmp_path]))
    with pytest.raises(ValueError, match="has a seed twice"):
        over_seeds(pd.concat([frame, frame]))


def test_a_seed_that_is_there_twice_counts_once(tmp_path):
    """A copy of a run, and one whose config leaves the default seed out."""
    run = make_run(tmp_path / "a", score=5.0)
    make_run(tmp_path / "b", score=5.0)
    bare = make_run(tmp_path / "c", score=7.0)
    config = {key: value for key, value in run.config.items() if key != "seed"}
    bare.config_file.write_text(yaml.safe_dump(config))
    reading = read(find_runs([tmp_path]))
    assert reading.skipped == [f"skipped: copies of other runs: 2, such as {tmp_path / 'b'}"]
    means = over_seeds(table(find_runs([tmp_path])))
    assert (means.seeds.item(), means.score.item()) == (1, 5.0)
