"""Matching: how small can a network be and still be shown to match the dense one?

A round of a method is a *matching subnetwork* if it is shown not to be inferior: the one-sided 95%
lower bound of its validation accuracy minus that of the same seed's dense network is above
-`margin` (paired t over seeds). A mean that happens to be at least the dense one's shows nothing:
a network that is equally good has it with probability one half.
"""

import math
from typing import Any

import pandas as pd

from experiments.comparison.statistics import is_smaller, methods_of
from experiments.figures.intervals import SHARE, lower_bound, mean_interval

MATCHING, WINNING = "matching subnetwork", "winning ticket"
SHARED = ("valid_accuracy", "test_accuracy", "early_stop_iteration")


def gains(own: pd.DataFrame) -> pd.DataFrame:
    """Validation accuracy of one method's pruned networks minus that of their dense networks.

    Returns:
        One row per round from 1 that all seeds of the method have, largest network first: `gain`,
        the mean over seeds, and `gain_low`, its one-sided 95% lower bound. The bound is NaN with
        one seed, and where all seeds gain the same: no spread, no bound.
    """
    dense = own[own["round"] == 0].set_index("seed")["valid_accuracy"]
    rows = own[own["round"] > 0]
    rows = rows.assign(gain=rows["valid_accuracy"] - rows["seed"].map(dense))
    groups = rows.groupby("round")
    n, spread = groups["gain"].count(), groups["gain"].std()
    found = pd.DataFrame({"gain": groups["gain"].mean(), "sparsity": groups["sparsity"].mean()})
    found["gain_low"] = lower_bound(found["gain"], spread, n)
    return found[n == own["seed"].nunique()].sort_values("sparsity", kind="stable")


def smallest_matches(
    rounds: pd.DataFrame, margin: float, constant_rate: bool = False
) -> pd.DataFrame:
    """Each method's smallest matching subnetwork: `matches.csv`.

    Test accuracy is only reported. Every round is tested at 5%. Where all larger networks match
    too, this is a fixed sequence of tests, and the probability of naming a network that is truly
    worse by more than `margin` is at most 5%; otherwise the smallest is a choice among several
    tests, and the probability may be higher.

    Args:
        rounds: As in statistics.py.
        margin: What counts as matching, a share of accuracy.
        constant_rate: Whether the learning rate is constant, so that early stops say something
            about the network and not about the schedule.

    Returns:
        One row per method, except those that do not make networks smaller, if
        others do: `method`, `n` (seeds),
        `margin`, `name` (`MATCHING`; `WINNING` if the method is `lottery` without a control, the
        rate is constant, and early stop comes no later than the dense network's in the mean over
        seeds), `round`, `remaining` (share of the weights), `gain` and `gain_low` (see `gains`),
        `larger_match` (whether all larger networks match), `valid_accuracy`, `test_accuracy` with
        its interval over seeds `test_low` to `test_high`, `early_stop_iteration`, and the same
        seeds' dense means as `dense_...`. If no round qualifies, `round` is <NA>, `name` is empty
        and the other values of the network are NaN.
    """
    smaller = rounds[rounds["control"].map(is_smaller)]
    rows = [
        _match(method, rounds[rounds["method"] == method], margin, constant_rate)
        for method in methods_of(rounds if smaller.empty else smaller)
    ]
    return pd.DataFrame(rows).astype({"round": "Int64", "larger_match": "boolean"})


def _match(method: str, own: pd.DataFrame, margin: float, constant_rate: bool) -> dict[str, Any]:
    tested = gains(own)
    passes = tested["gain_low"] > -margin
    dense = own[own["round"] == 0]
    number = tested.index[passes][-1] if passes.any() else None
    match = own[own["round"] == number] if number is not None else own.iloc[:0]
    means = {name: match[name].mean() for name in SHARED}
    dense_means = {f"dense_{name}": dense[name].mean() for name in SHARED}
    test = mean_interval(match, ["method"], "test_accuracy", SHARE).reindex([method]).iloc[0]
    bound: dict[str, Any] = {"gain": math.nan, "gain_low": math.nan, "larger_match": pd.NA}
    if number is not None:
        bound = dict(tested.loc[number, ["gain", "gain_low"]])
        bound["larger_match"] = bool(passes.loc[:number].all())
    ticket = (own["reinit"].iloc[0], own["control"].iloc[0]) == ("lottery", "none")
    in_time = means["early_stop_iteration"] <= dense_means["dense_early_stop_iteration"]
    name = WINNING if ticket and constant_rate and in_time else MATCHING
    return (
        {"method": method, "n": own["seed"].nunique(), "margin": margin}
        | {"name": name if number is not None else "", "round": number}
        | {"remaining": 1 - match["sparsity"].mean()}
        | bound
        | means
        | {"test_low": test["low"], "test_high": test["high"]}
        | dense_means
    )
