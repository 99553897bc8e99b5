"""Wording: numbers and differences as text, the same everywhere on the page.

A difference is called one only if its 95% interval leaves 0 out. To tell another metric: a `Unit`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from experiments.comparison.statistics import DENSE


@dataclass(frozen=True)
class Difference:
    """A paired difference with its 95% interval; NaN where n is too small to know."""

    value: float
    low: float
    high: float
    p_value: float
    n: int

    @property
    def shows(self) -> bool:
        """Whether the interval leaves 0 out; never where all seeds agree to the last digit.

        A few equal differences do not prove that there is no spread.
        """
        return not np.isnan(self.p_value) and (self.low > 0 or self.high < 0)

    @property
    def same(self) -> bool:
        """Whether it is the same in all seeds, so that there is no spread to test it against."""
        return self.n > 1 and bool(np.isnan(self.p_value))


@dataclass(frozen=True)
class Unit:
    """How a metric is told: `digits` decimals of `scale` times the value."""

    metric: str
    label: str
    name: str
    scale: float
    digits: int
    more: str = "above"
    less: str = "below"

    def number(self, value: float, sign: bool = False) -> str:
        """The value in this unit, with a real minus sign; a dash where it is not known."""
        if np.isnan(value):
            return "\N{EN DASH}"
        scaled = round(self.scale * value, self.digits) + 0.0  # no negative zero
        plus = "+" if sign and scaled else ""
        return f"{scaled:{plus},.{self.digits}f}".replace("-", "\N{MINUS SIGN}")

    def amount(self, gap: Difference) -> str:
        """How much more or less, such as `0.42 points above`."""
        word = self.more if gap.value > 0 else self.less
        return f"{self.number(abs(gap.value))} {self.name} {word}"


UNITS = {
    unit.metric: unit
    for unit in (
        Unit("test_accuracy", "test accuracy", "points", 100, 2),
        Unit(
            "early_stop_iteration",
            "early-stop iteration",
            "iterations",
            1,
            0,
            more="later than",
            less="earlier than",
        ),
        Unit("early_stop_test_accuracy", "test accuracy at early stop", "points", 100, 2),
        Unit("valid_accuracy", "validation accuracy", "points", 100, 2),
    )
}
POINTS, ITERATIONS = UNITS["test_accuracy"], UNITS["early_stop_iteration"]


def percent(share: float) -> str:
    """An accuracy in [0, 1] as text, such as `97.21%`."""
    return f"{100 * share:.2f}%"


def remaining(share: float) -> str:
    """A share of weights in [0, 1] to three digits, such as `10.7%`."""
    return f"{100 * share:.3g}%"


def fold(ratio: float) -> str:
    """A ratio to three digits, with the sign for times."""
    return f"{ratio:.3g}\N{MULTIPLICATION SIGN}"


def p_text(p_value: float) -> str:
    """A p-value to two digits, such as `p = 0.031`."""
    return "p < 0.001" if p_value < 0.001 else f"p = {p_value:.2g}"


def times(count: int, noun: str) -> str:
    """`1 seed`, `3 seeds`."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def listed(words: Sequence[str], last: str = "and") -> str:
    """`a, b and c`."""
    return f" {last} ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def difference(
    differences: pd.DataFrame, metric: str, number: int, method: str, other: str
) -> Difference | None:
    """Method minus other in a round, whichever of them the table names first.

    None where they have no seed in common.
    """
    here = differences[(differences["metric"] == metric) & (differences["round"] == number)]
    for first, second, sign in ((method, other, 1), (other, method, -1)):
        found = here[(here["method"] == first) & (here["other"] == second) & (here["n"] > 0)]
        if len(found):
            row = found.iloc[0]
            low, high = sorted((sign * row["low"], sign * row["high"]))
            return Difference(sign * row["difference"], low, high, row["p_value"], int(row["n"]))
    return None


def evidence(gap: Difference, unit: Unit) -> str:
    """What a difference rests on: interval, p-value and number of seeds."""
    if gap.n < 2:
        return "n = 1, spread unknown"
    if gap.same:
        return f"the same in all {gap.n} seeds, which leaves nothing to test"
    interval = f"95% interval {unit.number(gap.low)} to {unit.number(gap.high)}"
    return f"{interval}, {p_text(gap.p_value)}, n = {gap.n}"


def compared(method: str, other: str, gap: Difference | None, unit: Unit) -> str:
    """One sentence that says how far `method` is from `other`."""
    whom = "the dense network" if other == DENSE else other
    if gap is None:
        return f"{method} and {whom} have no seed in common here."
    if gap.value == gap.low == gap.high == 0 or (gap.n < 2 and gap.value == 0):
        return f"{method} and {whom} are equal here ({evidence(gap, unit)})."
    if gap.n < 2 or gap.shows or gap.same:
        return f"{method} is {unit.amount(gap)} {whom} ({evidence(gap, unit)})."
    return (
        f"Between {method} and {whom} there is no difference that {gap.n} seeds could show: "
        f"{unit.number(gap.value, sign=True)} {unit.name} ({evidence(gap, unit)})."
    )
