"""Holm's correction and power, from numbers worked out by hand or with SciPy."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from experiments.comparison.families import detectable, families, holm
from tests.test_comparison_findings import CONTROL, MASKED, comparison_of, rounds_of


def test_holms_p_values_are_those_of_the_steps_and_never_fall():
    found = holm(pd.Series([0.01, 0.04, 0.03, 0.005], list("abcd")))
    assert found.round(12).to_dict() == {"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02}


def test_holm_counts_only_what_can_be_tested_and_stops_at_one():
    found = holm(pd.Series([0.6, math.nan, 0.7]))
    assert found[[0, 2]].tolist() == [1.0, 1.0]
    assert np.isnan(found[1])
    assert holm(pd.Series([], dtype=float)).empty


def test_the_family_of_the_best_method_has_the_other_methods_and_the_dense_network():
    table = rounds_of(MASKED | {"random": (0.9, 0.9, 0.91)}, control=CONTROL)
    found = comparison_of(table).families
    assert found == {
        "headline": [("lottery", "random"), ("lottery", "dense")],
        "controls": [("lottery shuffled_mask", "lottery")],
    }


def test_where_there_are_only_controls_the_best_of_them_is_compared():
    table = rounds_of({"lottery shuffled_mask": (0.9, 0.9, 0.91)}, control=CONTROL)
    found = families(comparison_of(table).summary, 1)
    assert found == {"headline": [("lottery shuffled_mask", "dense")], "controls": []}


@pytest.mark.parametrize(("n", "tests"), [(3, 1), (3, 4), (5, 1), (5, 20), (20, 1)])
def test_what_could_have_been_shown_has_a_power_of_80_percent(n, tests):
    level = 0.05 / tests
    shift = detectable(n, level) * math.sqrt(n)
    limit = stats.t.ppf(1 - level / 2, n - 1)
    assert stats.nct.sf(limit, n - 1, shift) == pytest.approx(0.8, abs=2e-4)


@pytest.mark.parametrize(("n", "points"), [(3, 0.95), (5, 0.49), (20, 0.19)])
def test_a_spread_of_0_29_points_needs_many_seeds(n, points):
    assert 0.29 * detectable(n, 0.05) == pytest.approx(points, abs=0.005)


def test_two_seeds_can_show_very_little():
    assert detectable(2, 0.05) == pytest.approx(11.55, abs=0.01)
