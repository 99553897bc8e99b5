from math import isclose, sqrt

import numpy as np
import pandas as pd
import pytest
import torch

from experiments.comparison import statistics

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
    assert row["early_stop_test_accuracy_n"] == 3
    # A few equal values do not prove that there is no spread.
    assert np.isnan(row["early_stop_test_accuracy_low"])


def test_a_metric_that_no_run_knows_is_left_out():
    table = rows("lottery", [0.91, 0.93, 0.95])
    for without in (table, table.assign(catch_up_iteration=np.nan)):
        assert "catch_up_iteration_mean" not in statistics.summarise(without)
        assert "catch_up_iteration" not in set(statistics.differences(without)["metric"])
    caught_up = table.assign(catch_up_iteration=[700, 500, 700, 500, 700, np.nan])
    summary = statistics.summarise(caught_up).set_index("round")
    assert summary.loc[0, "catch_up_iteration_mean"] == 700
    # One seed of three is censored: the mean is of the others, and has no interval.
    assert summary.loc[1, ["catch_up_iteration_mean", "catch_up_iteration_n"]].tolist() == [500, 2]
    assert np.isnan(summary.loc[1, "catch_up_iteration_low"])
    assert "catch_up_iteration" in set(statistics.differences(caught_up)["metric"])


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


def test_a_mean_says_over_how_many_seeds_it_is_where_some_have_no_value():
    """Such as iterations to a loss that a network never reaches."""
    table = rows("keep", [0.9, 0.92, 0.94], stops=(300, float("nan"), 500))
    row = statistics.summarise(table).iloc[1]
    names = ("n", "mean", "std", "low", "high")
    n, mean, *rest = row[[f"early_stop_iteration_{name}" for name in names]]
    assert (row["n"], n, mean) == (3, 2, 400)
    assert np.isnan(rest).all()
    found = pair(statistics.differences(table), "early_stop_iteration", "keep", "dense")
    assert (found["n"], found["difference"]) == (2, -600)
    assert found[["std", "low", "high", "p_value"]].isna().all()


def test_a_metric_that_no_run_has_is_left_out():
    table = rows("keep", [0.9, 0.92, 0.94])
    lacking = table.drop(columns="early_stop_test_accuracy").assign(early_stop_iteration=np.nan)
    assert statistics.measured(lacking) == ["test_accuracy", "valid_accuracy"]
    assert "early_stop_iteration_mean" not in statistics.summarise(lacking)
    assert set(statistics.differences(lacking)["metric"]) == {"test_accuracy", "valid_accuracy"}


def test_intervals_end_where_values_cannot_be():
    table = rows("keep", [1.0, 0.7, 1.0], stops=(1, 500, 2))
    row = statistics.summarise(table).iloc[1]
    assert (row["test_accuracy_high"], row["early_stop_iteration_low"]) == (1.0, 0.0)
    assert row["test_accuracy_low"] == pytest.approx(0.9 - T2 * sqrt(0.03) / sqrt(3))
    far = rows("keep", [0.0, 0.01, 0.3])  # 0.9, 0.91 and 0.64 below the dense networks
    found = pair(statistics.differences(far), "test_accuracy", "keep", "dense")
    assert found["low"] == -1


def both_right(table, images, hard):
    """Images that each network gets right: all but the first ones, as many as its accuracy says."""
    correct = {}
    for row in table.itertuples():
        right = np.ones(images, dtype=bool)
        right[: round((1 - row.test_accuracy) * images)] = False
        correct[row.method, row.seed, row.round] = right if row.round else np.roll(right, hard)
    return correct


def test_the_interval_over_images_is_wider_than_that_over_seeds_and_stays_below_one():
    table = rows("keep", [0.98, 0.99, 1.0])
    for known in (None, both_right(table, 100, 0)):
        row = statistics.summarise(table, 100, known).iloc[1]
        low, high = row["test_accuracy_images_low"], row["test_accuracy_images_high"]
        assert low < 0.99 - 1.96 * sqrt(0.99 * 0.01 / 100)
        assert 0.99 < high < 1
    unknown = statistics.summarise(table).iloc[1]
    assert np.isnan(unknown["test_accuracy_images_low"])


def test_the_dense_networks_interval_over_images_uses_any_methods_images():
    table = pd.concat([rows("lottery", [0.9, 0.9, 0.9]), rows("keep", [0.9, 0.9, 0.9])])
    correct = {key: right for key, right in both_right(table, 100, 0).items() if key[0] == "keep"}
    bound = statistics.dense_interval(table, "test_accuracy", 100)
    known = statistics.dense_interval(table, "test_accuracy", 100, correct)
    assert bound["images_low"] != known["images_low"]
    assert (
        known["images_low"]
        == statistics.summarise(table, 0, correct)
        .set_index(["method", "round"])
        .loc[("keep", 0), "test_accuracy_images_low"]
    )


def test_a_difference_over_images_needs_the_images_of_every_network():
    table = rows("keep", [0.80, 0.83, 0.85])
    correct = both_right(table, 100, 30)
    found = pair(statistics.differences(table, correct), "test_accuracy", "keep", "dense")
    assert -1 < found["images_low"] < found["low"] < found["high"] < found["images_high"]
    del correct["keep", 1, 1]
    found = pair(statistics.differences(table, correct), "test_accuracy", "keep", "dense")
    assert found[["images_low", "images_high"]].isna().all()


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
    assert len(found) == len(statistics.measured(table)) * 2 * 6
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


def test_equal_differences_have_no_interval_and_no_p_value():
    table = pd.concat([rows("lottery", [0.91, 0.93, 0.95]), rows("random", [0.90, 0.92, 0.94])])
    row = pair(statistics.differences(table), "test_accuracy", "lottery", "random")
    assert isclose(row["difference"], 0.01)
    assert row[["low", "high", "p_value"]].isna().all()


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
