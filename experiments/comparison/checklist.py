"""Checklist: what do Blalock et al. ask of a pruning experiment, and is it here?

Blalock et al. 2020, "What is the State of Neural Network Pruning?", arXiv:2003.03033, section 6
and the appendix, in our words. Each answer comes from the data, with its evidence. To add an item:
a function of `Evidence` that returns an `Item`, and a line in `ITEMS`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from experiments.comparison.statistics import methods_of
from experiments.comparison.wording import fold, listed, times
from pruning.reinit import REINITS

Answer = Literal["yes", "partly", "no"]
OPERATING_POINTS = (2, 4, 8, 16, 32)
NEAR = 1.12  # of a ratio: half of a step of the customary 20% a round
SUBSTANTIAL = 0.02  # of accuracy
SMALL_DATA = ("mnist", "digits")
CLASSIC = ("magnitude", "random")


@dataclass(frozen=True)
class Evidence:
    """What the answers are drawn from; fields as in `experiments.comparison.page.Comparison`."""

    rounds: pd.DataFrame
    summary: pd.DataFrame
    setting: Mapping[str, str]
    environment: Mapping[str, str]
    images: Mapping[str, int]
    failures: int = 0


@dataclass(frozen=True)
class Item:
    """One thing that is asked for, whether it is here, and how one can tell."""

    asked: str
    answer: Answer
    why: str


def checklist(evidence: Evidence) -> list[Item]:
    """All items, filled in."""
    return [item(evidence) for item in ITEMS]


def pairs(evidence: Evidence) -> Item:
    """Several data sets and architectures."""
    dataset, model = (evidence.setting.get(name, "unknown") for name in ("dataset", "model"))
    small = " The authors do not count MNIST and toy models." if dataset in SMALL_DATA else ""
    return Item(
        "At least three pairs of data set and architecture, large modern ones among them",
        "no",
        f"One pair: {dataset} and {model}.{small}",
    )


def named(evidence: Evidence) -> Item:
    """Architecture, data, pre-processing and metrics."""
    missing = [name for name in ("dataset", "model") if name not in evidence.setting]
    missing += [] if evidence.images else ["number of images"]
    unknown = f" Not known: {listed(missing)}." if missing else ""
    return Item(
        "Architecture, data, pre-processing and metrics identified exactly, in one place",
        "no" if len(missing) == 3 else "partly",
        f"Names, settings and numbers of images are on this page; pre-processing and the metrics' "
        f"definitions are in the project's docs/method.md.{unknown}",
    )


def reproducible(evidence: Evidence) -> Item:
    """Enough to do it again."""
    commits = evidence.environment.get("git_commit", "unknown").split(", ")
    commit = listed([name[:12] for name in commits])
    dirty = evidence.environment.get("git_dirty", "unknown")
    clean = len(commits) == 1 and commit != "unknown" and dirty == "false"
    state = (
        ""
        if dirty == "false"
        else (
            "; it is not known whether files were changed after it"
            if dirty == "unknown"
            else "; files were changed after it"
        )
    )
    return Item(
        "All hyperparameters, the source code, libraries and hardware given",
        "yes" if clean else "partly",
        f"Command, settings, versions and processor are below; commit {commit}{state}.",
    )


def dense_too(evidence: Evidence) -> Item:
    """The network before pruning, measured alike."""
    lacking = [
        name
        for name, rows in evidence.rounds.groupby("method", sort=False)
        if not (rows["round"] == 0).any()
    ]
    return Item(
        "The same metrics for the network before pruning, and raw values at every point",
        "partly" if lacking else "yes",
        f"No dense network for {listed([str(name) for name in lacking])}."
        if lacking
        else "Round 0 is the dense network of the same seed.",
    )


def both_sizes(evidence: Evidence) -> Item:
    """Compression ratio and theoretical speed-up."""
    names = ("compression_ratio", "theoretical_speedup")
    there = [bool(evidence.summary[name].notna().all()) for name in names]
    largest = [fold(evidence.summary[name].max()) for name in names]
    return Item(
        "Both compression ratio (old size / new) and theoretical speed-up (multiply-adds)",
        "yes" if all(there) else "partly" if any(there) else "no",
        f"Up to {largest[0]} and {largest[1]}. Neither is a measured time.",
    )


def operating_points(evidence: Evidence) -> Item:
    """Five ratios from 2 to 32."""
    pruned = evidence.summary[evidence.summary["round"] > 0]
    ratios = np.unique(pruned["compression_ratio"].to_numpy(dtype=float))
    found = {point: _nearest(ratios, point) for point in OPERATING_POINTS}
    covered = [point for point, ratio in found.items() if ratio is not None]
    told = [f"{fold(near) if near else 'none'} for {fold(point)}" for point, near in found.items()]
    return Item(
        "At least five operating points, such as 2, 4, 8, 16 and 32 times smaller",
        "yes" if len(covered) == len(found) else "partly" if covered else "no",
        f"Nearest networks within {NEAR - 1:.0%}: {', '.join(told)}; "
        f"{times(evidence.summary['round'].nunique() - 1, 'pruned size')} in all.",
    )


def _nearest(ratios: NDArray[np.float64], point: int) -> float | None:
    distance = np.abs(np.log(ratios / point))
    if not len(ratios) or distance.min() > np.log(NEAR):
        return None
    return float(ratios[distance.argmin()])


def extremes(evidence: Evidence) -> Item:
    """As far as where it breaks."""
    means = evidence.summary.pivot(index="round", columns="method", values="test_accuracy_mean")
    drop = float(np.nanmax((means.loc[0] - means).to_numpy(dtype=float)))
    return Item(
        "Sizes so small that accuracy falls substantially",
        "yes" if drop >= SUBSTANTIAL else "no",
        f"The largest fall below the dense network's mean is {100 * drop:.2f} points "
        f"(asked for here: {100 * SUBSTANTIAL:.0f}).",
    )


def curves(evidence: Evidence) -> Item:
    """Trade-off curves beside each other."""
    methods = methods_of(evidence.rounds)
    return Item(
        "Trade-off curves beside those of competing methods",
        "yes" if len(methods) > 1 else "no",
        f"{times(len(methods), 'method')}: {listed(methods)}.",
    )


def top5(evidence: Evidence) -> Item:
    """Top-1 and top-5."""
    del evidence
    return Item(
        "Top-1 accuracy, and top-5 where there are many classes",
        "partly",
        "Top-1 is reported; top-5 is not measured.",
    )


def random_baseline(evidence: Evidence) -> Item:
    """Random pruning."""
    arms = evidence.summary.drop_duplicates("method")
    by_lot = methods_of(arms[(arms["criterion"] == "random") | (arms["control"] == "random_mask")])
    return Item(
        "A baseline of random pruning",
        "yes" if by_lot else "no",
        f"{listed(by_lot)}." if by_lot else "No method here chooses its weights by lot.",
    )


def magnitude_baseline(evidence: Evidence) -> Item:
    """Magnitude pruning."""
    arms = evidence.summary.drop_duplicates("method")
    by_size = methods_of(arms[(arms["criterion"] == "magnitude") & (arms["control"] == "none")])
    scope = evidence.setting.get("scope", "unknown")
    return Item(
        "A baseline of magnitude pruning, global or layer by layer",
        "yes" if by_size else "no",
        f"{listed(by_size)} (scope: {scope})." if by_size else "No method prunes by magnitude.",
    )


def other_methods(evidence: Evidence) -> Item:
    """Methods old and new."""
    newer = sorted(set(evidence.summary["criterion"]) - set(CLASSIC))
    said = f"Besides magnitude: {listed(newer)}. " if newer else ""
    return Item(
        "Recent methods, and methods from before 2010, to compare with",
        "partly" if newer else "no",
        f"{said}All are this project's own implementations; no published number is quoted.",
    )


def seeds(evidence: Evidence) -> Item:
    """Several runs."""
    counts = evidence.summary["n"]
    fewest, most = int(counts.min()), int(counts.max())
    how_many = f"n = {fewest}" if fewest == most else f"n = {fewest} to {most}"
    failed = f" {times(evidence.failures, 'arm')} failed (below)." if evidence.failures else ""
    return Item(
        "Several runs, each with its own seed and initial values",
        "yes" if fewest >= 3 else "partly" if most >= 2 else "no",
        f"{how_many} seeds.{failed}" + ("" if fewest >= 3 else " Three are the least one wants."),
    )


def error_bars(evidence: Evidence) -> Item:
    """Mean and spread."""
    known = evidence.summary["test_accuracy_std"].notna()
    return Item(
        "Means and sample standard deviations; error bars that say what they are",
        "yes" if known.all() else "partly" if known.any() else "no",
        "Mean, standard deviation (n \N{MINUS SIGN} 1) and Student's 95% interval of the mean."
        if known.all()
        else f"{int((~known).sum())} of {len(known)} means are of one seed and have no spread.",
    )


def same_recipe(evidence: Evidence) -> Item:
    """One recipe for all."""
    starts = {str(name): REINITS[str(name)].schedule for name in evidence.rounds["reinit"].unique()}
    alike = len(set(starts.values())) == 1
    differing = [f"{name} ({where})" for name, where in starts.items()]
    return Item(
        "The same code, data and fine-tuning recipe for every method",
        "yes" if alike else "partly",
        "Code, data, splits, optimizer and epochs are the same"
        + (
            ", and so is the learning rate's schedule."
            if alike
            else f"; where the learning rate's schedule starts is part of the method: "
            f"{listed(differing)}."
        ),
    )


def modest(evidence: Evidence) -> Item:
    """Claims no larger than the experiment."""
    del evidence
    return Item(
        "Claims no wider than the experiments",
        "partly",
        "The sentences above speak of this data set, this network and these seeds only. What is "
        "concluded from them is the reader's.",
    )


ITEMS: tuple[Callable[[Evidence], Item], ...] = (
    pairs,
    named,
    reproducible,
    dense_too,
    both_sizes,
    operating_points,
    extremes,
    curves,
    top5,
    random_baseline,
    magnitude_baseline,
    other_methods,
    seeds,
    error_bars,
    same_recipe,
    modest,
)
