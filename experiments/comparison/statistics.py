"""Statistics: which differences between methods would other seeds show too?

Every function takes `rounds`, one row per method, seed and round (round 0 is the dense network, the
same for all methods of a seed), and returns a table in the methods' order of appearance. The seeds
are the sample: intervals are Student's, of the mean over seeds, at `CONFIDENCE`; methods are
compared within each seed, because arms of one seed share a dense network. Values that need more
than one seed are NaN with one. p-values are not corrected for multiple comparisons.
"""

import math
from collections.abc import Mapping
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import stats  # type: ignore[import-untyped]

from experiments.figures.experiment import pixel_use
from experiments.figures.intervals import CONFIDENCE, INTERVAL, mean_interval
from experiments.rounds.metrics import COMPARED
from pruning.masks import Masks

METHOD = ["reinit", "criterion", "control", "pruning"]
SIZES = ["sparsity", "compression_ratio", "theoretical_speedup"]
DENSE = "dense"  # the other side of a difference to the same seed's round 0
ROUNDING = 1e-12  # far below one image's share of an accuracy


def summarise(rounds: pd.DataFrame) -> pd.DataFrame:
    """Means over seeds of each method and round: the table `summary.csv`.

    Returns:
        One row per method and round: `method`, `METHOD`, `round`, the mean of each of `SIZES`, `n`
        (seeds), and of each metric `_mean`, `_std`, `_low`, `_high` (see `mean_interval`).
    """
    rows, by = rounds.sort_values("round", kind="stable"), ["method", "round"]
    groups = rows.groupby(by, sort=False)
    parts = [groups[METHOD].first(), groups[SIZES].mean(), groups.size().to_frame("n")]
    parts += [mean_interval(rows, by, name)[INTERVAL].add_prefix(f"{name}_") for name in COMPARED]
    table = pd.concat(parts, axis="columns").loc[methods_of(rounds)].reset_index()
    first = ["method", *METHOD, "round"]
    return table[first + [name for name in table if name not in first]]


def dense_interval(rounds: pd.DataFrame, metric: str) -> pd.Series:
    """`mean_interval` of the dense networks, one per seed, however many methods share it."""
    dense = rounds[rounds["round"] == 0].drop_duplicates("seed")
    return mean_interval(dense, ["round"], metric).iloc[0]


def differences(rounds: pd.DataFrame) -> pd.DataFrame:
    """Each pair of methods, and each method and the dense network, by seed: `differences.csv`.

    Returns:
        One row per metric, round from 1, and pair: `metric`, `round`, `sparsity` (the round's
        mean), `method`, `other` (a method or `DENSE`), then the fields of `Paired`. A pair without
        a common seed in a round has a row with n = 0.
    """
    methods = methods_of(rounds)
    sparsity = rounds.groupby("round")["sparsity"].mean().drop(0, errors="ignore")
    pairs = [*combinations(methods, 2), *((method, DENSE) for method in methods)]
    rows: list[tuple[Any, ...]] = []
    networks = pd.MultiIndex.from_product([methods, [0, *sparsity.index]])
    for metric in COMPARED:
        values = rounds.pivot(index="seed", columns=["method", "round"], values=metric)
        values = values.reindex(columns=networks)  # NaN where no seed of a method has a round
        for number in sparsity.index:
            for method, other in pairs:
                against = (method, 0) if other == DENSE else (other, number)
                result = paired(values[method, number], values[against])
                rows.append((metric, number, sparsity[number], method, other, *result))
    names = ["metric", "round", "sparsity", "method", "other", *Paired._fields]
    return pd.DataFrame(rows, columns=names)


class Paired(NamedTuple):
    """A mean difference over `n` seeds, its interval, and the p-value of "no difference"."""

    n: int
    difference: float
    low: float
    high: float
    p_value: float


def paired(first: pd.Series, second: pd.Series) -> Paired:
    """Two-sided paired t-test of two columns, over the seeds (their index) that both have.

    With n < 2 the interval and the p-value are NaN. If all differences are equal, the interval is
    that one value, and the p-value is NaN: t would divide by a spread of zero, and a few equal
    seeds do not prove that the spread is zero.
    """
    change = (first - second).dropna().to_numpy(dtype=float)
    n = len(change)
    mean = float(change.mean()) if n else math.nan
    if n < 2:
        return Paired(n, mean, math.nan, math.nan, math.nan)
    if np.ptp(change) <= ROUNDING:
        return Paired(n, mean, mean, mean, math.nan)
    test = stats.ttest_1samp(change, 0)
    low, high = test.confidence_interval(CONFIDENCE)
    return Paired(n, mean, float(low), float(high), float(test.pvalue))


def smallest_matches(rounds: pd.DataFrame) -> pd.DataFrame:
    """Each method's smallest network that matches the dense one: `matches.csv`.

    Its validation accuracy, averaged over all seeds of the method, is at least that of the dense
    networks of the same seeds; larger networks may fall short of it. Its test accuracy is only
    reported.

    Returns:
        One row per method: `method`, `n` (seeds), `round`, `remaining` (share of the weights),
        `valid_accuracy`, `test_accuracy` with its interval `test_low` to `test_high`,
        `early_stop_iteration`, and the same seeds' dense means as `dense_...`. If no round
        qualifies, `round` is <NA>, its values are NaN, and the dense means are over all seeds of
        the method.
    """
    shared = ("valid_accuracy", "test_accuracy", "early_stop_iteration")
    rows = []
    for method in methods_of(rounds):
        own = rounds[rounds["method"] == method]
        dense = own[own["round"] == 0].set_index("seed")
        match = _smallest_match(own, dense)
        if not match.empty:
            dense = dense.loc[match["seed"]]
        test = mean_interval(match, ["method"], "test_accuracy").reindex([method]).iloc[0]
        rows.append(
            {"method": method, "n": len(dense), "round": match["round"].min()}
            | {"remaining": 1 - match["sparsity"].mean()}
            | {name: match[name].mean() for name in shared}
            | {"test_low": test["low"], "test_high": test["high"]}
            | {f"dense_{name}": dense[name].mean() for name in shared}
        )
    return pd.DataFrame(rows).astype({"round": "Int64"})


def _smallest_match(own: pd.DataFrame, dense: pd.DataFrame) -> pd.DataFrame:
    """One method's rows of the match's round; none if no round qualifies."""
    gain = own["valid_accuracy"] - own["seed"].map(dense["valid_accuracy"])
    groups = own.assign(gain=gain).groupby("round")[["gain", "sparsity"]]
    means = groups.mean()[groups.size() == own["seed"].nunique()]
    enough = means[(means.index > 0) & (means["gain"] >= -ROUNDING)]
    return own.iloc[:0] if enough.empty else own[own["round"] == enough["sparsity"].idxmax()]


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
) -> dict[str, np.ndarray[Any, np.dtype[np.float64]]]:
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
