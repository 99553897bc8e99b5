"""Schedules: how does the learning rate change in the course of a training run?

A schedule is a pure function from progress in [0, 1] to a factor of the learning rate. To add one:
write it here, add a line to `SCHEDULES`.
"""

from collections.abc import Callable
from math import cos, pi

FLOOR = 0.01  # where cosine ends, so that fine-tuning at the final rate still learns


def constant(progress: float) -> float:
    """The same rate throughout, as in Frankle & Carbin 2019, arXiv:1803.03635."""
    del progress
    return 1.0


def cosine(progress: float) -> float:
    """Half a cosine from 1 down to `FLOOR`. Loshchilov & Hutter 2017, arXiv:1608.03983."""
    return FLOOR + (1 - FLOOR) * (1 + cos(pi * progress)) / 2


SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": constant,
    "cosine": cosine,
}
