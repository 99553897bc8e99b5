"""Twins: does the order of the images decide which network training finds?

The twin of a round's network is trained from the same start, under the same masks, by the same
recipe; only the order of the images is another (with it their crops, and what dropout drops). If
the straight line between the two networks crosses no barrier of error, training is stable to this
noise. Frankle et al. 2020, "Linear Mode Connectivity and the Lottery Ticket Hypothesis",
arXiv:1912.05671.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

from datasets import Splits
from experiments.training.engine import Engine
from pruning.masks import State

POINTS = 11  # evaluated on the line, both ends included


@dataclass(frozen=True)
class Twin:
    """A twin, and the line from the round's network to it; keys are the names of splits."""

    distance: float  # L2, over all values of the networks
    accuracy: dict[str, float]  # of the twin
    barrier: dict[str, float]


def compare_twins(engine: Engine, state: State, twin: State, data: Splits) -> Twin:
    """Evaluate networks on the line between two, which have the same masks.

    Args:
        engine: Started with these masks; its values are replaced.
    """
    splits = {"train": data.train, "valid": data.valid}
    splits |= {"test": data.test} if data.test else {}
    accuracies: dict[str, list[float]] = {name: [] for name in splits}
    for point in range(POINTS):
        engine.load(between(state, twin, point / (POINTS - 1)))
        for name, split in splits.items():
            accuracies[name].append(engine.evaluate(split)[1])
    return Twin(
        distance=distance(state, twin),
        accuracy={name: found[-1] for name, found in accuracies.items()},
        barrier={name: barrier(found) for name, found in accuracies.items()},
    )


def between(one: State, other: State, share: float) -> State:
    """The network at a `share` in [0, 1] of the way from `one` to `other`; a pruned weight is 0."""
    return {name: (1 - share) * value + share * other[name] for name, value in one.items()}


def barrier(accuracies: Sequence[float]) -> float:
    """The error barrier of a line: its largest error minus the mean error of its two ends.

    It is in [0, 1], and at least half the distance between the errors of the ends.
    """
    return (accuracies[0] + accuracies[-1]) / 2 - min(accuracies)


def distance(one: State, other: State) -> float:
    """The L2 distance of all values of two networks."""
    squares = (
        float((value.double() - other[name].double()).square().sum()) for name, value in one.items()
    )
    return sqrt(sum(squares))
