"""Intervals: of a mean over seeds, and over seeds and test images together; axis limits.

Seeds are few and their spread is estimated, so they take Student's t. Images are many, and all
seeds share them: what their sampling adds does not shrink with more seeds. `python -m
tests.simulate` measures how often each interval contains the true value.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import stats  # type: ignore[import-untyped]

INTERVAL = ["mean", "std", "low", "high"]
CONFIDENCE = 0.95
UPPER = (1 + CONFIDENCE) / 2
ROUNDING = 1e-12  # far below one image's share of an accuracy
FEWEST_IMAGES = 5  # that must vary before their spread is estimated
UNBOUNDED = (-np.inf, np.inf)
SHARE, SIGNED_SHARE, POSITIVE = (0.0, 1.0), (-1.0, 1.0), (0.0, np.inf)  # where values can be
Numbers = NDArray[np.float64]


def mean_interval(
    rows: pd.DataFrame, by: list[str], metric: str, within: tuple[float, float] = UNBOUNDED
) -> pd.DataFrame:
    """Mean and Student interval of `metric` in each group of rows, cut off at the ends of `within`.

    Returns:
        One row per group, in order of appearance: `n` (values that are known), their `mean` and
        `std` (ddof = 1), and `low` and `high`, the ends of the mean's two-sided interval. `std` is
        NaN with n = 1. The interval is NaN too if the values are equal, since a few of them do not
        prove that there is no spread. If a value of the group is not known, `std` and the interval
        are NaN: the values that are missing may differ from the others.
    """
    groups = rows.groupby(by, sort=False)[metric]
    n, mean = groups.count(), groups.mean()
    std = groups.std().where(n == groups.size())
    half = (stats.t.ppf(UPPER, n - 1) * std / np.sqrt(n)).where(std > ROUNDING)
    low, high = (mean - half).clip(*within), (mean + half).clip(*within)
    return pd.DataFrame({"n": n, "mean": mean, "std": std, "low": low, "high": high})


def lower_bound(mean: Any, std: Any, n: Any) -> Any:
    """The one-sided 95% lower bound of a mean, Student's. NaN without a spread, as above."""
    return mean - np.where(std > ROUNDING, stats.t.ppf(CONFIDENCE, n - 1) * std / n**0.5, np.nan)


class Components(NamedTuple):
    """A mean over seeds and images, and what each adds to its variance."""

    mean: Numbers
    seeds: Numbers  # variance of the mean, given these images
    images: Numbers  # what is added because the images are a sample, too


def components(values: ArrayLike, images: int) -> Components:
    """The two components of variance of a mean over seeds and images that are crossed.

    Mean squares of the two-way layout without replication (Searle, Casella & McCulloch 1992,
    "Variance Components", chapter 4); a negative component of images counts as 0.

    Args:
        values: [..., n seeds, images], n of at least 2. Images whose values are 0 for all seeds
            may be left out.
        images: How many there are with those that were left out.
    """
    table = np.asarray(values)
    n = table.shape[-2]
    of_seeds, of_images = table.sum(-1) / images, table.mean(-2)  # [..., n], [..., images]
    mean = of_seeds.mean(-1)
    total = np.square(table, dtype=float).sum((-2, -1)) - n * images * mean**2
    seeds = images * np.square(of_seeds - mean[..., None]).sum(-1)
    shared = n * (np.square(of_images).sum(-1) - images * mean**2)
    rest = (total - seeds - shared) / ((n - 1) * (images - 1))  # mean square
    added = np.maximum(shared / (images - 1) - rest, 0) / (n * images)
    return Components(mean, seeds / (n - 1) / (n * images), added)


def _half_width(found: Components, n: int) -> Numbers:
    """Of the interval of a mean: t and z, weighted by their components of variance.

    Cochran & Cox 1957, "Experimental Designs", 4.14. Satterthwaite's degrees of freedom, the usual
    choice, give intervals that are too short with three seeds.
    """
    both = found.seeds + found.images
    with np.errstate(invalid="ignore"):
        weight = np.where(both > 0, found.seeds / both, 0.0)
    factor = weight * stats.t.ppf(UPPER, n - 1) + (1 - weight) * stats.norm.ppf(UPPER)
    return np.asarray(factor * np.sqrt(both))


def difference_over_images(gains: ArrayLike, images: int) -> tuple[Numbers, Numbers]:
    """Interval of a mean difference in accuracy over new seeds and new test images.

    Args:
        gains: [..., n seeds, images]: 1 where only the first network is right about an image, -1
            where only the other one is, else 0.
        images: As in `components`.

    Returns:
        Its ends, within [-1, 1]. NaN with one seed, and where fewer than `FEWEST_IMAGES` images
        tell the two methods apart.
    """
    table = np.asarray(gains)
    if table.shape[-2] < 2:
        unknown = np.full(table.shape[:-2], np.nan)
        return unknown, unknown
    found = components(table, images)
    enough = (table != 0).any(-2).sum(-1) >= FEWEST_IMAGES
    half = np.where(enough, _half_width(found, table.shape[-2]), np.nan)
    return np.clip(found.mean - half, *SIGNED_SHARE), np.clip(found.mean + half, *SIGNED_SHARE)


def accuracy_over_images(wrong: ArrayLike, images: int) -> tuple[Numbers, Numbers]:
    """Interval of a mean accuracy over new seeds and new test images.

    It is Wilson's score interval (1927, doi:10.2307/2276774) with as many independent images as
    would give the mean's variance. Where fewer than `FEWEST_IMAGES` images are ever misclassified,
    their component is that of `accuracy_bound`.

    Args:
        wrong: [..., n seeds, images]: 1 where a network misclassifies an image, else 0.
        images: As in `components`.
    """
    table = np.asarray(wrong)
    if table.shape[-2] < 2:
        unknown = np.full(table.shape[:-2], np.nan)
        return unknown, unknown
    found = components(table, images)
    few = (table != 0).any(-2).sum(-1) < FEWEST_IMAGES
    binomial = found.mean * (1 - found.mean) / images
    found = found._replace(images=np.where(few, binomial, found.images))
    return _wilson(1 - found.mean, found, table.shape[-2], images)


def accuracy_bound(mean: ArrayLike, std: ArrayLike, n: int, images: int) -> tuple[Numbers, Numbers]:
    """As `accuracy_over_images`, from accuracies alone, without what happened to each image.

    It takes the images' component to be the binomial variance, which it cannot exceed, so the
    interval is too wide, and more so the more the answers to an image vary between seeds.
    """
    accuracy, spread = np.asarray(mean, dtype=float), np.asarray(std, dtype=float)
    found = Components(accuracy, spread**2 / n, accuracy * (1 - accuracy) / images)
    return _wilson(accuracy, found, n, images)


def _wilson(accuracy: Numbers, found: Components, n: int, images: int) -> tuple[Numbers, Numbers]:
    coin = accuracy * (1 - accuracy)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(coin > 0, _half_width(found, n) ** 2 / coin, np.nan)
    ratio = np.where(coin > 0, ratio, stats.norm.ppf(UPPER) ** 2 / images)
    middle = (accuracy + ratio / 2) / (1 + ratio)
    reach = np.sqrt(ratio * coin + ratio**2 / 4) / (1 + ratio)
    return np.clip(middle - reach, *SHARE), np.clip(middle + reach, *SHARE)


def stacked(arrays: Sequence[NDArray[Any]]) -> NDArray[np.int8]:
    """Arrays of one image each position, such as those of several seeds, as [seeds, images]."""
    return np.stack([np.asarray(each, dtype=np.int8) for each in arrays])


def accuracy_limits(middle: pd.Series, low: pd.Series, high: pd.Series) -> tuple[float, float]:
    """Axis limits for accuracies (%), so that one collapse does not flatten the rest.

    They reach four times as far below the best mean as the better half of the means does, at least
    1 point, and down to the lowest mean if that is not much further. Intervals widen them by at
    most a third.
    """
    means = np.sort(middle.to_numpy(dtype=float))
    best = means[-1]
    reach = max(4 * (best - means[len(means) // 2]), 1.0)
    bottom = max(means[0], best - reach) if means[0] < best - 1.5 * reach else means[0]
    room = max(best - bottom, 0.5) / 3
    ends = max(low.min(), bottom - room), min(high.max(), best + room)
    bottom, top = np.fmin(bottom, ends[0]), np.fmax(best, ends[1])
    return float(bottom - room / 8), float(top + room / 8)
