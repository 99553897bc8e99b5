"""What the benchmarks share: taking turns, and how times are printed."""

from collections.abc import Callable
from statistics import median
from time import perf_counter

import torch

Step = Callable[[], object]


def take_turns(steps: dict[str, Step], turns: int, count: int) -> dict[str, list[float]]:
    """Milliseconds per step of each variant, turn by turn; the first turn is a warm-up."""
    times: dict[str, list[float]] = {kind: [] for kind in steps}
    for turn in range(turns + 1):
        for kind, step in steps.items():
            began = perf_counter()
            for _ in range(count):
                step()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if turn:
                times[kind].append(1000 * (perf_counter() - began) / count)
    return times


def median_range(values: list[float], form: str) -> str:
    """Median, minimum, maximum and number of values, as text."""
    low, middle, high = min(values), median(values), max(values)
    return f"{middle:{form}}  ({low:{form}} to {high:{form}}, n={len(values)})"
