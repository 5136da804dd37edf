"""Worked by hand or by scipy's own tests."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fedbonsai.sweeps.statistics import estimate, front, holm, paired


def test_an_interval_worked_by_hand():
    found = estimate([90.0, 92.0, 94.0])
    assert (found.mean, found.sd, found.n) == (92.0, 2.0, 3)
    assert found.half == pytest.approx(4.30265 * 2 / math.sqrt(3), abs=1e-4)
    assert (found.low, found.high) == (92 - found.half, 92 + found.half)


def test_one_value_has_no_interval_and_none_no_mean():
    assert (estimate([3.0]).mean, estimate([3.0]).half) == (3.0, math.inf)
    assert math.isnan(estimate([]).mean)


def test_paired_is_the_paired_test_over_the_seeds_that_both_have():
    ours, theirs = {0: 5.0, 1: 6.5, 2: 7.0, 9: 100.0}, {0: 4.0, 1: 5.0, 2: 6.7, 8: -100.0}
    found = paired(ours, theirs)
    assert found.n == 3
    assert found.mean == pytest.approx((1 + 1.5 + 0.3) / 3)
    assert found.p == pytest.approx(stats.ttest_rel([5, 6.5, 7], [4, 5, 6.7]).pvalue)


def test_equal_differences_have_no_spread():
    assert paired({0: 1.0, 1: 2.0}, {0: 1.0, 1: 2.0}).p == 1
    assert paired({0: 2.0, 1: 3.0}, {0: 1.0, 1: 2.0}).p == 0
    assert math.isnan(paired({0: 2.0}, {0: 1.0}).p)


def test_holm_worked_by_hand():
    assert holm([0.01, 0.04, 0.03, math.nan, 0.005]) == pytest.approx([0.03, 0.06, 0.06, math.nan, 0.02], nan_ok=True)
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_the_front_worked_by_hand():
    points = [(90, 5), (91, 9), (89, 6), (91, 9), (math.nan, 1), (80, 4)]
    assert front(points, ["higher", "lower"]) == [0, 1, 3, 5]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=12))
def test_what_is_not_on_the_front_is_dominated_by_something_on_it(points):
    kept = front(points, ["higher", "lower"])
    for i, (metric, cost) in enumerate(points):
        better = [j for j in kept if points[j][0] >= metric and points[j][1] <= cost and points[j] != (metric, cost)]
        assert (i in kept) == (not better)
