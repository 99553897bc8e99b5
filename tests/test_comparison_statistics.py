from math import isclose, sqrt

import numpy as np
import pandas as pd
import pytest
import torch

from experiments.comparison import statistics
from experiments.rounds.metrics import COMPARED

T2 = 4.302652729911275  # Student's t, 97.5%, two degrees of freedom
T1 = 12.706204736432095  # and one


def rows(method, tests, valids=None, stops=(300, 400, 500), rounds=1):
    """Three seeds, dense at 0.90, 0.92, 0.94 (valid 0.9), and a round with these accuracies."""
    table = []
    for seed, (test, stop) in enumerate(zip(tests, stops, strict=False)):
        for number in range(rounds + 1):
            valid = 0.9 if number == 0 or valids is None else valids[number - 1][seed]
            table.append(
                {
                    "method": method,
                    "reinit": method,
                    "criterion": "magnitude",
                    "control": "none",
                    "pruning": "iterative",
                    "seed": seed,
                    "round": number,
                    "sparsity": 1 - 0.8**number,
                    "compression_ratio": 1 / 0.8**number,
                    "theoretical_speedup": 1.25**number,
                    "test_accuracy": test if number else 0.90 + 0.02 * seed,
                    "early_stop_iteration": stop if number else 1000,
                    "early_stop_test_accuracy": 0.5,
                    "valid_accuracy": valid,
                }
            )
    return pd.DataFrame(table)


def pair(table, metric, method, other):
    at = (table["metric"] == metric) & (table["method"] == method) & (table["other"] == other)
    assert at.sum() == 1
    return table[at].iloc[0]


def test_a_summary_holds_mean_deviation_and_student_interval():
    summary = statistics.summarise(rows("lottery", [0.91, 0.93, 0.95]))
    row = summary.set_index("round").loc[1]
    assert (row["method"], row["criterion"], row["n"]) == ("lottery", "magnitude", 3)
    assert isclose(row["sparsity"], 0.2)
    assert isclose(row["compression_ratio"], 1.25)
    assert isclose(row["test_accuracy_mean"], 0.93)
    assert isclose(row["test_accuracy_std"], 0.02)
    assert isclose(row["test_accuracy_low"], 0.93 - T2 * 0.02 / sqrt(3))
    assert isclose(row["test_accuracy_high"], 0.93 + T2 * 0.02 / sqrt(3))
    assert row["early_stop_iteration_mean"] == 400
    assert row["early_stop_iteration_std"] == 100
    assert row["early_stop_test_accuracy_low"] == row["early_stop_test_accuracy_high"] == 0.5


def test_one_seed_has_a_mean_and_no_spread():
    row = statistics.summarise(rows("lottery", [0.91])).iloc[1]
    assert row["n"] == 1
    assert row["test_accuracy_mean"] == 0.91
    assert row[[f"test_accuracy_{name}" for name in ("std", "low", "high")]].isna().all()


def test_a_summary_keeps_the_order_of_methods_and_of_rounds():
    second = rows("keep", [0.9, 0.9, 0.9], rounds=2)
    cut_short = second[(second["round"] < 2) | (second["seed"] > 0)]
    summary = statistics.summarise(
        pd.concat([rows("random", [0.9], rounds=3), cut_short, rows("a", [0.9])])
    )
    found = list(zip(summary["method"], summary["round"], summary["n"], strict=True))
    keep = [("keep", 0, 3), ("keep", 1, 3), ("keep", 2, 2)]
    assert found == [("random", number, 1) for number in range(4)] + keep + [
        ("a", 0, 1),
        ("a", 1, 1),
    ]


def test_a_value_that_is_not_known_is_not_averaged_away():
    table = rows("keep", [0.9, float("nan"), 0.9])
    assert np.isnan(statistics.summarise(table)["test_accuracy_mean"].iloc[1])


def test_the_dense_network_of_a_seed_counts_once():
    table = pd.concat([rows("lottery", [0.9, 0.9, 0.9]), rows("keep", [0.9, 0.9])])
    dense = statistics.dense_interval(table, "test_accuracy")
    assert dense["n"] == 3
    assert isclose(dense["mean"], 0.92)
    assert isclose(dense["std"], 0.02)


def test_a_difference_is_paired_over_seeds():
    # lottery - random = 0.01, 0.02, 0.03: mean 0.02, deviation 0.01, t = 2 sqrt(3) = 3.4641
    table = pd.concat([rows("lottery", [0.91, 0.93, 0.95]), rows("random", [0.90, 0.91, 0.92])])
    row = pair(statistics.differences(table), "test_accuracy", "lottery", "random")
    assert (row["round"], row["n"]) == (1, 3)
    assert isclose(row["sparsity"], 0.2)
    assert isclose(row["difference"], 0.02)
    assert isclose(row["low"], 0.02 - T2 * 0.01 / sqrt(3))
    assert isclose(row["high"], 0.02 + T2 * 0.01 / sqrt(3))
    # with two degrees of freedom p = 1 - t / sqrt(t^2 + 2), t^2 = 12
    assert isclose(row["p_value"], 1 - sqrt(12 / 14))


def test_every_pair_is_there_once_in_the_methods_order_and_the_dense_network_last():
    table = pd.concat([rows(name, [0.91, 0.93, 0.95], rounds=2) for name in ("c", "a", "b")])
    found = statistics.differences(table)
    assert len(found) == len(COMPARED) * 2 * 6
    first = found.iloc[:6]
    assert list(first["method"] + first["other"]) == [
        "ca",
        "cb",
        "ab",
        "cdense",
        "adense",
        "bdense",
    ]
    assert set(found["round"]) == {1, 2}


def test_the_dense_network_is_that_of_the_same_seed():
    # 0.92 - 0.90, 0.93 - 0.92, 0.97 - 0.94
    found = statistics.differences(rows("keep", [0.92, 0.93, 0.97]))
    row = pair(found, "test_accuracy", "keep", "dense")
    assert isclose(row["difference"], 0.02)
    assert isclose(row["high"], 0.02 + T2 * 0.01 / sqrt(3))
    stops = pair(found, "early_stop_iteration", "keep", "dense")
    assert stops["difference"] == -600
    assert isclose(stops["low"], -600 - T2 * 100 / sqrt(3))


def test_only_the_seeds_that_both_have_are_compared():
    table = pd.concat([rows("lottery", [0.91, 0.93, 0.95]), rows("random", [0.90, 0.90])])
    row = pair(statistics.differences(table), "test_accuracy", "lottery", "random")
    # differences 0.01 and 0.03: mean 0.02, deviation sqrt(2) / 100
    assert row["n"] == 2
    assert isclose(row["difference"], 0.02)
    assert isclose(row["low"], 0.02 - T1 * 0.01)


def test_one_seed_in_common_gives_a_difference_without_interval():
    table = pd.concat([rows("lottery", [0.91, 0.93, 0.95]), rows("random", [0.90])])
    row = pair(statistics.differences(table), "test_accuracy", "lottery", "random")
    assert row["n"] == 1
    assert isclose(row["difference"], 0.01)
    assert row[["low", "high", "p_value"]].isna().all()


def test_a_round_that_a_method_never_reached_has_no_seed_in_common():
    table = pd.concat([rows("lottery", [0.9, 0.9, 0.9], rounds=2), rows("random", [0.9])])
    found = statistics.differences(table)
    late = found[(found["round"] == 2) & (found["other"] == "random")]
    assert (late["n"] == 0).all()
    assert late["difference"].isna().all()
    assert len(late) == 4


def test_equal_differences_have_a_point_for_an_interval_and_no_p_value():
    table = pd.concat([rows("lottery", [0.91, 0.93, 0.95]), rows("random", [0.90, 0.92, 0.94])])
    row = pair(statistics.differences(table), "test_accuracy", "lottery", "random")
    assert isclose(row["difference"], 0.01)
    assert np.isnan(row["p_value"])
    assert row["low"] == row["high"] == row["difference"]


def test_the_match_is_the_smallest_network_that_matches_the_dense_one_on_validation_data():
    valids = [[0.89] * 3, [0.95, 0.92, 0.83], [0.7] * 3]  # the mean of round 2 is 0.9 exactly
    table = rows("lottery", [0.91, 0.93, 0.95], valids, rounds=3)
    row = statistics.smallest_matches(table).iloc[0]
    assert (row["method"], row["n"], row["round"]) == ("lottery", 3, 2)
    assert isclose(row["remaining"], 0.64)
    assert isclose(row["valid_accuracy"], 0.9)
    assert isclose(row["dense_valid_accuracy"], 0.9)
    assert isclose(row["test_accuracy"], 0.93)
    assert isclose(row["dense_test_accuracy"], 0.92)
    assert isclose(row["test_low"], 0.93 - T2 * 0.02 / sqrt(3))
    assert isclose(row["test_high"], 0.93 + T2 * 0.02 / sqrt(3))
    assert (row["early_stop_iteration"], row["dense_early_stop_iteration"]) == (400, 1000)


def test_a_good_test_accuracy_does_not_make_a_match():
    row = statistics.smallest_matches(rows("keep", [0.99, 0.99, 0.99], [[0.8] * 3])).iloc[0]
    assert row["round"] is pd.NA
    assert row["n"] == 3
    named = ["remaining", "valid_accuracy", "test_accuracy", "test_low", "test_high"]
    assert row[[*named, "early_stop_iteration"]].isna().all()
    assert isclose(row["dense_valid_accuracy"], 0.9)


def test_a_match_needs_all_seeds_of_its_method():
    table = rows("keep", [0.91, 0.93, 0.95], [[0.95] * 3, [0.95] * 3], rounds=2)
    table = table[(table["round"] < 2) | (table["seed"] == 2)]
    row = statistics.smallest_matches(table).iloc[0]
    assert (row["round"], row["n"]) == (1, 3)
    (only,) = statistics.smallest_matches(table[table["seed"] == 2]).itertuples()
    assert (only.round, only.n) == (2, 1)
    assert isclose(only.dense_test_accuracy, 0.94)
    assert np.isnan(only.test_low)


def test_matches_keep_the_order_of_methods():
    table = pd.concat([rows("b", [0.9], [[0.95]]), rows("a", [0.9], [[0.1]])])
    assert list(statistics.smallest_matches(table)["method"]) == ["b", "a"]


def mask(*kept, size=4):
    return torch.tensor([number in kept for number in range(size)])


def test_overlap_is_the_share_of_either_masks_weights_that_both_keep():
    masks = {
        ("a", 0): {"x": mask(0, 1), "y": mask(0, size=2)},
        ("a", 1): {"x": mask(1, 2), "y": mask(0, size=2)},
        ("b", 0): {"x": mask(3), "y": mask(1, size=2)},
    }
    jaccard, expected = statistics.overlap(masks)
    assert list(jaccard.index) == list(masks)
    assert jaccard.to_numpy().tolist() == [[1, 2 / 4, 0], [2 / 4, 1, 0], [0, 0, 1]]
    # a 0 and a 1: 2 * 2 / 4 + 1 * 1 / 2 = 1.5 shared of 6 - 1.5
    assert isclose(expected.iloc[0, 1], 1.5 / 4.5)
    # a 0 and b 0: 2 * 1 / 4 + 1 * 1 / 2 = 1 shared of 5 - 1
    assert isclose(expected.iloc[0, 2], 1 / 4)


def test_random_masks_overlap_as_expected():
    draw = torch.Generator().manual_seed(0)
    masks = {("a", seed): {"x": torch.rand(100_000, generator=draw) < 0.2} for seed in range(2)}
    jaccard, expected = statistics.overlap(masks)
    assert jaccard.iloc[0, 1] == pytest.approx(expected.iloc[0, 1], abs=0.005)
    assert expected.iloc[0, 1] == pytest.approx(0.04 / 0.36, abs=0.005)


def test_empty_masks_have_no_overlap_index():
    jaccard, _ = statistics.overlap({("a", 0): {"x": mask()}, ("a", 1): {"x": mask()}})
    assert jaccard.isna().all(axis=None)


def test_pixels_are_averaged_over_the_seeds_of_a_method():
    masks = {("a", 0): {"x": mask(0, 1)[None]}, ("a", 1): {"x": mask(0)[None]}}
    shares = statistics.pixels(masks, (1, 2, 2))
    assert shares["a"].tolist() == [[1, 0.5], [0, 0]]
    assert statistics.pixels(masks, (1, 3, 3)) == {}
