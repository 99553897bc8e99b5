"""Recommendations for tables made by hand."""

import pandas as pd
import pytest

from experiments.tuning.choose import at_equal_cost, describe_rule, front, recommend
from tests.searching import search_of

STATES = {"c": "complete", "s": "stopped early", "f": "failed", "l": "lost"}


def table(*rows, again_for=None):
    """Rows of accuracy, epochs and perhaps a state; numbers count from 0."""
    states = [row[2] if len(row) > 2 else "c" for row in rows]
    return pd.DataFrame(
        {
            "number": range(len(rows)),
            "state": [STATES[state] for state in states],
            "valid_accuracy": [row[0] for row in rows],
            "total_epochs": [row[1] for row in rows],
            "retraining_epochs": [row[1] and row[1] - 1 for row in rows],
            "again_for": again_for or [None] * len(rows),
        }
    )


def chosen(rows, **asked):
    return int(recommend(rows, search_of(**asked))["number"])


def test_the_front_holds_the_trials_that_no_other_beats_at_its_cost():
    rows = table((0.9, 10), (0.8, 5), (0.85, 7), (0.84, 8), (0.9, 12), (0.7, 5), (0.95, 20))
    assert list(front(rows)["number"]) == [1, 2, 0, 6]


def test_of_equal_trials_the_earlier_one_is_on_the_front():
    assert list(front(table((0.9, 10), (0.9, 10), (0.9, 5), (0.9, 5)))["number"]) == [2]


def test_only_complete_trials_are_on_the_front():
    rows = table((0.9, 10), (0.99, 1, "s"), (None, None, "f"), (None, None, "l"), (0.8, 5))
    assert list(front(rows)["number"]) == [4, 0]
    assert front(table((0.99, 1, "s"))).empty


def test_the_cheapest_within_the_tolerance_is_recommended():
    rows = table((0.95, 100), (0.946, 20), (0.944, 10), (0.99, 5, "s"))
    assert chosen(rows) == 1
    assert chosen(rows, tolerance=0) == 0
    assert chosen(rows, tolerance=0.01) == 2


def test_the_tolerance_is_inclusive():
    assert chosen(table((0.95, 100), (0.945, 10))) == 1
    assert chosen(table((0.3, 100), (0.1 + 0.2 - 0.005, 10))) == 1
    assert chosen(table((0.95, 100), (0.94499, 10))) == 0


def test_ties_in_cost_go_to_the_more_accurate_then_to_the_earlier_trial():
    assert chosen(table((0.948, 10), (0.95, 10), (0.95, 10), (0.95, 11))) == 1


def test_objective_accuracy_recommends_the_best_within_budget():
    rows = table((0.9, 10), (0.95, 12), (0.96, 13), (0.949, 3))
    asked = {"objective": "accuracy", "budget_epochs": 11}
    assert chosen(rows, **asked) == 1  # not the cheapest within the tolerance
    assert chosen(rows, **(asked | {"budget_epochs": 9})) == 3
    tie = table((0.95, 12), (0.95, 10), (0.95, 10))
    assert chosen(tie, **asked) == 1


def test_a_study_without_a_complete_trial_is_an_error():
    message = "no trial of weight-loss/digits/lenet_300_100/lottery is complete"
    with pytest.raises(ValueError, match=message):
        chosen(table((0.9, 10, "s"), (None, None, "f")))
    with pytest.raises(ValueError, match=message):
        chosen(table((0.9, 10)), objective="accuracy", budget_epochs=3)


def test_the_rule_is_described():
    rule = "the cheapest trial within 0.5 points of the best validation accuracy"
    assert describe_rule(search_of()) == rule
    limited = search_of(objective="accuracy", budget_epochs=40)
    assert describe_rule(limited).endswith("accuracy within 40 epochs of retraining")


def test_the_baseline_is_compared_with_the_best_trial_of_at_most_its_cost():
    rows = table((0.9, 10), (0.92, 10), (0.99, 11), (0.92, 8), (0.98, 9, "s"))
    baseline, best = at_equal_cost(rows)
    assert (baseline["number"], best["number"]) == (0, 3)
    alone, itself = at_equal_cost(table((0.9, 10), (0.99, 11)))
    assert (alone["number"], itself["number"]) == (0, 0)


def test_a_lost_baseline_is_replaced_by_its_retry():
    rows = table((None, None, "l"), (0.8, 5), (0.9, 10), again_for=[None, None, 0])
    baseline, best = at_equal_cost(rows)
    assert (baseline["number"], best["number"]) == (2, 2)


def test_without_a_complete_baseline_there_is_no_comparison():
    assert at_equal_cost(table((None, None, "f"), (0.8, 5))) is None
