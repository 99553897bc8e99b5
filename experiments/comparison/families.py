"""Families: which differences does a comparison test, and what could it have shown?

A family is a set of differences that one question asks about. Its p-values are corrected together
by Holm's method (1979, doi:10.2307/4615733): with 5% as the limit, the probability of
showing any difference of the family that does not exist is at most 5%. Differences outside families
have raw p-values only and no verdict.

* `HEADLINE`: the best method against each other method and the dense network. Controls take no
  part: they are not contenders.
* `CONTROLLED`: each control against the method that prunes in the same way without it; a small
  dense network, and the dense network trained on, against the best method.
"""

import math
from collections.abc import Mapping
from functools import cache

import numpy as np
import pandas as pd
from scipy import optimize, stats  # type: ignore[import-untyped]
from scipy.special import ndtr  # type: ignore[import-untyped]

from experiments.comparison.statistics import ACCURACY, DENSE, is_smaller
from experiments.config.comparison import epoch_of, is_further_draw
from pruning.controls import CONTROLS

HEADLINE, CONTROLLED = "headline", "controls"
LEVEL, POWER = 0.05, 0.8
GRID = 10_000  # values of the spread
SELECTED_BY = "valid_accuracy_mean"
Pairs = list[tuple[str, str]]


def contenders(summary: pd.DataFrame, number: int) -> pd.DataFrame:
    """The methods of a round that may be called the best, best first.

    Validation accuracy decides. Methods with fewer seeds rank last, since the worst seeds may be
    missing. Further draws and controls are left out, unless there is nothing else; then networks
    that are not pruned come last.
    """
    here = summary[summary["round"] == number]
    first = here[~here["method"].map(is_further_draw)]
    first = here if first.empty else first
    choices = [first[first["control"] == "none"], first[first["control"].map(is_smaller)], first]
    ranks = next(each for each in choices if not each.empty)
    return ranks.sort_values(["n", SELECTED_BY], ascending=False, kind="stable")


def plain_of(summary: pd.DataFrame, number: int) -> dict[str, str | None]:
    """For each control of a round, the method to compare it with, if there is one.

    That is the method that prunes in the same way without it; for a control that trains another
    network than a pruned one, the best method.
    """
    arms = summary[summary["round"] == number].set_index("method")
    arms = arms[[not is_further_draw(str(method)) for method in arms.index]]
    found: dict[str, str | None] = {}
    if arms.empty:
        return found
    arms = arms.assign(epoch=[epoch_of(str(method)) for method in arms.index])
    alike = arms[["reinit", "criterion", "pruning", "epoch"]].agg(tuple, axis="columns")
    plain = arms["control"] == "none"
    best = contenders(summary, number)["method"].iloc[0]
    for method in arms.index[~plain]:
        others = arms.index[plain & (alike == alike[method])]
        if CONTROLS[arms.loc[method, "control"]].network != "pruned":
            others = pd.Index([best]) if plain[best] else others[:0]
        found[str(method)] = None if others.empty else str(others[0])
    return found


def families(summary: pd.DataFrame, number: int) -> dict[str, Pairs]:
    """The pairs (method, other) of each family in a round; none in round 0."""
    if number == 0:
        return {HEADLINE: [], CONTROLLED: []}
    best, *others = contenders(summary, number)["method"]
    others = [other for other in others if not is_further_draw(other)]
    controls = plain_of(summary, number).items()
    return {
        HEADLINE: [(best, other) for other in (*others, DENSE)],
        CONTROLLED: [(method, other) for method, other in controls if other],
    }


def corrected(differences: pd.DataFrame, asked: Mapping[str, Pairs], number: int) -> pd.DataFrame:
    """`statistics.differences` with what the families add.

    Returns:
        The same rows, with `family` (empty outside), `p_holm` (the corrected p-value, NaN outside
        of the families), and `detectable`: the difference that as many seeds with the spread that
        was seen would show with 80% probability, at 5% divided by the number of tests of the
        family.
    """
    table = differences.assign(family="", p_holm=math.nan)
    here = (table["metric"] == ACCURACY) & (table["round"] == number)
    tests = pd.Series(1, table.index)
    for name, pairs in asked.items():
        among = {*pairs, *((other, method) for method, other in pairs)}
        pairs_of = zip(table["method"], table["other"], strict=True)
        inside = pd.Series([pair in among for pair in pairs_of], table.index, dtype=bool)
        rows = table.index[here & inside]
        table.loc[rows, "family"] = name
        table.loc[rows, "p_holm"] = holm(table.loc[rows, "p_value"])
        tests[rows] = max(int(table.loc[rows, "p_value"].notna().sum()), 1)
    values = zip(table["std"], table["n"], tests, table["p_value"], strict=True)
    table["detectable"] = [
        math.nan if math.isnan(p) else std * detectable(int(n), LEVEL / many)
        for std, n, many, p in values
    ]
    return table


def holm(p_values: pd.Series) -> pd.Series:
    """p-values corrected by Holm's step-down method; NaN stays NaN and is not a test."""
    known = p_values.dropna().sort_values(kind="stable")
    steps = pd.Series(range(len(known), 0, -1), known.index, dtype=float)
    return (known * steps).cummax().clip(upper=1).reindex(p_values.index)


@cache
def detectable(n: int, level: float) -> float:
    """The mean difference that n seeds show with 80% probability, in standard deviations.

    It is that of a two-sided paired t-test. The noncentral t distribution is a mean of normal ones
    over the spread that is estimated; SciPy's own fails for two seeds.
    """
    limit = stats.t.ppf(1 - level / 2, n - 1)
    spreads = np.sqrt(stats.chi2.ppf((np.arange(GRID) + 0.5) / GRID, n - 1) / (n - 1))

    def shortfall(shift: float) -> float:
        shown = ndtr(shift - limit * spreads) + ndtr(-shift - limit * spreads)
        return float(shown.mean()) - POWER

    return float(optimize.brentq(shortfall, 0, 2 * limit + 5)) / math.sqrt(n)
