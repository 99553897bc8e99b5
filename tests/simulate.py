"""How often is a rule of a comparison wrong? Made-up networks whose true accuracies are known.

    python -m tests.simulate            # about two minutes; tests/test_simulate.py is the fast form

Coverage: how many of the nominal 95% intervals contain the true value. Most images are never
misclassified. The others have a difficulty each: a network is right about one with the probability
of a normal distribution, which its seed shifts, so that the true values are known exactly.
Matching: how often the smallest network that a rule accepts is truly worse than the dense one.
"""

import sys
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import ndtr, ndtri

from experiments.figures.intervals import (
    SHARE,
    accuracy_bound,
    accuracy_over_images,
    difference_over_images,
    lower_bound,
    mean_interval,
)

INTERVALS = ("mean", "difference", "accuracy, images", "bound, images", "difference, images")


@dataclass(frozen=True)
class World:
    """Where networks come from.

    Attributes:
        images: Number of test images.
        accuracy: True accuracy of the first method; the second is less accurate by `behind`.
        hard: Share of the images that may be misclassified.
        shared: Deviation of what a seed does to both methods, in probits.
        own: Deviation of what it does to one of them.
    """

    images: int
    accuracy: float
    hard: float
    shared: float = 0.1
    own: float = 0.1
    behind: float = 0.002
    difficulty: float = 2.0  # deviation of an image's, in probits; 0.9 of it for both methods


WORLDS = (
    World(10_000, 0.98, 0.06, 0.05, 0.1),
    World(10_000, 0.98, 0.06, 0.2, 0.3),
    World(10_000, 0.97, 0.08),
    World(10_000, 0.8, 0.5, 0.02, 0.05),
    World(360, 0.97, 0.1),
    World(360, 0.97, 0.1, 0.3, 0.5),
    World(360, 0.8, 0.5, 0.05, 0.1),
    World(120, 0.8, 0.5, 0.05, 0.1),
    World(120, 0.97, 0.12),
    World(360, 0.99, 0.05, behind=0.001),
    World(120, 0.99, 0.06, behind=0.001),
)

FRESH = (  # played no part in choosing among ways to compute the intervals
    World(5000, 0.95, 0.15, 0.15, 0.05, 0.004),
    World(2000, 0.99, 0.03, 0.2, 0.2, 0.001),
    World(1000, 0.9, 0.3, 0.1, 0.2, 0.0, 3.0),
    World(257, 0.975, 0.15, 0.1, 0.15, 0.003, 1.5),
)


@dataclass(frozen=True)
class Networks:
    """Two methods' networks, over and over: the images that they get wrong, and the truth."""

    wrong: tuple[np.ndarray, np.ndarray]  # bool [repeats, seeds, hard images], of each method
    here: tuple[np.ndarray, np.ndarray]  # true accuracies on these images, [repeats]


def draw(world: World, repeats: int, seeds: int, rng: np.random.Generator) -> Networks:
    """Networks of new seeds on new images."""
    hard = rng.binomial(world.images, world.hard, repeats)
    there = np.arange(hard.max()) < hard[:, None]
    of_image = (repeats, 1, hard.max())
    alike, apart = 0.9 * world.difficulty, np.sqrt(1 - 0.9**2) * world.difficulty
    seen = np.sqrt(1 + world.shared**2 + world.own**2)
    spread = np.sqrt(seen**2 + world.difficulty**2)
    image = alike * rng.standard_normal(of_image)
    seed = world.shared * rng.standard_normal((repeats, seeds, 1))
    wrong, here = [], []
    for error in (1 - world.accuracy, 1 - world.accuracy + world.behind):
        own = apart * rng.standard_normal(of_image)
        level = ndtri(1 - error / world.hard) * spread + image + own
        shift = seed + world.own * rng.standard_normal((repeats, seeds, 1))
        chance = ndtr(-level - shift)
        wrong.append((rng.random(chance.shape) < chance) & there[:, None])
        here.append(1 - (ndtr(-level[:, 0] / seen) * there).sum(1) / world.images)
    return Networks((wrong[0], wrong[1]), (here[0], here[1]))


def coverage(world: World, seeds: int, repeats: int = 2000) -> pd.DataFrame:
    """How often each interval contains the true value, and how often there is none.

    Returns:
        Rows `INTERVALS`, columns `covered` (of the intervals that exist) and `missing`.
    """
    rng = np.random.default_rng(0)
    parts = []
    step = max(1, 20_000_000 // (seeds * int(world.images * world.hard)) // 4)
    for start in range(0, repeats, step):
        count = min(step, repeats - start)
        parts.append(_intervals(world, draw(world, count, seeds, rng)))
    rows = {}
    for name in INTERVALS:
        low, high, truth = (np.concatenate([part[name][end] for part in parts]) for end in range(3))
        known = ~np.isnan(low)
        covered = ((low <= truth) & (truth <= high))[known]
        rows[name] = {"covered": covered.mean(), "missing": 1 - known.mean()}
    return pd.DataFrame(rows).T


def _intervals(world: World, networks: Networks) -> dict[str, tuple[np.ndarray, ...]]:
    """Each interval of each repeat: its ends, and the true value."""
    first, second = networks.wrong
    repeats, seeds, _ = first.shape
    accuracies = [1 - wrong.sum(2) / world.images for wrong in networks.wrong]
    of = np.repeat(np.arange(repeats), seeds)
    values = {"a": accuracies[0].ravel(), "b": (accuracies[0] - accuracies[1]).ravel()}
    rows = pd.DataFrame({"repeat": of, **values})
    mean = mean_interval(rows, ["repeat"], "a", SHARE)
    gain = mean_interval(rows, ["repeat"], "b")
    gains = second.astype(np.int8) - first.astype(np.int8)
    bound = accuracy_bound(mean["mean"], mean["std"], seeds, world.images)
    population = np.full(repeats, world.accuracy)
    return {
        "mean": (mean["low"].to_numpy(), mean["high"].to_numpy(), networks.here[0]),
        "difference": (
            gain["low"].to_numpy(),
            gain["high"].to_numpy(),
            networks.here[0] - networks.here[1],
        ),
        "accuracy, images": (*accuracy_over_images(first, world.images), population),
        "bound, images": (*bound, population),
        "difference, images": (
            *difference_over_images(gains, world.images),
            np.full(repeats, world.behind),
        ),
    }


CURVES = {  # true gain of a round over the dense network
    "digits": [0.001, 0.001, 0.0005, 0, 0, -0.0005, -0.0015, -0.004, -0.01, -0.02],
    "slow": [-0.0004 * step for step in range(1, 11)],
    "flat": [0.0] * 5 + [-0.002 - 1e-9] * 5,  # five networks just beyond the margin
    "one": [-0.002 - 1e-9],
}


@dataclass(frozen=True)
class Mistakes:
    """Shares of repeats: what a rule picks, and what that truly is."""

    found: float
    worse: float  # by more than a tenth of a point
    beyond_margin: float
    beyond_margin_unbroken: float  # of the picks whose larger networks match too


def mistakes(
    curve: list[float], seeds: int, repeats: int, margin: float | None, rng: np.random.Generator
) -> Mistakes:
    """How often the smallest network that a rule accepts is truly worse than the dense one.

    Seeds differ by 0.15 points in the dense network and 0.25 in each pruned one.

    Args:
        curve: True gains, the largest network first.
        margin: Of the rule of matching.py; None is the older rule, a mean that is at least dense.
    """
    truth, rounds = np.array(curve), len(curve)
    dense = 0.97 + 0.0015 * rng.standard_normal((repeats, seeds, 1))
    pruned = 0.97 + truth + 0.0025 * rng.standard_normal((repeats, seeds, rounds))
    if margin is None:
        passes = (pruned - dense).mean(1) >= 0
    else:
        gain = pruned - dense
        passes = lower_bound(gain.mean(1), gain.std(1, ddof=1), seeds) > -margin
    found = passes.any(1)
    last = rounds - 1 - passes[:, ::-1].argmax(1)
    unbroken = np.take_along_axis(passes.cumprod(1), last[:, None], 1)[:, 0] == 1
    beyond = found & (truth[last] < -(margin or 0.002))
    return Mistakes(
        found.mean(),
        (found & (truth[last] < -0.001)).mean(),
        beyond.mean(),
        (beyond & unbroken).mean(),
    )


def main(repeats: int) -> None:
    """Print both simulations."""
    print("coverage of nominal 95% intervals (%), in parentheses how often there is none")
    for seeds in (3, 5, 10):
        for world in (*WORLDS, *FRESH):
            found = coverage(world, seeds, repeats)
            text = ", ".join(
                f"{name} {100 * row.covered:.1f}"
                + (f" ({100 * row.missing:.0f})" if row.missing else "")
                for name, row in found.iterrows()
            )
            print(f"{seeds} seeds, {world.images} images, {world.accuracy}: {text}", flush=True)
    print("smallest network found (%): truly worse by 0.1 points, by the margin of 0.2 points")
    for curve, gains in CURVES.items():
        for seeds in (3, 5, 10):
            for rule, margin in (("mean at least dense", None), ("bound", 0.002)):
                rng = np.random.default_rng(0)
                each = mistakes(gains, seeds, 10 * repeats, margin, rng)
                print(
                    f"{curve}, {seeds} seeds, {rule}: found {100 * each.found:.0f}, worse "
                    f"{100 * each.worse:.1f}, beyond the margin {100 * each.beyond_margin:.1f}, "
                    f"with all larger ones matching {100 * each.beyond_margin_unbroken:.1f}"
                )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 4000)
