"""Numbers and lists as text."""

import pytest

from experiments.comparison.text import count, listed, metric_text, p_value, points, weights


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (listed(["a"]), "a"),
        (listed(["a", "b", "c"], "or"), "a, b or c"),
        (count(1, "seed"), "1 seed"),
        (count(1200, "seed"), "1,200 seeds"),
        (weights(0.018501), "1.85%"),
        (weights(1.0), "100%"),
        (points(-0.00904), "0.90 points"),
        (p_value(0.00049), "<0.001"),
        (p_value(0.0351), "0.035"),
        (metric_text("test_accuracy", -0.00001), "0.00"),
        (metric_text("test_accuracy", 0.0123, sign=True), "+1.23"),
        (metric_text("early_stop_iteration", -12345.6), "\N{MINUS SIGN}12,346"),
        (metric_text("valid_loss", 0.12345), "0.123"),
    ],
)
def test_numbers_have_sensible_digits(text, expected):
    assert text == expected
