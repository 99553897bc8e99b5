"""The compact engine: the dense engine, on the network that has only the units which are left.

A unit that no output reads, directly or through other units, can be left out: nothing changes but
the order of sums. Without such units this is the dense engine, bit for bit.
"""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from datasets import Split
from experiments.training.engine import Batch, DenseEngine, Recipe
from models import Architecture, resize
from pruning.masks import Masks, State, apply_masks
from pruning.units import at_least_one, cut, live_units, paste


class CompactEngine:
    """Trains a smaller dense network; weights pruned within it are multiplied by zero.

    Args:
        device: A PyTorch device.
        bf16: As for `DenseEngine`.
    """

    def __init__(self, architecture: Architecture, device: str, bf16: bool) -> None:
        self.architecture, self.device, self.bf16 = architecture, device, bf16

    def start(self, state: State, masks: Masks, recipe: Recipe) -> None:
        """As in `Engine`."""
        widths = self.architecture.widths
        live = live_units(masks, widths)
        self.masks, self.kept = masks, {name: at_least_one(each) for name, each in live.items()}
        small = self._cut(state)
        self.engine = DenseEngine(self._build(small), self.bf16)
        self.engine.start(small, self._cut(masks), recipe)
        self.whole = apply_masks(state, masks)

    def _build(self, small: State) -> nn.Module:
        model = resize(self.architecture.build(), self.architecture.widths, small)
        model.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return model

    def _cut(self, tensors: State) -> State:
        return cut(tensors, self.kept, self.architecture.widths)

    def batches(self, split: Split, batch_size: int, seed: int) -> Iterator[Batch]:
        """As in `Engine`."""
        return self.engine.batches(split, batch_size, seed)

    def train(self, batches: Iterator[Batch], rates: Iterable[float], loss_sum: Tensor) -> None:
        """As in `Engine`."""
        self.engine.train(batches, rates, loss_sum)

    def load(self, state: State) -> None:
        """As in `Engine`."""
        self.whole = apply_masks(state, self.masks)
        self.engine.load(self._cut(self.whole))

    def evaluate(self, split: Split, correct: Tensor | None = None) -> tuple[float, float]:
        """As in `Engine`."""
        return self.engine.evaluate(split, correct)

    def snapshot(self) -> State:
        """As in `Engine`; biases of units that are left out have the values that were loaded."""
        return paste(self.engine.snapshot(), self.whole, self.kept, self.architecture.widths)
