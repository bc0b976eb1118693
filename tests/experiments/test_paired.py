"""Differences of the same seeds, and what interval their mean has."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from hfkd.experiments.paired import paired_difference


def test_it_is_students_t_of_the_seeds_own_differences():
    mine, others = {1: 40.0, 2: 41.5, 3: 39.0, 9: 0.0}, {3: 38.0, 2: 40.0, 1: 39.5, 7: 99.0}
    found = paired_difference(mine, others)
    seeds = (1, 2, 3)
    wanted = stats.ttest_rel([mine[s] for s in seeds], [others[s] for s in seeds]).confidence_interval(0.95)
    assert found.seeds == 3
    assert found.mean == pytest.approx(1.0)
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high))
    assert not found.shown
    assert str(found) == "+1.00 [-0.24, +2.24], no difference shown"


def test_a_clear_difference_is_shown():
    found = paired_difference({0: 40.0, 1: 42.1, 2: 41.0}, {0: 39.0, 1: 41.0, 2: 40.1})
    assert found.shown
    assert "no difference" not in str(found)


def test_equal_differences_have_no_width():
    assert str(paired_difference({0: 2.0, 1: 3.0}, {0: 1.0, 1: 2.0})) == "+1.00 [+1.00, +1.00]"
    assert not paired_difference({0: 1.0, 1: 2.0}, {0: 1.0, 1: 2.0}).shown


def test_one_seed_says_nothing():
    assert paired_difference({0: 1.0, 1: 2.0}, {1: 5.0, 2: 3.0}) is None


@given(st.lists(st.tuples(*[st.floats(0, 100)] * 2), min_size=2, max_size=6))
def test_turned_round_it_is_the_opposite(values):
    mine, others = ({seed: value[side] for seed, value in enumerate(values)} for side in (0, 1))
    one, other = paired_difference(mine, others), paired_difference(others, mine)
    assert math.isclose(one.mean, -other.mean, abs_tol=1e-9)
    assert math.isclose(one.low, -other.high, abs_tol=1e-9)
    assert one.shown == other.shown
