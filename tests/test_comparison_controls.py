"""Controls and further draws: what they are compared with, and what a page says of them."""

import pytest

from experiments.comparison.findings import controls, headline, verdict
from tests.test_comparison_findings import ALIKE, CLEAR, CONTROL, MASKED, comparison_of, rounds_of


def control_of(accuracies, control=CONTROL):
    (row,) = controls(comparison_of(rounds_of(accuracies, control=control))).to_dict("records")
    return row


def test_a_control_that_does_worse_shows_that_the_mask_matters():
    row = control_of(MASKED)
    assert (row["method"], row["other"]) == ("lottery shuffled_mask", "lottery")
    assert row["difference"] == pytest.approx(-0.091 / 3)
    assert row["meaning"] == "it matters which weights are kept"


def test_a_control_that_does_better_is_reported_as_such():
    better = {
        "lottery": MASKED["lottery shuffled_mask"],
        "lottery shuffled_mask": (0.96, 0.97, 0.98),
    }
    assert control_of(better)["meaning"] == "the weights that the criterion keeps do worse"


def test_a_control_that_does_as_well_is_worded_with_care():
    alike = {"lottery": ALIKE["lottery"], "lottery shuffled_mask": ALIKE["random"]}
    assert control_of(alike)["meaning"] == (
        "undecided whether it matters which weights are kept, beyond how many in each layer"
    )


@pytest.mark.parametrize(
    ("control", "worse", "better"),
    [
        (
            "small_dense",
            "pruning beats a small dense network with as many weights",
            "a small dense network with as many weights does better",
        ),
        (
            "unpruned",
            "the pruned network beats the dense one, trained for as long",
            "the dense network does better, trained for as long",
        ),
    ],
)
def test_a_control_that_trains_another_network_is_compared_with_the_best_method(
    control, worse, better
):
    plain = {"keep": (0.90, 0.91, 0.92), "lottery": (0.96, 0.97, 0.98)}
    for gain, meaning in ((-0.05, worse), (0.01, better), (0, "cannot be tested")):
        other = tuple(0.96 + 0.01 * seed + gain * (1 + seed / 9) for seed in range(3))
        row = control_of(plain | {"keep other": other}, {"keep other": control})
        assert (row["other"], row["meaning"]) == ("lottery", meaning)
    other = (0.97, 0.96, 0.98)
    row = control_of(plain | {"keep other": other}, {"keep other": control})
    assert row["meaning"].startswith("undecided whether")


def test_the_headline_says_where_controls_stand():
    worse = {"lottery": (0.96, 0.97, 0.98), "random_mask": (0.91, 0.919, 0.93)}
    kinds = {"random_mask": "random_mask", "unpruned": "unpruned"}
    rounds = rounds_of(worse | {"unpruned": (0.97, 0.96, 0.98)}, control=kinds)
    rounds["reinit"] = "lottery"
    sentences = headline(comparison_of(rounds))
    assert sentences[2] == (
        "Controls (corrected on their own): random_mask is below lottery, by "
        "5.03 points; unpruned is not shown to differ from lottery."
    )
    assert len(headline(comparison_of(rounds_of(CLEAR)))) == 3


def test_a_further_draw_is_never_the_best_method():
    rounds = rounds_of({"random": (0.9, 0.9, 0.91), "random draw 2": (0.95, 0.95, 0.96)})
    found = comparison_of(rounds)
    assert found.families["headline"] == [("random", "dense")]
    assert found.controls == {"random draw 2"}


def test_an_unpruned_network_neither_leads_nor_counts_in_the_size():
    tests = {"lottery": (0.90, 0.91, 0.92), "lottery unpruned": (0.95, 0.96, 0.98)}
    rounds = rounds_of(tests, control={"lottery unpruned": "unpruned"})
    rounds.loc[rounds["control"] == "unpruned", "sparsity"] = 0.0
    found = comparison_of(rounds)
    first, *rest = headline(found)
    assert first.startswith("With 50% of the weights, lottery has a mean test accuracy")
    assert "lottery unpruned is above lottery, by" in rest[1]
    assert found.matches["method"].tolist() == ["lottery"]


def test_a_control_is_compared_with_the_arm_that_prunes_alike():
    accuracies = {
        "lottery": (0.96, 0.97, 0.98),
        "lottery one_shot": (0.90, 0.92, 0.91),
        "lottery shuffled_mask one_shot": (0.91, 0.91, 0.90),
    }
    row = control_of(accuracies, {"lottery shuffled_mask one_shot": "shuffled_mask"})
    assert row["other"] == "lottery one_shot"
    assert verdict(row) == "undecided"


def test_equal_differences_are_no_proof_that_a_mask_matters():
    alike = {"lottery": (0.96, 0.96, 0.96), "lottery shuffled_mask": (0.95, 0.95, 0.95)}
    assert control_of(alike)["meaning"] == "cannot be tested"


def test_a_control_alone_means_nothing():
    row = control_of({"lottery shuffled_mask": (0.9, 0.9, 0.9)})
    assert row["meaning"] == "there is no arm without the control to compare with"


def test_a_control_that_rewinds_is_compared_with_the_method_of_the_same_epoch():
    tests = {"rewind epoch 0": (0.9, 0.91, 0.93), "rewind epoch 1": (0.92, 0.95, 0.96)}
    masked = {"rewind random_mask epoch 1": (0.8, 0.82, 0.85)}
    kinds = {"rewind random_mask epoch 1": "random_mask"}
    found = comparison_of(rounds_of(tests | masked, control=kinds)).families["controls"]
    assert found == [("rewind random_mask epoch 1", "rewind epoch 1")]


def test_an_unpruned_network_is_the_best_only_if_nothing_else_is_there():
    tests = {"unpruned": (0.97, 0.98, 0.99), "small_dense": (0.9, 0.91, 0.93)}
    kinds = {"unpruned": "unpruned", "small_dense": "small_dense"}
    found = comparison_of(rounds_of(tests, control=kinds))
    assert found.families["headline"] == [("small_dense", "dense")]
    alone = comparison_of(rounds_of({"unpruned": tests["unpruned"]}, control=kinds))
    assert alone.matches["method"].tolist() == ["unpruned"]
    assert "unpruned" in headline(alone)[0]


def test_without_a_pruned_network_no_control_is_compared():
    rounds = rounds_of(MASKED, control=CONTROL)
    assert controls(comparison_of(rounds[rounds["round"] == 0], shown_round=0)).empty


def test_a_further_draw_is_compared_with_its_method_and_the_dense_network_only():
    tests = dict.fromkeys(("keep", "random", "random draw 2", "random draw 3"), (0.9, 0.91, 0.93))
    table = comparison_of(rounds_of(tests)).differences
    pairs = set(zip(table["method"], table["other"], strict=True))
    assert {other for method, other in pairs if method == "random draw 2"} == {
        "random draw 3",
        "dense",
    }
    assert ("keep", "random draw 2") not in pairs
    assert ("random", "random draw 2") in pairs


def test_if_only_further_draws_are_left_one_of_them_is_compared_with_the_dense_network():
    tests = {"random draw 2": (0.9, 0.91, 0.93), "random_mask": (0.8, 0.82, 0.85)}
    found = comparison_of(rounds_of({"random draw 2": tests["random draw 2"]}))
    assert found.families == {"headline": [("random draw 2", "dense")], "controls": []}
    both = comparison_of(rounds_of(tests, control={"random_mask": "random_mask"}))
    assert both.families["headline"] == [("random_mask", "dense")]
