"""Statistics: which differences between methods would other seeds show too?

Every function takes `rounds`, one row per method, seed and round (round 0 is the dense network, the
same for all methods of a seed), and returns a table in the methods' order of appearance. The seeds
are the sample: intervals are Student's, of the mean over seeds, at `CONFIDENCE`, given this test
set; `_images_` intervals are over new test images too. Methods are compared within each seed,
because arms of one seed share a dense network. Values that need more than one seed are NaN with
one. families.py corrects p-values for multiple comparisons, matching.py says what matches.
"""

import math
from collections.abc import Mapping
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats  # type: ignore[import-untyped]

from experiments.config.comparison import base_of, is_further_draw
from experiments.figures.experiment import pixel_use
from experiments.figures.intervals import (
    CONFIDENCE,
    INTERVAL,
    POSITIVE,
    ROUNDING,
    SHARE,
    SIGNED_SHARE,
    UNBOUNDED,
    accuracy_bound,
    accuracy_over_images,
    difference_over_images,
    mean_interval,
    stacked,
)
from experiments.rounds.metrics import COMPARED, METRICS
from pruning.controls import CONTROLS
from pruning.masks import Masks

METHOD = ["reinit", "criterion", "control", "pruning"]
SIZES = ["sparsity", "compression_ratio", "theoretical_speedup"]
DENSE = "dense"  # the other side of a difference to the same seed's round 0
ACCURACY = "test_accuracy"  # of which it may be known which images are classified correctly
SHARES = ("accuracy", "error", "share")  # units of values in [0, 1]; all others are at least 0
Correct = Mapping[tuple[str, int, int], NDArray[np.bool_]]  # by method, seed and round: [images]


def measured(rounds: pd.DataFrame) -> list[str]:
    """The compared metrics that these rounds have; older runs may lack some."""
    return [name for name in COMPARED if name in rounds and rounds[name].notna().any()]


def limits_of(metric: str) -> tuple[float, float]:
    """The smallest and the largest value that a metric can have."""
    return SHARE if METRICS[metric].unit in SHARES else POSITIVE


def summarise(
    rounds: pd.DataFrame, images: int = 0, correct: Correct | None = None
) -> pd.DataFrame:
    """Means over seeds of each method and round: the table `summary.csv`.

    Args:
        rounds: See above.
        images: Number of test images; 0 if it is not known.
        correct: Which of them each network classifies correctly, as far as it is known.

    Returns:
        One row per method and round: `method`, `METHOD`, `round`, the mean of each of `SIZES`, `n`
        (seeds), and of each metric `_n` (seeds whose value is known), `_mean`, `_std`, `_low`,
        `_high` (see `mean_interval`), and of `ACCURACY` also `_images_low` and `_images_high` (see
        `accuracy_over_images`; `accuracy_bound` where `correct` lacks a network).
    """
    rows, by = rounds.sort_values("round", kind="stable"), ["method", "round"]
    groups = rows.groupby(by, sort=False)
    parts = [groups[METHOD].first(), groups[SIZES].mean(), groups.size().to_frame("n")]
    for name in measured(rounds):
        values = mean_interval(rows, by, name, limits_of(name))
        parts.append(values[["n", *INTERVAL]].add_prefix(f"{name}_"))
        if name == ACCURACY:
            parts.append(_over_images(values, groups["seed"].agg(list), images, correct or {}))
    table = pd.concat(parts, axis="columns").loc[methods_of(rounds)].reset_index()
    first = ["method", *METHOD, "round"]
    return table[first + [name for name in table if name not in first]]


def pruned(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of methods that prune, if there are any: others do not have the size of a round."""
    prunes = rows["control"].map(lambda name: CONTROLS[name].network == "pruned").astype(bool)
    return rows[prunes] if prunes.any() else rows


def _over_images(
    values: pd.DataFrame, seeds: pd.Series, images: int, correct: Correct
) -> pd.DataFrame:
    """The interval over seeds and images of each row of `values`."""
    ends = []
    for row in values.reset_index().to_dict("records"):
        low, high = math.nan, math.nan
        own = [(row["method"], seed, row["round"]) for seed in seeds[row["method"], row["round"]]]
        if all(network in correct for network in own):
            wrong = 1 - stacked([correct[network] for network in own])
            low, high = map(float, accuracy_over_images(wrong, wrong.shape[1]))
        elif images and row["n"] > 1:
            low, high = map(float, accuracy_bound(row["mean"], row["std"], row["n"], images))
        ends.append((low, high))
    names = [f"{ACCURACY}_images_{end}" for end in ("low", "high")]
    return pd.DataFrame(ends, values.index, names)


def is_smaller(control: str) -> bool:
    """Whether the networks of a control are smaller than the dense one."""
    return CONTROLS[control].network != "whole"


def dense_interval(
    rounds: pd.DataFrame, metric: str, images: int = 0, correct: Correct | None = None
) -> pd.Series:
    """`mean_interval` of the dense networks, one per seed, however many methods share it.

    Of `ACCURACY`, also the interval over images, as `images_low` and `images_high`.
    """
    dense = rounds[rounds["round"] == 0].drop_duplicates("seed")
    values = mean_interval(dense, ["round"], metric, limits_of(metric)).iloc[0]
    if metric == ACCURACY:
        known = {
            (DENSE, seed, 0): (correct or {})[method, seed, 0]
            for method, seed in zip(rounds["method"], rounds["seed"], strict=True)
            if (method, seed, 0) in (correct or {})
        }
        found = summarise(dense.assign(method=DENSE), images, known).iloc[0]
        for end in ("low", "high"):
            values[f"images_{end}"] = found[f"{ACCURACY}_images_{end}"]
    return values


def differences(rounds: pd.DataFrame, correct: Correct | None = None) -> pd.DataFrame:
    """Each pair of methods, and each method and the dense network, by seed: `differences.csv`.

    Returns:
        One row per metric, round from 1, and pair (see `_is_compared`): `metric`, `round`,
        `sparsity` (the round's mean), `method`, `other` (a method or `DENSE`), then the fields of
        `Paired`, and of `ACCURACY` the interval over seeds and images `images_low` to
        `images_high` (see `difference_over_images`), NaN where it is not known which images are
        classified correctly. A pair without a common seed in a round has a row with n = 0.
    """
    methods = methods_of(rounds)
    sparsity = pruned(rounds).groupby("round")["sparsity"].mean().drop(0, errors="ignore")
    pairs = [
        *(pair for pair in combinations(methods, 2) if _is_compared(*pair)),
        *((method, DENSE) for method in methods),
    ]
    rows: list[tuple[Any, ...]] = []
    networks = pd.MultiIndex.from_product([methods, [0, *sparsity.index]])

    def by_seed(name: str) -> pd.DataFrame:
        """NaN where a seed of a method lacks a round."""
        table = rounds.pivot(index="seed", columns=["method", "round"], values=name)
        return table.reindex(columns=networks)

    there = by_seed("sparsity")
    for metric in measured(rounds):
        value = by_seed(metric)
        within = SIGNED_SHARE if limits_of(metric) == SHARE else UNBOUNDED
        for number in sparsity.index:
            for method, other in pairs:
                one, two = (method, number), (method, 0) if other == DENSE else (other, number)
                both = there.index[there[one].notna() & there[two].notna()]
                result = paired(value.loc[both, one], value.loc[both, two], within)
                images = (math.nan, math.nan)
                if metric == ACCURACY and correct:
                    images = _gain_over_images(correct, both, one, two)
                rows.append((metric, number, sparsity[number], method, other, *result, *images))
    names = ["metric", "round", "sparsity", "method", "other", *Paired._fields]
    return pd.DataFrame(rows, columns=[*names, "images_low", "images_high"])


def _is_compared(method: str, other: str) -> bool:
    """Whether two methods are a pair: of further draws, only those of the same method are."""
    draws = is_further_draw(method) or is_further_draw(other)
    return not draws or base_of(method) == base_of(other)


def _gain_over_images(
    correct: Correct, seeds: pd.Index, one: tuple[str, int], two: tuple[str, int]
) -> tuple[float, float]:
    networks = [(of[0], seed, of[1]) for of in (one, two) for seed in seeds]
    if not networks or any(network not in correct for network in networks):
        return math.nan, math.nan
    first, second = (stacked([correct[of[0], seed, of[1]] for seed in seeds]) for of in (one, two))
    low, high = difference_over_images(first - second, first.shape[1])
    return float(low), float(high)


class Paired(NamedTuple):
    """A mean difference over `n` seeds, its deviation and interval, and the p-value of none."""

    n: int
    difference: float
    std: float
    low: float
    high: float
    p_value: float


def paired(first: pd.Series, second: pd.Series, within: tuple[float, float] = UNBOUNDED) -> Paired:
    """Two-sided paired t-test of two columns, over the same seeds (their index).

    The interval is cut off at the ends of `within`. With n < 2 it and the p-value are NaN. They are
    NaN too if all differences are equal: t would divide by a spread of zero, and a few equal seeds
    do not prove that the spread is zero. If a value is not known, `n` and the mean are those of the
    other seeds, and the rest is NaN, since the seeds that are missing may differ from them.
    """
    change = (first - second).dropna().to_numpy(dtype=float)
    n = len(change)
    mean = float(change.mean()) if n else math.nan
    if n < 2 or n < len(first):
        return Paired(n, mean, math.nan, math.nan, math.nan, math.nan)
    std = float(change.std(ddof=1))
    if np.ptp(change) <= ROUNDING:
        return Paired(n, mean, std, math.nan, math.nan, math.nan)
    test = stats.ttest_1samp(change, 0)
    low, high = np.clip(test.confidence_interval(CONFIDENCE), *within)
    return Paired(n, mean, std, float(low), float(high), float(test.pvalue))


def overlap(masks: Mapping[tuple[str, int], Masks]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Overlap of the masks of each pair of arms, over all prunable weights.

    The Jaccard index of two masks is the number of weights that survive in both, over the number
    that survive in either: 1 for equal masks, NaN if both are empty.

    Returns:
        The indices, and those expected of random masks with as many survivors in each layer: two
        that keep a and b of a layer's n weights share a * b / n of them on average (a ratio of
        expectations, accurate for layers of more than a few weights). Both [arms, arms] by
        (method, seed).
    """
    arms = pd.MultiIndex.from_tuples(masks, names=["method", "seed"])
    counts = np.array([[int(m.sum()) for m in mask.values()] for mask in masks.values()])
    sizes = np.array([mask.numel() for mask in next(iter(masks.values())).values()])
    kept = counts.sum(axis=1)
    shared = np.array(
        [[sum(int((a[x] & b[x]).sum()) for x in a) for b in masks.values()] for a in masks.values()]
    )
    chance = counts / sizes @ counts.T

    either = np.add.outer(kept, kept)
    with np.errstate(invalid="ignore"):
        jaccard, expected = (both / (either - both) for both in (shared, chance))
    return pd.DataFrame(jaccard, arms, arms), pd.DataFrame(expected, arms, arms)


def pixels(
    masks: Mapping[tuple[str, int], Masks], image_shape: tuple[int, ...]
) -> dict[str, NDArray[np.float64]]:
    """Share of a pixel's weights that survive, mean over a method's seeds, [height, width].

    Empty if the first layer is not fully connected to the pixels (see `pixel_use`).
    """
    shares: dict[str, list[Any]] = {}
    for (method, _), mask in masks.items():
        shares.setdefault(method, []).append(pixel_use(mask, image_shape))
    if any(share is None for several in shares.values() for share in several):
        return {}
    return {method: np.mean(several, axis=0) for method, several in shares.items()}


def methods_of(rows: pd.DataFrame) -> list[str]:
    """The methods, in order of appearance."""
    return [str(method) for method in rows["method"].unique()]
