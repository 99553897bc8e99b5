"""The smallest matching subnetwork, from gains worked out by hand.

Three seeds: t(0.95, 2 d.o.f.) = 2.919986. Gains of 0.001, 0.002 and 0.003 have the mean 0.002 and
the deviation 0.001, so their lower bound is 0.002 - 2.919986 * 0.001 / sqrt(3) = 0.000314.
"""

from math import sqrt

import numpy as np
import pandas as pd
import pytest

from experiments.comparison.matching import MATCHING, WINNING, gains, smallest_matches
from tests.test_comparison_statistics import T2, rows

T95 = 2.919985580355516
UP, DOWN = [0.901, 0.902, 0.903], [0.897, 0.898, 0.899]  # the dense networks have 0.9


def match(valids, method="lottery", margin=0.002, constant_rate=False, **more):
    table = rows(method, [0.91, 0.93, 0.95], valids, rounds=len(valids), **more)
    (row,) = smallest_matches(table, margin, constant_rate).to_dict("records")
    return row


def test_the_bound_is_one_sided_and_paired_with_the_same_seeds_dense_network():
    table = rows("keep", [0.9] * 3, [UP])
    table.loc[table["round"] == 0, "valid_accuracy"] += 0.01 * table["seed"]
    table.loc[table["round"] == 1, "valid_accuracy"] += 0.01 * table["seed"]
    (row,) = gains(table).itertuples()
    assert row.gain == pytest.approx(0.002)
    assert row.gain_low == pytest.approx(0.002 - T95 * 0.001 / sqrt(3))


def test_the_match_is_the_smallest_network_that_is_shown_to_match():
    row = match([UP, DOWN, UP, DOWN])
    assert (row["name"], row["n"], row["round"], row["margin"]) == (MATCHING, 3, 3, 0.002)
    assert row["remaining"] == pytest.approx(0.8**3)
    assert row["gain_low"] == pytest.approx(0.002 - T95 * 0.001 / sqrt(3))
    assert row["valid_accuracy"] == pytest.approx(0.902)
    assert row["dense_valid_accuracy"] == pytest.approx(0.9)
    assert row["test_low"] == pytest.approx(0.93 - T2 * 0.02 / sqrt(3))
    assert row["dense_test_accuracy"] == pytest.approx(0.92)
    assert (row["early_stop_iteration"], row["dense_early_stop_iteration"]) == (400, 1000)


@pytest.mark.parametrize(("valids", "whole"), [([UP, UP], True), ([DOWN, UP], False)])
def test_it_is_said_whether_all_larger_networks_match_too(valids, whole):
    assert match(valids)["larger_match"] is whole


def test_a_mean_above_the_dense_one_is_no_match_if_the_bound_is_below_the_margin():
    wide = [0.89, 0.905, 0.92]  # mean gain 0.005, lower bound -0.020
    assert match([wide])["name"] == ""
    assert match([wide], margin=0.021)["name"] == MATCHING


def test_a_mean_below_the_dense_one_is_a_match_if_the_bound_is_above_the_margin():
    short = [0.8994, 0.8995, 0.8996]  # mean gain -0.0005, lower bound -0.00067
    assert match([short])["round"] == 1
    assert match([short], margin=0.0006)["name"] == ""


@pytest.mark.parametrize("valids", [[[0.95]], [[0.95] * 3]])
def test_one_seed_or_equal_gains_in_all_seeds_show_nothing(valids):
    tests = [0.9] * len(valids[0])
    (row,) = smallest_matches(rows("keep", tests, valids), 0.002).to_dict("records")
    assert pd.isna(row["round"])
    assert pd.isna(row["larger_match"])
    assert row["name"] == ""
    assert np.isnan([row[name] for name in ("remaining", "gain_low", "test_accuracy")]).all()
    assert row["dense_valid_accuracy"] == pytest.approx(0.9)


def test_a_good_test_accuracy_does_not_make_a_match():
    table = rows("keep", [0.99, 0.98, 0.99], [[0.8, 0.81, 0.82]])
    assert smallest_matches(table, 0.002)["name"].tolist() == [""]


def test_a_match_needs_all_seeds_of_its_method():
    table = rows("keep", [0.91, 0.93, 0.95], [UP, UP], rounds=2)
    table = table[(table["round"] < 2) | (table["seed"] > 0)]
    (row,) = smallest_matches(table, 0.002).itertuples()
    assert (row.round, row.n) == (1, 3)


def test_matches_keep_the_order_of_methods():
    table = pd.concat([rows("b", [0.9], [[0.95]]), rows("a", [0.9], [[0.1]])])
    assert list(smallest_matches(table, 0.002)["method"]) == ["b", "a"]


def test_a_winning_ticket_is_a_lottery_that_stops_no_later_under_a_constant_rate():
    assert match([UP], constant_rate=True)["name"] == WINNING
    assert match([UP], constant_rate=False)["name"] == MATCHING
    assert match([UP], "random", constant_rate=True)["name"] == MATCHING
    assert match([UP], constant_rate=True, stops=(900, 1000, 1100))["name"] == WINNING
    assert match([UP], constant_rate=True, stops=(900, 1000, 1101))["name"] == MATCHING


def test_a_control_is_never_a_winning_ticket():
    table = rows("lottery", [0.9] * 3, [UP]).assign(control="shuffled_mask")
    assert smallest_matches(table, 0.002, True)["name"].tolist() == [MATCHING]
