"""Intervals: the mean over seeds with its 95% interval, and axis limits that suit accuracies."""

import numpy as np
import pandas as pd
from scipy import stats  # type: ignore[import-untyped]

INTERVAL = ["mean", "std", "low", "high"]
CONFIDENCE = 0.95


def mean_interval(rows: pd.DataFrame, by: list[str], metric: str) -> pd.DataFrame:
    """Mean and Student interval of `metric` in each group of rows.

    Returns:
        One row per group, in order of appearance: `n`, `mean`, `std` (ddof = 1), and `low` and
        `high`, the ends of the mean's two-sided interval. With n = 1, the last three are NaN; a
        group with a NaN in it has NaN throughout.
    """
    groups = rows.groupby(by, sort=False)[metric]
    mean, std, n = groups.mean(skipna=False), groups.std(skipna=False), groups.size()
    half = stats.t.ppf((1 + CONFIDENCE) / 2, n - 1) * std / np.sqrt(n)
    return pd.DataFrame({"n": n, "mean": mean, "std": std, "low": mean - half, "high": mean + half})


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
