"""The words for a number and for a difference."""

import pytest

from experiments.comparison import statistics
from experiments.comparison.wording import (
    ITERATIONS,
    POINTS,
    Difference,
    compared,
    difference,
    listed,
    p_text,
    remaining,
    times,
)
from tests.test_comparison_sentences import APART, rounds_of

NAN = float("nan")


def test_equal_differences_leave_nothing_to_test():
    gap = Difference(0.01, 0.01, 0.01, NAN, 3)
    assert compared("a", "b", gap, POINTS) == (
        "a is 1.00 points above b (the same in all 3 seeds, which leaves nothing to test)."
    )
    assert compared("a", "b", Difference(0.0, 0.0, 0.0, NAN, 3), POINTS) == (
        "a and b are equal here (the same in all 3 seeds, which leaves nothing to test)."
    )


def test_methods_without_a_common_seed_are_not_compared():
    assert compared("a", "b", None, POINTS) == "a and b have no seed in common here."
    rounds = rounds_of(APART)
    apart = rounds[~((rounds["method"] == "random") & (rounds["round"] == 1))]
    table = statistics.differences(apart)
    assert difference(table, "test_accuracy", 1, "lottery", "random") is None


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (listed(["a"]), "a"),
        (listed(["a", "b", "c"], "or"), "a, b or c"),
        (times(1, "seed"), "1 seed"),
        (times(1200, "seed"), "1,200 seeds"),
        (remaining(0.018501), "1.85%"),
        (remaining(1.0), "100%"),
        (p_text(0.00049), "p < 0.001"),
        (p_text(0.0351), "p = 0.035"),
        (POINTS.number(-0.00001), "0.00"),
        (POINTS.number(0.0123, sign=True), "+1.23"),
        (POINTS.number(NAN), "\N{EN DASH}"),
        (ITERATIONS.number(-12345.6), "\N{MINUS SIGN}12,346"),
    ],
)
def test_numbers_have_sensible_digits(said, expected):
    assert said == expected
