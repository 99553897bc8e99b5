"""What the benchmarks share: taking turns, endless batches, and images one by one."""

from collections.abc import Callable, Iterator
from itertools import chain, repeat
from statistics import median
from time import perf_counter

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

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


class ImageByImage(Dataset[tuple[Tensor, int]]):
    """Images one by one, as `torchvision.datasets.MNIST` returns them."""

    def __init__(
        self, pixels: Tensor, labels: Tensor, transform: Callable[[object], Tensor]
    ) -> None:
        self.pixels, self.labels, self.transform = pixels, labels, transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        picture = Image.fromarray(self.pixels[index].numpy())
        return self.transform(picture), int(self.labels[index])


def forever(
    epoch: Callable[[], Iterator[tuple[Tensor, Tensor]]],
) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches of epoch after epoch, without end."""
    return chain.from_iterable(make() for make in repeat(epoch))


def median_range(values: list[float], form: str) -> str:
    """Median, minimum, maximum and number of values, as text."""
    low, middle, high = min(values), median(values), max(values)
    return f"{middle:{form}}  ({low:{form}} to {high:{form}}, n={len(values)})"
