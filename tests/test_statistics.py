"""Statistics over seeds against SciPy, brute force and laws."""

import math
from itertools import permutations, product

import numpy as np
import pytest
from scipy import stats

from analysis import statistics
from analysis.statistics import EXACT, holm, least_p, paired, sign_flip, t_interval

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


def test_sign_flip_is_scipys_permutation_test():
    values = RNG.normal(0.4, 1, 9)
    kind = {"permutation_type": "samples", "n_resamples": np.inf, "vectorized": True}
    expected = stats.permutation_test([values], np.mean, **kind).pvalue
    assert sign_flip(values) == pytest.approx(expected)


@pytest.mark.parametrize("n", range(1, EXACT + 1))
def test_equal_signs_reach_the_least_p(n):
    assert sign_flip(RNG.uniform(0.1, 1, n)) == least_p(n) == 2 / 2**n
    assert (least_p(n) < 0.05) == (n >= 6)


def test_sign_flip_is_symmetric_and_ignores_order_and_scale():
    values = RNG.normal(0.3, 1, 8)
    p = sign_flip(values)
    for other in (-values, values[::-1], 1e-9 * values, 1e9 * values):
        assert sign_flip(other) == p


def test_many_pairs_are_flipped_at_random_but_always_alike(monkeypatch):
    values = RNG.normal(0.4, 1, 16)
    exact = sign_flip(values)
    monkeypatch.setattr(statistics, "EXACT", 10)
    assert sign_flip(values) == sign_flip(values) != exact
    assert sign_flip(values) == pytest.approx(exact, abs=0.005)
    assert sign_flip(np.ones(40)) == pytest.approx(least_p(40)) and least_p(40) > 0


def test_sign_flip_holds_its_level():
    ps = np.array([sign_flip(row) for row in RNG.normal(0, 1, (2000, 7))])
    assert np.mean(ps <= 0.05) < 0.065


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
