"""Sentences: what did the comparison find, in words that its numbers bear?

Pure functions from the tables of experiments/comparison/statistics.py to plain text. Where there
is one seed, nothing is said about spread. To add a finding: write a function that returns
sentences, and give it a heading in `findings`.
"""

from dataclasses import dataclass

import pandas as pd

from experiments.comparison.statistics import DENSE, methods_of
from experiments.comparison.wording import (
    ITERATIONS,
    POINTS,
    Difference,
    compared,
    difference,
    evidence,
    listed,
    percent,
    remaining,
    times,
)

NO_CONTROL = "none"
# These start from values that were trained before, which their early stop does not count.
TRAINED_STARTS = ("keep", "lr_rewind", "rewind")


# Means over fewer seeds are not comparable, since what failed may have been the worst.
RANKING = ["n", "test_accuracy_mean"]


@dataclass(frozen=True)
class Tables:
    """The numbers of a comparison: `rounds`, and what statistics.py makes of them."""

    rounds: pd.DataFrame
    summary: pd.DataFrame
    differences: pd.DataFrame
    tickets: pd.DataFrame


def findings(tables: Tables, shown_round: int, last_iteration: int | None) -> dict[str, list[str]]:
    """All that can be said, by heading; a heading with nothing to say is left out.

    Args:
        tables: Of one comparison.
        shown_round: The round that was asked for, besides the smallest networks.
        last_iteration: Where a round's training ends; None if that is not known.
    """
    summary, differences = tables.summary, tables.differences
    smallest = smallest_round(summary)
    said = {
        "Accuracy of the smallest networks": accuracy(summary, differences, smallest),
        "Accuracy at the chosen size": accuracy(summary, differences, shown_round)
        if shown_round in set(summary["round"]) - {0, smallest}
        else [],
        "Winning tickets": winning_tickets(tables.tickets, summary),
        "Speed of training": speed(tables.rounds, differences, shown_round, last_iteration),
        "Controls": controls(summary, differences, shown_round),
        "How sure is this?": doubts(tables.rounds, differences),
    }
    return {heading: texts for heading, texts in said.items() if texts}


def smallest_round(summary: pd.DataFrame) -> int:
    """The last round that at least two methods reach, or the only one reaches."""
    reached = summary.groupby("method")["round"].max().sort_values(ascending=False)
    return int(reached.iloc[min(1, len(reached) - 1)])


def accuracy(summary: pd.DataFrame, differences: pd.DataFrame, number: int) -> list[str]:
    """Which method is most accurate in a round, and by how much."""
    here = summary[summary["round"] == number]
    if number == 0 or here.empty:
        return ["No two methods got beyond the dense network, so there is nothing to compare."]
    ranked = here.sort_values(RANKING, ascending=False, kind="stable")
    best, others = ranked.iloc[0], ranked["method"].iloc[1:]
    name = str(best["method"])
    said = "is the most accurate on average, at" if len(others) else "has a test accuracy of"
    lead = (
        f"With {remaining(1 - best['sparsity'])} of the weights left "
        f"({best['compression_ratio']:.1f} times fewer parameters), {name} {said} "
        f"{percent(best['test_accuracy_mean'])} ({_spread(best, 'test_accuracy_')})."
    )
    gaps = [
        compared(name, other, difference(differences, POINTS.metric, number, name, other), POINTS)
        for other in (*others, DENSE)
    ]
    return [lead, *gaps, *_not_there(summary, number)]


def _spread(row: pd.Series, prefix: str) -> str:
    if row["n"] < 2:
        return "n = 1"
    low, high = percent(row[f"{prefix}low"]), percent(row[f"{prefix}high"])
    return f"95% interval {low} to {high}, n = {row['n']:.0f}"


def _not_there(summary: pd.DataFrame, number: int) -> list[str]:
    here = set(summary.loc[summary["round"] == number, "method"])
    absent = [name for name in summary["method"].unique() if name not in here]
    verb = "has" if len(absent) == 1 else "have"
    return [f"{listed(absent)} {verb} no network this small."] if absent else []


def winning_tickets(tickets: pd.DataFrame, summary: pd.DataFrame) -> list[str]:
    """The smallest network of each method that matches the dense one, by `statistics.RULE`."""
    return [
        _ticket(row, summary[summary["method"] == row["method"]]) for _, row in tickets.iterrows()
    ]


def _ticket(row: pd.Series, summary: pd.DataFrame) -> str:
    method = row["method"]
    tried = 1 - summary.loc[summary["round"] > 0, "sparsity"]
    if tried.empty:
        return f"{method} has no pruned network to judge."
    if pd.isna(row["round"]):
        return (
            f"{method} never matches the dense network on validation images, from "
            f"{remaining(tried.max())} of the weights down to {remaining(tried.min())}."
        )
    fewest = ", the fewest tried" if row["round"] == summary["round"].max() else ""
    return (
        f"The smallest network of {method} that matches the dense one has "
        f"{remaining(row['remaining'])} of the weights{fewest}: {percent(row['valid_accuracy'])} "
        f"against {percent(row['dense_valid_accuracy'])} on validation images. On test images it "
        f"has {percent(row['test_accuracy'])} ({_spread(row, 'test_')}), the dense network "
        f"{percent(row['dense_test_accuracy'])}."
    )


def speed(
    rounds: pd.DataFrame, differences: pd.DataFrame, number: int, last_iteration: int | None
) -> list[str]:
    """Who reaches the lowest validation loss sooner, against the dense network and each other.

    Ratios are of means over the seeds that both have; `last_iteration` tells a minimum from the
    end of training.
    """
    here = rounds[rounds["round"] == number]
    if number == 0 or here.empty:
        return []
    said = [_sooner(rounds, differences, number, str(name), DENSE) for name in methods_of(here)]
    fresh = here[~here["reinit"].isin(TRAINED_STARTS)]
    means = fresh.groupby("method", sort=False)[ITERATIONS.metric].mean().sort_values(kind="stable")
    first, *later = [str(name) for name in means.index] or [""]
    said += [_sooner(rounds, differences, number, other, first) for other in later]
    trained = methods_of(here[here["reinit"].isin(TRAINED_STARTS)])
    if trained:
        verb = "starts" if len(trained) == 1 else "start"
        said.append(
            f"{listed(trained)} {verb} from values that were trained before: the iterations that "
            "made them are not counted here."
        )
    late = 0 if last_iteration is None else int((here[ITERATIONS.metric] >= last_iteration).sum())
    if late:
        said.append(
            f"In {late} of {times(len(here), 'network')} the lowest validation loss came with the "
            f"last iteration ({last_iteration:,}): longer training might have gone lower still."
        )
    return said


def _sooner(
    rounds: pd.DataFrame, differences: pd.DataFrame, number: int, method: str, other: str
) -> str:
    gap = difference(differences, ITERATIONS.metric, number, method, other)
    if gap is None:
        return compared(method, other, gap, ITERATIONS)
    mine, theirs = _paired_means(rounds, number, method, other)
    whose = "the dense network" if other == DENSE else other
    doubt = (
        ""
        if gap.n < 2 or gap.shows or gap.same
        else f"; no difference that {gap.n} seeds could show"
    )
    return (
        f"{method} takes {mine / theirs:.2f} times as many iterations as {whose} to its lowest "
        f"validation loss: {mine:,.0f} against {theirs:,.0f}{doubt} (difference "
        f"{ITERATIONS.number(gap.value, sign=True)}, {evidence(gap, ITERATIONS)})."
    )


def _paired_means(
    rounds: pd.DataFrame, number: int, method: str, other: str
) -> tuple[float, float]:
    def by_seed(name: str, at: int) -> pd.Series:
        rows = rounds[(rounds["method"] == name) & (rounds["round"] == at)]
        return rows.set_index("seed")[ITERATIONS.metric]

    mine = by_seed(method, number)
    theirs = by_seed(method, 0) if other == DENSE else by_seed(other, number)
    both = mine.index.intersection(theirs.index)
    return float(mine[both].mean()), float(theirs[both].mean())


def controls(summary: pd.DataFrame, differences: pd.DataFrame, number: int) -> list[str]:
    """Whether it matters which weights are kept: controls against the arm they are made from.

    Frankle et al. 2021, arXiv:2009.08576; Su et al. 2020, arXiv:2009.11094.
    """
    arms = summary[summary["round"] == number].drop_duplicates("method")
    said = []
    for arm in arms[arms["control"] != NO_CONTROL].itertuples():
        like = arms
        for name in ("reinit", "criterion", "pruning"):
            like = like[like[name] == getattr(arm, name)]
        true = methods_of(like[like["control"] == NO_CONTROL])
        if not true:
            said.append(f"{arm.method} has no arm without the control beside it to judge it by.")
            continue
        gap = difference(differences, POINTS.metric, number, str(arm.method), true[0])
        meaning = _meaning(gap, str(arm.control))
        said.append(compared(str(arm.method), true[0], gap, POINTS) + meaning)
    return said


def _meaning(gap: Difference | None, control: str) -> str:
    if gap is None or gap.n < 2 or (gap.same and gap.value):
        return ""
    if gap.shows and gap.high < 0:
        return " So here it does matter which weights are kept."
    if gap.shows:
        return " So here the choice that the criterion makes does harm."
    beyond = ", beyond how many in each layer" if control.endswith("_mask") else ""
    return (
        f" So these seeds give no sign that it matters which weights are kept{beyond}; more seeds "
        "might."
    )


def doubts(rounds: pd.DataFrame, differences: pd.DataFrame) -> list[str]:
    """What limits all the other sentences: seeds, missing networks, many tests at once."""
    seeds = sorted(rounds["seed"].unique())
    if len(seeds) == 1:
        return [
            "There is one seed: nothing can be said about spread, and every difference here may "
            "be chance."
        ]
    said = [
        f"Every interval and p-value rests on {times(len(seeds), 'seed')} at most, and takes "
        "differences between seeds to be normally distributed."
    ]
    tests = int(differences["p_value"].notna().sum())
    if tests:
        said.append(
            f"The p-values are not corrected for multiple comparisons: of {times(tests, 'test')} "
            "on this page one in twenty would fall below 0.05 by chance alone."
        )
    if len(methods_of(rounds)) > 2:
        said.append(
            "The method called the most accurate was chosen for that by these same test images, "
            "which flatters its lead over the others."
        )
    return said + [text for name in methods_of(rounds) for text in _incomplete(rounds, name)]


def _incomplete(rounds: pd.DataFrame, method: str) -> list[str]:
    mine = rounds[rounds["method"] == method]
    expected = pd.MultiIndex.from_product([rounds["seed"].unique(), rounds["round"].unique()])
    there = pd.MultiIndex.from_frame(mine[["seed", "round"]])
    lacking = expected.difference(there)
    if lacking.empty:
        return []
    seeds = [str(seed) for seed in sorted(set(lacking.get_level_values(0)))]
    word = "seed" if len(seeds) == 1 else "seeds"
    return [
        f"{method} lacks {times(len(lacking), 'network')} (of {word} {listed(seeds)}): its means "
        "there are over fewer seeds, or missing."
    ]
