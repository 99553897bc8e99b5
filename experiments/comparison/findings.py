"""Findings: the sentences at the top of a page, the verdict on each difference, and caveats.

A difference counts as shown only if it belongs to a family of families.py and its corrected p-value
is below 5%. What is not shown is undecided, never "the same".
"""

import math

import numpy as np
import pandas as pd

from experiments.comparison.families import (
    CONTROLLED,
    HEADLINE,
    LEVEL,
    SELECTED_BY,
    contenders,
    plain_of,
)
from experiments.comparison.matching import WINNING
from experiments.comparison.results import EARLY_STOP, Comparison
from experiments.comparison.statistics import (
    ACCURACY,
    DENSE,
    dense_interval,
    methods_of,
    pruned,
)
from experiments.comparison.text import count, listed, p_value, percent, points, weights
from experiments.figures.intervals import ROUNDING
from experiments.figures.page import UNKNOWN
from pruning.controls import CONTROLS
from pruning.reinit import REINITS

TRAINED_STARTS = ("keep", "lr_rewind", "rewind")  # their early stop excludes earlier training
HIGHER, LOWER = "higher", "lower"
CANNOT_TEST, EQUAL = "same in every seed", "equal in every seed"
ONE_SEED, NO_SEED = "one seed", "no common seed"
UNDECIDED = "undecided"
OUTSIDE = "not tested"
CLAIMS = {  # verdict -> what the best method's difference from others is called
    HIGHER: "is more accurate than {}",
    LOWER: "is less accurate than {}",
    UNDECIDED: "is not shown to differ from {}",
    CANNOT_TEST: "differs from {} by the same amount in every seed, which leaves nothing to test",
    EQUAL: "has the same accuracy in every seed as {}",
    ONE_SEED: "shares one seed with {}, too few to show a difference",
    NO_SEED: "shares no seed with {}",
}


BESIDE = {  # verdict -> how a control stands beside the method that it is for
    HIGHER: "is above",
    LOWER: "is below",
    UNDECIDED: "is not shown to differ from",
    CANNOT_TEST: "cannot be tested against",
    EQUAL: "is equal in every seed to",
    ONE_SEED: "cannot be tested against",
    NO_SEED: "cannot be tested against",
}


def verdict(row: pd.Series) -> str:
    """What one row of `Comparison.differences` shows: a key of `CLAIMS`, or `OUTSIDE`."""
    if row["n"] < 2:
        return ONE_SEED if row["n"] else NO_SEED
    if np.isnan(row["p_value"]):  # no spread to test against, which a few seeds do not prove
        return CANNOT_TEST if abs(row["difference"]) > ROUNDING else EQUAL
    if not row["family"]:
        return OUTSIDE
    if row["p_holm"] >= LEVEL:
        return UNDECIDED
    return HIGHER if row["difference"] > 0 else LOWER


def verdict_text(row: pd.Series) -> str:
    """The verdict, and what could have been shown where nothing was."""
    shown = verdict(row)
    return f"{shown} ({could_have(row)})" if shown == UNDECIDED else shown


def could_have(row: pd.Series) -> str:
    """The difference that these seeds would probably have shown."""
    return f"{points(row['detectable'])} could have been shown"


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
    for low, high in (("low", "high"), ("images_low", "images_high")):
        swapped |= {low: -row[high], high: -row[low]}
    return pd.Series({**row, **swapped})


def headline(comparison: Comparison) -> list[str]:
    """The answer: the best network of the shown size, what sets it apart, and the smallest.

    Validation accuracy says which method is the best, so that its test accuracy is that of a method
    which no test image has chosen.
    """
    number, summary = comparison.shown_round, comparison.summary
    if number == 0:
        return ["There is no pruned network, so there is nothing to compare."]
    ranks = contenders(summary, number)
    dense = dense_interval(comparison.rounds, ACCURACY, comparison.test_images, comparison.correct)
    left = 1 - pruned(summary[summary["round"] == number])["sparsity"].mean()
    return [
        f"With {weights(left)} of the weights, {_lead(ranks)} a mean test accuracy of "
        f"{_accuracy(ranks.iloc[0], f'{ACCURACY}_')}; the dense network has {_accuracy(dense)}.",
        _claims(comparison),
        *_of_controls(comparison),
        _smallest(comparison),
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


def rates(comparison: Comparison) -> str:
    """The learning rates of retraining in a sentence."""
    methods: dict[str, list[str]] = {}
    for method, rate in learning_rates(comparison).items():
        methods.setdefault(rate, []).append(method)
    shown = "; ".join(f"{listed(names)} {rate}" for rate, names in methods.items())
    return f"Retraining learning rates: {shown}."


def _accuracy(row: pd.Series, prefix: str = "") -> str:
    mean, low, high = (row[f"{prefix}{part}"] for part in ("mean", "images_low", "images_high"))
    spread = "one seed"
    if row["n"] > 1:
        spread = "no interval" if np.isnan(low) else f"95%: {percent(low)} to {percent(high)}"
    return f"{percent(mean)} ({spread})"


def _claims(comparison: Comparison) -> str:
    """What the tests of the headline's family show."""
    family = comparison.families[HEADLINE]
    rivals: dict[str, list[str]] = {claim: [] for claim in CLAIMS}
    tests, seeds = 0, set()
    for best, other in family:
        row = difference(comparison.differences, ACCURACY, comparison.shown_round, best, other)
        shown, name = verdict(row), "the dense network" if other == DENSE else other
        if shown in (HIGHER, LOWER):
            only = "; not shown for new test images" * bool(
                row["images_low"] <= 0 <= row["images_high"]
            )
            name += f" (by {points(row['difference'])}, p = {p_value(row['p_holm'])}{only})"
        rivals[shown].append(f"{name} ({could_have(row)})" if shown == UNDECIDED else name)
        tests += not np.isnan(row["p_value"])
        seeds.add(row["n"])
    *first, last = [
        CLAIMS[claim].format(listed(names)).replace("p = <", "p < ")
        for claim, names in rivals.items()
        if names
    ]
    corrected = f", corrected for {count(tests, 'test')} (Holm)" if tests else ""
    paired = f"Test accuracy, paired over {_seeds(seeds)}{corrected}: "
    return f"{paired}{family[0][0]} {', '.join(first)}{', and ' * bool(first)}{last}."


def _of_controls(comparison: Comparison) -> list[str]:
    """What the tests of the controls' family show, in a sentence, if there are controls."""
    parts, number = [], comparison.shown_round
    for control, other in comparison.families[CONTROLLED]:
        row = difference(comparison.differences, ACCURACY, number, control, other)
        shown = verdict(row)
        size = f", by {points(row['difference'])}" if shown in (HIGHER, LOWER) else ""
        parts.append(f"{control} {BESIDE[shown]} {other}{size}")
    return [f"Controls (corrected on their own): {'; '.join(parts)}."] if parts else []


def _seeds(numbers: set[int]) -> str:
    least, most = min(numbers), max(numbers)
    return f"{least} to {most} seeds" if least < most else count(most, "seed")


def _smallest(comparison: Comparison) -> str:
    matches = comparison.matches.sort_values("remaining", kind="stable")
    if matches["n"].max() < 2:
        return "One seed cannot show that a smaller network matches the dense one."
    shares = []
    for _, row in matches.iterrows():
        share = "none" if pd.isna(row["remaining"]) else weights(row["remaining"])
        shares.append(f"{row['method']} {share}{', a winning ticket' * (row['name'] == WINNING)}")
    return f"Smallest network shown to match the dense one: {'; '.join(shares)}."


def caveats(comparison: Comparison) -> list[str]:
    """What the numbers at the top stand on: seeds, images, intervals, families, margin."""
    seeds = comparison.rounds["seed"].unique()
    images = count(comparison.test_images, "test image")
    found = [f"n = {count(len(seeds), 'seed')} ({', '.join(map(str, seeds))})."]
    if len(seeds) == 1:
        found.append(
            f"With one seed no spread is known, and any difference may be chance; all is "
            f"conditional on these {images}."
        )
    else:
        over = f"over new seeds and new test images (here {images})"
        bound = "" if comparison.correct else ", the images' part an upper bound"
        found.append(f"95% intervals of accuracies are {over}{bound}.")
        found.append("Tests of differences are over seeds, conditional on this test set.")
    found.append(
        f"Matching: validation accuracy is less than {points(comparison.margin)} below the dense "
        "network's (one-sided 95% bound, each round tested alone)."
    )
    return [*found, rates(comparison)]


def note_on_tests(comparison: Comparison) -> str:
    """Which p-values are corrected for what, and how many are not."""
    table = comparison.differences
    known = table["p_value"].notna()
    parts = [
        f"{name} family: {count(int(((table['family'] == name) & known).sum()), 'test')}"
        for name in (HEADLINE, CONTROLLED)
        if comparison.families[name]
    ]
    free = int((known & (table["family"] == "")).sum())
    return (
        "Paired by seed, with two-sided t-tests, which assume normally distributed differences. "
        f"Corrected by Holm's method ({'; '.join(parts)}); the other {count(free, 'p-value')} of "
        "the comparison are not corrected: without any real difference, about one in twenty would "
        "be below 0.05."
    )


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
    if not comparison.constant_rate:
        notes.append(
            f"The learning rate follows schedule={comparison.setting['schedule']}, which sets when "
            "validation loss is lowest: these iterations say little about the networks, and are "
            "not tested."
        )
    trained = methods_of(here[here["reinit"].isin(TRAINED_STARTS)])
    if trained:
        notes.append(
            f"{listed(trained)} {'starts' if len(trained) == 1 else 'start'} from trained values: "
            "the iterations of earlier training are not counted."
        )
    steps = math.ceil(comparison.images["train"] / int(comparison.setting["batch_size"]))
    last = steps * here["method"].map(comparison.retrain_epochs)  # iteration of a round
    late = last[here[EARLY_STOP] >= last]
    if len(late):
        ends = listed([f"{end:,.0f}" for end in sorted(set(late))], "or")
        notes.append(
            f"In {len(late)} of {count(len(here), 'network')}, validation loss was lowest at the "
            f"last iteration ({ends}): longer training might lower it further."
        )
    return notes


def controls(comparison: Comparison) -> pd.DataFrame:
    """Each control minus the arm that prunes in the same way without it, and what that means.

    Frankle et al. 2021, arXiv:2009.08576; Su et al. 2020, arXiv:2009.11094.

    Returns:
        Rows of `Comparison.differences` with one more column, `meaning`.
    """
    number, summary = comparison.shown_round, comparison.summary
    if number == 0:
        return pd.DataFrame()
    kinds = summary.drop_duplicates("method").set_index("method")["control"]
    rows = []
    for method, other in plain_of(summary, number).items():
        if other is None:
            unknown = dict.fromkeys(comparison.differences, math.nan)
            row = pd.Series(unknown | {"method": method, "other": UNKNOWN, "n": 0, "family": ""})
            meaning = "there is no arm without the control to compare with"
        else:
            row = difference(comparison.differences, ACCURACY, number, method, other)
            meaning = _meaning(row, str(kinds[method]))
        rows.append({**row, "meaning": meaning})
    return pd.DataFrame(rows)


ASKED = {  # by controls that train another network
    "small": {
        LOWER: "pruning beats a small dense network with as many weights",
        HIGHER: "a small dense network with as many weights does better",
        UNDECIDED: "undecided whether pruning beats a small dense network",
    },
    "whole": {
        LOWER: "the pruned network beats the dense one, trained for as long",
        HIGHER: "the dense network does better, trained for as long",
        UNDECIDED: "undecided whether the dense network does better, trained for as long",
    },
}


def _meaning(row: pd.Series, control: str) -> str:
    network, shown = CONTROLS[control].network, verdict(row)
    if network in ASKED:
        return ASKED[network].get(shown, "cannot be tested")
    if shown == LOWER:
        return "it matters which weights are kept"
    if shown == HIGHER:
        return "the weights that the criterion keeps do worse"
    if shown != UNDECIDED:
        return "cannot be tested"
    beyond = ", beyond how many in each layer" if control.endswith("_mask") else ""
    return f"undecided whether it matters which weights are kept{beyond}"
