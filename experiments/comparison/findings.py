"""Findings: the sentences at the top of a page, the verdict on each difference, and caveats.

A difference counts as shown only if its 95% interval excludes 0.
"""

import math

import numpy as np
import pandas as pd

from experiments.comparison.results import Comparison
from experiments.comparison.statistics import DENSE, ROUNDING, dense_interval, methods_of
from experiments.comparison.text import count, listed, percent, weights
from experiments.figures.page import UNKNOWN
from pruning.reinit import REINITS

ACCURACY, EARLY_STOP = "test_accuracy", "early_stop_iteration"
SELECTED_BY = "valid_accuracy_mean"
TRAINED_STARTS = ("keep", "lr_rewind", "rewind")  # their early stop excludes earlier training
CANNOT_TEST, EQUAL = "same in every seed", "equal in every seed"
ONE_SEED, NO_SEED = "one seed", "no common seed"
NOT_SHOWN = "no difference shown"
CLAIMS = {  # verdict -> what the best method's difference from others is called
    "higher": "is more accurate than {}",
    "lower": "is less accurate than {}",
    NOT_SHOWN: "shows no difference from {}",
    CANNOT_TEST: "differs from {} by the same amount in every seed, which leaves nothing to test",
    EQUAL: "has the same accuracy in every seed as {}",
    ONE_SEED: "shares one seed with {}, too few to show a difference",
    NO_SEED: "shares no seed with {}",
}


def verdict(row: pd.Series) -> str:
    """What one row of `statistics.differences` shows: a key of `CLAIMS`."""
    if row["n"] < 2:
        return ONE_SEED if row["n"] else NO_SEED
    if np.isnan(row["p_value"]):  # no spread to test against, which a few seeds do not prove
        return CANNOT_TEST if abs(row["difference"]) > ROUNDING else EQUAL
    if row["low"] <= 0 <= row["high"]:
        return NOT_SHOWN
    return "higher" if row["difference"] > 0 else "lower"


def difference(
    differences: pd.DataFrame, metric: str, number: int, method: str, other: str
) -> pd.Series:
    """`method` minus `other` in round `number`, whichever of the two the table names first."""
    here = differences[(differences["metric"] == metric) & (differences["round"] == number)]
    found = here[(here["method"] == method) & (here["other"] == other)]
    if len(found):
        return found.iloc[0]
    row = here[(here["method"] == other) & (here["other"] == method)].iloc[0]
    swapped = {"method": method, "other": other, "difference": -row["difference"]}
    return pd.Series({**row, **swapped, "low": -row["high"], "high": -row["low"]})


def headline(comparison: Comparison) -> list[str]:
    """The answer: the best network of the shown size, what sets it apart, and the smallest.

    Validation accuracy says which method is the best, so that its test accuracy is that of a method
    which no test image has chosen.
    """
    number, summary = comparison.shown_round, comparison.summary
    here = summary[summary["round"] == number]
    if number == 0:
        return ["There is no pruned network, so there is nothing to compare."]
    # Methods with fewer seeds rank last, since the worst seeds may be missing.
    ranks = here.sort_values(["n", SELECTED_BY], ascending=False, kind="stable")
    best, *others = ranks["method"]
    dense = dense_interval(comparison.rounds, ACCURACY)
    return [
        f"With {weights(1 - here['sparsity'].mean())} of the weights, {_lead(ranks)} a mean test "
        f"accuracy of {_accuracy(ranks.iloc[0], f'{ACCURACY}_')}; the dense network has "
        f"{_accuracy(dense)}.",
        _claims(comparison, best, others),
        _smallest(comparison.matches),
        _rates(comparison),
    ]


def _lead(ranks: pd.DataFrame) -> str:
    """Which methods are ahead, up to the test accuracy of the first of them."""
    best = ranks.iloc[0]
    if len(ranks) == 1:
        return f"{best['method']} has"
    complete = ranks[ranks["n"] == best["n"]]
    leaders = complete[complete[SELECTED_BY] >= best[SELECTED_BY] - ROUNDING]["method"]
    among = "" if len(complete) == len(ranks) else " of the methods with all seeds"
    if len(leaders) == 1:
        return f"{best['method']} has the highest validation accuracy{among}, and"
    shared = f"{listed(leaders)} share the highest validation accuracy{among}"
    return f"{shared}; {best['method']} has"


def learning_rates(comparison: Comparison) -> dict[str, str]:
    """The learning rate at which each method retrains, and how it changes in a round."""
    schedule = comparison.setting["schedule"]
    ways = {
        "start": schedule,
        "rewound": f"{schedule} from the rewind epoch on",
        "constant": "constant",
    }
    first = comparison.rounds.drop_duplicates("method")
    return {
        method: f"{comparison.retrain_lr[method]:g}, {ways[REINITS[reinit].schedule]}"
        for method, reinit in zip(first["method"], first["reinit"], strict=True)
    }


def _rates(comparison: Comparison) -> str:
    methods: dict[str, list[str]] = {}
    for method, rate in learning_rates(comparison).items():
        methods.setdefault(rate, []).append(method)
    shown = "; ".join(f"{listed(names)} {rate}" for rate, names in methods.items())
    return f"Learning rates of retraining: {shown}."


def _accuracy(row: pd.Series, prefix: str = "") -> str:
    mean, low, high = (row[f"{prefix}{part}"] for part in ("mean", "low", "high"))
    spread = f"95% interval {percent(low)} to {percent(high)}" if row["n"] > 1 else "one seed"
    return f"{percent(mean)} ({spread})"


def _claims(comparison: Comparison, best: str, others: list[str]) -> str:
    rivals: dict[str, list[str]] = {claim: [] for claim in CLAIMS}
    for other in (*others, DENSE):
        row = difference(comparison.differences, ACCURACY, comparison.shown_round, best, other)
        rivals[verdict(row)].append("the dense network" if other == DENSE else other)
    *first, last = [
        CLAIMS[claim].format(listed(names, "or" if claim == NOT_SHOWN else "and"))
        for claim, names in rivals.items()
        if names
    ]
    return f"Compared seed by seed, {best} {', '.join(first)}{', and ' * bool(first)}{last}."


def _smallest(matches: pd.DataFrame) -> str:
    shares = [
        f"{row['method']} {'none' if pd.isna(row['remaining']) else weights(row['remaining'])}"
        for _, row in matches.sort_values("remaining", kind="stable").iterrows()
    ]
    return (
        "Weights left in the smallest network that matches the dense one (mean validation accuracy "
        f"at least as high): {listed(shares)}."
    )


def caveats(comparison: Comparison) -> list[str]:
    """What limits every number on the page: seeds, assumptions, many tests, missing networks."""
    seeds = comparison.rounds["seed"].unique()
    found = [f"n = {count(len(seeds), 'seed')} ({', '.join(map(str, seeds))})."]
    if len(seeds) == 1:
        found.append("With one seed no spread is known, and any difference may be chance.")
    tests = int(comparison.differences["p_value"].notna().sum())
    if tests:
        found.append(
            "Intervals and p-values assume normally distributed differences between seeds. "
            f"The {count(tests, 'p-value')} on this page are not corrected for multiple "
            "comparisons: without any real difference, about one in twenty would be below 0.05."
        )
    return found


def incomplete(rounds: pd.DataFrame) -> list[str]:
    """Methods that lack networks, and of which seeds."""
    every = pd.MultiIndex.from_product([rounds["seed"].unique(), rounds["round"].unique()])
    notes = []
    for method, own in rounds.groupby("method", sort=False)[["seed", "round"]]:
        missing = every.difference(pd.MultiIndex.from_frame(own))
        seeds = sorted(set(missing.get_level_values(0)))
        if seeds:
            notes.append(
                f"{method} lacks {count(len(missing), 'network')} (seed {listed(seeds)}): its "
                "means cover fewer seeds, and it ranks below complete methods."
            )
    return notes


def early_stop_notes(comparison: Comparison) -> list[str]:
    """What limits a comparison of early-stop iterations."""
    rounds = comparison.rounds
    here = rounds[rounds["round"] == comparison.shown_round]
    notes = []
    trained = methods_of(here[here["reinit"].isin(TRAINED_STARTS)])
    if trained:
        notes.append(
            f"{listed(trained)} {'starts' if len(trained) == 1 else 'start'} from trained values: "
            "the iterations of earlier training are not counted."
        )
    epochs, batch = (int(comparison.setting[name]) for name in ("retrain_epochs", "batch_size"))
    last = epochs * math.ceil(comparison.images["train"] / batch)  # iteration of a round
    late = int((here[EARLY_STOP] >= last).sum())
    if late:
        notes.append(
            f"In {late} of {count(len(here), 'network')}, validation loss was lowest at the last "
            f"iteration ({last:,}): longer training might lower it further."
        )
    return notes


def controls(comparison: Comparison) -> pd.DataFrame:
    """Each control minus the arm that prunes in the same way without it, and what that means.

    Frankle et al. 2021, arXiv:2009.08576; Su et al. 2020, arXiv:2009.11094.

    Returns:
        Rows of `statistics.differences` with one more column, `meaning`.
    """
    number, summary = comparison.shown_round, comparison.summary
    arms = summary[summary["round"] == number].set_index("method")
    alike = arms[["reinit", "criterion", "pruning"]].agg(tuple, axis="columns")
    plain = arms["control"] == "none"
    rows = []
    for method in arms.index[~plain]:
        others = arms.index[plain & (alike == alike[method])]
        if others.empty:
            unknown = dict.fromkeys(comparison.differences, math.nan)
            row = pd.Series(unknown | {"method": method, "other": UNKNOWN, "n": 0})
            meaning = "there is no arm without the control to compare with"
        else:
            row = difference(comparison.differences, ACCURACY, number, method, others[0])
            meaning = _meaning(row, str(arms.loc[method, "control"]))
        rows.append({**row, "meaning": meaning})
    return pd.DataFrame(rows)


def _meaning(row: pd.Series, control: str) -> str:
    shown = verdict(row)
    if shown in (CANNOT_TEST, ONE_SEED, NO_SEED):
        return "cannot be tested"
    if shown == "lower":
        return "it matters which weights are kept"
    if shown == "higher":
        return "the weights that the criterion keeps do worse"
    beyond = ", beyond how many in each layer" if control.endswith("_mask") else ""
    return f"no sign that it matters which weights are kept{beyond}; more seeds might show one"
