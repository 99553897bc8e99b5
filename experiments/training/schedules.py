"""Schedules: how the learning rate changes during a training run.

A schedule is a pure function from progress in [0, 1] to a factor of the learning rate; `warmed`
puts a warm-up before it. To add one: write it here, add a line to `SCHEDULES`.
"""

from collections.abc import Callable
from math import cos, pi

FLOOR = 0.01  # where cosine ends
WARM_START = 0.04  # where a warm-up starts


def constant(progress: float) -> float:
    """A constant rate, as in Frankle & Carbin 2019, arXiv:1803.03635."""
    del progress
    return 1.0


def cosine(progress: float) -> float:
    """Half a cosine, from 1 down to `FLOOR`. Loshchilov & Hutter 2017, arXiv:1608.03983."""
    return FLOOR + (1 - FLOOR) * (1 + cos(pi * progress)) / 2


def warmed(schedule: Callable[[float], float], share: float) -> Callable[[float], float]:
    """`schedule` after a linear rise from `WARM_START` to 1, for a `share` of the run in [0, 1).

    Goyal et al. 2017, arXiv:1706.02677; with cosine it is the one cycle of arXiv:1708.07120.
    """

    def factor(progress: float) -> float:
        if progress < share:
            return WARM_START + (1 - WARM_START) * progress / share
        return schedule((progress - share) / (1 - share))

    return factor


SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": constant,
    "cosine": cosine,
}
