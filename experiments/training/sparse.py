"""The sparse engine: fully connected networks of which only the survivors are stored and computed.

It trains as the dense engine does, from the same random streams; sums are taken in another order,
so results differ in the last bits. A step costs what survives; experiments/training/kernels.py says
how.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import cache
from itertools import groupby, pairwise
from math import prod
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from datasets import Split, View
from experiments.training import kernels
from experiments.training.engine import Recipe, shuffled
from experiments.training.kernels import (
    ADAM,
    ADAMW,
    LANES,
    SGD,
    Buffers,
    Images,
    Network,
    Rule,
    Shares,
)
from models import Architecture, linear_layers
from pruning.masks import Masks, State

UPDATES = {"adam": ADAM, "adamw": ADAMW, "sgd": SGD}  # of the optimizers that have a kernel
SHARED = 4000  # survivors: smaller layers are computed by one thread
LINE = 64  # bytes of a cache line, and of the widest vectors
CROPPED = 1000  # images that are cropped at once for an evaluation
NO_FACTORS = torch.zeros(0)

Batch = tuple[Images, kernels.Integers]  # a data set, or a part of it, and the rows to use


def threads() -> int:
    """How many threads an engine that starts now computes with: as many as PyTorch, if it can."""
    return min(torch.get_num_threads(), _most_threads()) if torch.get_num_threads() > 1 else 1


@cache
def _most_threads() -> int:
    """As many as Numba can use; 1 if it finds no OpenMP or TBB, which are safe beside threads."""
    numba.config.THREADING_LAYER = "threadsafe"  # type: ignore[attr-defined]
    try:
        numba.set_num_threads(numba.get_num_threads())  # starts them
    except ValueError:
        return 1
    return int(numba.config.NUMBA_NUM_THREADS)  # type: ignore[attr-defined]


def compile_kernels() -> None:
    """Compile all that an engine calls, or load it from disk: train a tiny network."""
    architecture = Architecture("lenet_1", (1, 1, 1), 2)
    engine = SparseEngine(architecture)
    pixel, label = torch.zeros(1, 1, 1, 1, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64)
    split = Split(pixel, label, View(255, 0.0, 1.0))
    engine.start(
        architecture.draw(0), Masks(), Recipe("adam", lambda progress: 0.1, 0.0, 0.0, 1, 1, 0)
    )
    engine.train(engine.batches(split, 1, 0), [0.1], torch.zeros(()))
    engine.evaluate(split)


class SparseEngine:
    """Products of survivors only, compiled for the CPU.

    Args:
        architecture: Of linear layers after a flattening one, with ReLU between them.

    Raises:
        ValueError: If the network has other layers.
    """

    def __init__(self, architecture: Architecture) -> None:
        self.layers = linear_layers(architecture.skeleton)
        if not self.layers:
            raise ValueError(
                "engine=sparse needs a fully connected network such as lenet_300_100, "
                f"got {architecture.name}"
            )

    def start(self, state: State, masks: Masks, recipe: Recipe) -> None:
        """As in `Engine`; raises ValueError if the optimizer has no kernel."""
        if recipe.optimizer not in UPDATES:
            raise ValueError(f"engine=sparse has no kernel for optimizer={recipe.optimizer}")
        self.shapes = {name: tuple(value.shape) for name, value in state.items()}
        whole = torch.ones((), dtype=torch.bool)
        kept = [
            masks.get(f"{name}.weight", whole).expand(self.shapes[f"{name}.weight"]).numpy()
            for name in self.layers
        ]
        self.network = _connect(kept)
        self.flat = [np.flatnonzero(each) for each in kept]  # of each layer
        self.load(state)
        rows, survivors = len(self.network.bias), len(self.network.weight)
        units = self.network.inputs + rows
        self.threads = threads()
        # Lanes without an image are computed too, so no buffer may hold NaN.
        self.buffers = Buffers(
            values=_zeros(units, LANES),
            errors=_zeros(rows, LANES),
            by_source=_zeros(len(self.network.place)),
            weight_gradient=_zeros(survivors),
            bias_gradient=_zeros(rows),
            weight_moments=_zeros(2, survivors),
            bias_moments=_zeros(2, rows),
        )
        self.shares = _share(self.network, self.threads)
        self.steps = 0
        self.rule = Rule(
            UPDATES[recipe.optimizer],
            recipe.momentum,
            recipe.weight_decay,
            recipe.grad_clip,
            recipe.label_smoothing,
        )

    def batches(self, split: Split, batch_size: int, seed: int) -> Iterator[Batch]:
        """As in `Engine`."""
        images = None if split.view.crop else _whole(split)
        for rows, generator in shuffled(split, batch_size, seed):
            used = images
            if used is None:
                stored, labels = split.stored(rows)
                used = _cropped(split.view, split.view.squares(stored, generator), labels)
                rows = torch.arange(len(rows))
            for some in torch.split(rows, batch_size):
                yield used, some.numpy()

    def train(self, batches: Iterator[Batch], rates: Iterable[float], loss_sum: Tensor) -> None:
        """As in `Engine`."""
        steps = zip(rates, batches, strict=False)
        for _, group in groupby(steps, key=lambda step: id(step[1][0])):
            some = list(group)
            kernel = kernels.train if self.threads == 1 else kernels.train_shared
            images, rows = some[0][1][0], [rows for _, (_, rows) in some]
            loss_sum += self._call(
                kernel,
                self.network,
                self.buffers,
                self.shares,
                images,
                np.concatenate(rows),
                np.cumsum([0, *map(len, rows)]),
                np.array([rate for rate, _ in some]),
                self.steps,
                self.rule,
            )
            self.steps += len(some)

    def load(self, state: State) -> None:
        """As in `Engine`."""
        weights = [state[f"{name}.weight"].numpy().ravel() for name in self.layers]
        kept = [weight[where] for weight, where in zip(weights, self.flat, strict=True)]
        self.network.weight[:] = np.concatenate(kept)
        self.network.bias[:] = np.concatenate([state[f"{name}.bias"] for name in self.layers])

    def evaluate(self, split: Split, correct: Tensor | None = None) -> tuple[float, float]:
        """As in `Engine`."""
        values = _zeros(self.threads, *self.buffers.values.shape)
        correct = torch.empty(len(split), dtype=torch.bool) if correct is None else correct
        loss, done = 0.0, 0
        for images in _for_evaluation(split):
            right = correct[done : done + len(images.labels)]
            kernel = kernels.evaluate if self.threads == 1 else kernels.evaluate_shared
            loss += self._call(kernel, self.network, values, images, right.numpy())
            done += len(right)
        return float(loss) / len(split), int(correct.sum()) / len(split)

    def logits(self, images: Tensor, view: View) -> Tensor:
        """Logits [N, classes] of stored images [N, 1, height, width]."""
        values, found = _zeros(1, *self.buffers.values.shape), []
        unused = np.empty(LANES, np.bool_)
        outputs = slice(self.network.inputs + self.network.layers[-2], None)
        for some in torch.split(view.centre(images), LANES):
            labels = torch.zeros(len(some), dtype=torch.int64)
            kernels.evaluate(self.network, values, _cropped(view, some, labels), unused)
            found.append(torch.from_numpy(values[0, outputs, : len(some)].T.copy()))
        return torch.cat(found)

    def snapshot(self) -> State:
        """As in `Engine`."""
        state, done, row = {}, 0, 0
        for name, where in zip(self.layers, self.flat, strict=True):
            weight = torch.zeros(self.shapes[f"{name}.weight"])
            weight.view(-1)[torch.from_numpy(where)] = torch.from_numpy(
                self.network.weight[done : done + len(where)]
            )
            done, last = done + len(where), row + len(weight)
            state[f"{name}.weight"] = weight
            state[f"{name}.bias"] = torch.from_numpy(self.network.bias[row:last].copy())
            row = last
        return state

    def _call(self, kernel: Callable[..., Any], *args: Any) -> Any:
        """Call a kernel with the threads of this engine."""
        if self.threads == 1:
            return kernel(*args)
        before = numba.get_num_threads()
        numba.set_num_threads(self.threads)
        try:
            return kernel(*args)
        finally:
            numba.set_num_threads(before)


def for_inference(architecture: Architecture, state: State, masks: Masks) -> SparseEngine:
    """An engine that is not trained; raises ValueError as `SparseEngine`."""
    engine = SparseEngine(architecture)
    engine.start(state, masks, Recipe("sgd", lambda progress: 0.0, 0.0, 0.0, 1, 1, 0))
    return engine


def _zeros(*shape: int) -> kernels.Floats:
    """Zeros that begin where a cache line does: kernels are 1.4 times slower across lines."""
    count = prod(shape)
    memory = np.zeros(count + LINE // 4, np.float32)
    start = -memory.ctypes.data % LINE // 4
    return memory[start : start + count].reshape(shape)


def _for_evaluation(split: Split) -> Iterator[Images]:
    """All images of a split, in one part, or cropped in several."""
    if not split.view.crop:
        yield _whole(split)
        return
    parts = torch.split(split.images, CROPPED), torch.split(split.labels, CROPPED)
    for images, labels in zip(*parts, strict=True):
        yield _cropped(split.view, split.view.centre(images), labels)


def _whole(split: Split) -> Images:
    """All images of a split that is not cropped."""
    factors = split.factors if split.view.l2 else NO_FACTORS
    return _images(split.view, split.images, split.labels, factors)


def _cropped(view: View, images: Tensor, labels: Tensor) -> Images:
    """Stored images, after the crop."""
    return _images(view, images, labels, view.factors(images) if view.l2 else NO_FACTORS)


def _images(view: View, images: Tensor, labels: Tensor, factors: Tensor) -> Images:
    stored = images.flatten(1).contiguous().numpy()
    return Images(stored, view.table().numpy(), factors.numpy(), labels.numpy())


def _connect(kept: list[np.ndarray]) -> Network:
    """The network of the survivors of each layer, bool [outputs, inputs], all values zero."""
    inputs = kept[0].shape[1]
    layers = np.cumsum([0, *(len(each) for each in kept)])
    rows, sources, before = [], [], 0
    for first, each in zip(layers, kept, strict=False):
        row, unit = np.nonzero(each)
        rows.append(first + row)
        sources.append(before + unit)
        before = inputs + first
    row, source = np.concatenate(rows), np.concatenate(sources)
    index = np.uint16 if inputs + layers[-1] <= 2**16 else np.uint32
    counts = np.arange(layers[-1] + 1)
    hidden = np.flatnonzero(source >= inputs)
    place = hidden[np.lexsort((row[hidden], source[hidden]))]
    return Network(
        inputs=inputs,
        layers=layers,
        first=np.searchsorted(row, counts),
        source=source.astype(index),
        readers=np.searchsorted(source[place] - inputs, counts),
        place=place.astype(np.uint32),
        reader=row[place].astype(index),
        pixels=np.unique(source[source < inputs]),
        weight=_zeros(len(row)),
        bias=_zeros(int(layers[-1])),
    )


def _share(network: Network, threads: int) -> Shares:
    """Give each thread about the same number of survivors."""

    def split(first: int, last: int, begins: kernels.Integers) -> list[int]:
        begin, end = begins[first], begins[last]
        if end - begin < SHARED:
            return [first, *[last] * threads]
        goals = begin + (end - begin) * np.arange(1, threads) // threads
        return [first, *(first + np.searchsorted(begins[first:last], goals)), last]

    layers = network.layers
    spans = list(pairwise(layers))
    rows, survivors = len(network.bias), len(network.weight)
    even = np.arange(threads + 1)
    return Shares(
        pixels=len(network.pixels) * even // threads,
        forward=np.array([split(first, last, network.first) for first, last in spans]),
        backward=np.array(
            [split(first, last, network.readers) for first, last in spans[:-1]]
        ).reshape(len(spans) - 1, threads + 1),
        rows=np.array(split(0, rows, network.first)),
        survivors=survivors * even // threads,
    )
