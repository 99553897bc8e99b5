"""Kernels: a training step of a fully connected network that costs what its survivors cost.

Compiled with Numba (Lam, Pitrou & Seibert 2015, doi:10.1145/2833157.2833162). Pruned weights are
not stored: the network is a list of survivors, each of which reads one unit and adds to another.
Units are numbered through all layers, pixels first; those that are computed are *rows*, numbered
without the pixels:

                    pixels          fc1               fc2 ...
    units    | 0 ... inputs-1 |  inputs ...                ... |
    rows                      |  0 ...   |  layers[1] ...  ... |

Survivors are sorted by row, and by unit within a row; `first[r]` is where those of row r begin:

    first     | 0        | 3     | 5 ...
    source    | 2  7  90 | 7  11 | ...      the unit that it reads
    weight    | .  .   . | .   . | ...      its value

The backward pass needs them by hidden unit, and reads them through a second index: `readers[r]` is
where those that read the unit of row r begin, `place` where each is in the first order, and
`reader` the row that it adds to.

Up to LANES images are computed at once. `values[unit]` and `errors[row]` hold a number for each of
them side by side, so every inner loop runs over contiguous memory and fills the vectors of the
processor. Each row is computed by one thread in a fixed order: results do not depend on the number
of threads.
"""

from collections.abc import Callable
from types import FunctionType
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numba import njit, prange
from numpy.typing import NDArray

# Numba keeps kernels as long as this file is the same, so what they use must be in it.
LANES = 64  # images at once; other numbers are slower
ADAM, ADAMW, SGD = 0, 1, 2  # how weights are updated
BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]
Flags = NDArray[np.bool_]
Indices = NDArray[np.uint16 | np.uint32]  # the smaller, the less a step reads
_ZERO = np.float32(0)
_Function = TypeVar("_Function", bound=Callable[..., Any])


def _compiled(function: _Function, **options: Any) -> _Function:
    """Compile at the first call, and keep the result on disk.

    Sums may be vectorised; NaN and infinity keep their meaning. Python's lock is released.
    """
    options |= {"nogil": True, "fastmath": {"contract", "reassoc", "nsz"}, "error_model": "numpy"}
    try:
        kernel: Any = njit(cache=True, **options)(function)
    except RuntimeError:  # no folder can be written to, so every process compiles it
        kernel = njit(**options)(function)
    return kernel  # type: ignore[no-any-return]


def _inlined(function: _Function) -> _Function:
    """Compile as a part of the kernels that call it.

    Otherwise a process that compiles a kernel and one that loads it call different copies, which
    may take sums in different orders.
    """
    return _compiled(function, forceinline=True)


class Network(NamedTuple):
    """A network, as above."""

    inputs: int
    layers: Integers  # [layers + 1] the first row of each layer, and the number of rows
    first: Integers  # [rows + 1]
    source: Indices  # [survivors]
    readers: Integers  # [rows + 1]
    place: NDArray[np.uint32]  # [survivors after the first layer]
    reader: Indices  # [the same]
    pixels: Integers  # the pixels that a survivor reads, ascending
    weight: Floats  # [survivors]
    bias: Floats  # [rows]


class Buffers(NamedTuple):
    """What a step writes, apart from the network."""

    values: Floats  # [inputs + rows, LANES]
    errors: Floats  # [rows, LANES]: the loss differentiated by what a row sums
    by_source: Floats  # [survivors after the first layer]
    weight_gradient: Floats  # [survivors]
    bias_gradient: Floats  # [rows]
    weight_moments: Floats  # [2, survivors]: of the optimizer
    bias_moments: Floats  # [2, rows]


class Shares(NamedTuple):
    """Where the part of each thread begins; several threads share a large layer only."""

    pixels: Integers  # [threads + 1]
    forward: Integers  # [layers, threads + 1] rows
    backward: Integers  # [layers - 1, threads + 1] rows
    rows: Integers  # [threads + 1]
    survivors: Integers  # [threads + 1]


class Images(NamedTuple):
    """Stored images, and what a network sees."""

    stored: NDArray[np.uint8]  # [images, inputs]
    inputs: Floats  # [256]: the input for each stored byte
    factors: Floats  # [images]: what an image's inputs are multiplied by; [0]: nothing
    labels: Integers  # [images]


class Rule(NamedTuple):
    """How to update the weights, and the loss."""

    update: int  # ADAM, ADAMW or SGD
    momentum: float
    weight_decay: float
    largest_norm: float  # of the gradient; 0 is no limit
    smoothing: float  # of the labels


def _renamed(function: _Function, name: str) -> _Function:
    """A copy with another name, by which Numba finds its file on disk."""
    copy: Any = FunctionType(function.__code__, function.__globals__, name)
    copy.__qualname__ = name
    return copy  # type: ignore[no-any-return]


@_inlined
def _gather(
    images: Images, rows: Integers, pixels: Integers, first: int, last: int, values: Floats
) -> None:
    for number in range(first, last):
        pixel = pixels[number]
        for lane in range(len(rows)):
            values[pixel, lane] = images.inputs[images.stored[rows[lane], pixel]]
    if len(images.factors):
        factors = images.factors[rows]
        for pixel in pixels[first:last]:
            for lane in range(len(rows)):
                values[pixel, lane] *= factors[lane]


@_inlined
def _add_products(
    weight: Floats, source: Indices, first: int, last: int, values: Floats, sums: Floats, row: int
) -> None:
    """sums[row] += the sum of weight[k] * values[source[k]] over k from `first` to `last`."""
    k = first
    while k + 4 <= last:  # four at a time: the sums are read and written a quarter as often
        w0, w1, w2, w3 = weight[k], weight[k + 1], weight[k + 2], weight[k + 3]
        s0, s1, s2, s3 = source[k], source[k + 1], source[k + 2], source[k + 3]
        for lane in range(LANES):
            sums[row, lane] += (
                w0 * values[s0, lane]
                + w1 * values[s1, lane]
                + w2 * values[s2, lane]
                + w3 * values[s3, lane]
            )
        k += 4
    while k < last:
        w0, s0 = weight[k], source[k]
        for lane in range(LANES):
            sums[row, lane] += w0 * values[s0, lane]
        k += 1


@_inlined
def _forward(network: Network, values: Floats, first: int, last: int, is_output: bool) -> None:
    for row in range(first, last):
        unit = network.inputs + row
        for lane in range(LANES):
            values[unit, lane] = network.bias[row]
        start, end = network.first[row], network.first[row + 1]
        _add_products(network.weight, network.source, start, end, values, values, unit)
        if not is_output:
            for lane in range(LANES):
                values[unit, lane] = max(values[unit, lane], _ZERO)


@_inlined
def _backward(network: Network, buffers: Buffers, first: int, last: int) -> None:
    """The errors of hidden units, from those of the rows that read them."""
    values, errors, by_source = buffers.values, buffers.errors, buffers.by_source
    for row in range(first, last):
        unit = network.inputs + row
        start, end = network.readers[row], network.readers[row + 1]
        for number in range(start, end):
            by_source[number] = network.weight[network.place[number]]
        for lane in range(LANES):
            errors[row, lane] = _ZERO
        _add_products(by_source, network.reader, start, end, errors, errors, row)
        for lane in range(LANES):
            if values[unit, lane] <= _ZERO:
                errors[row, lane] = _ZERO


@_inlined
def _add_gradients(network: Network, buffers: Buffers, first: int, last: int) -> None:
    """Add the gradients of the survivors and biases of some rows, summed over the images."""
    values, errors, source = buffers.values, buffers.errors, network.source
    gradient = buffers.weight_gradient
    for row in range(first, last):
        total = _ZERO
        for lane in range(LANES):
            total += errors[row, lane]
        buffers.bias_gradient[row] += total
        k, end = network.first[row], network.first[row + 1]
        while k + 4 <= end:  # four at a time: the errors are read a quarter as often
            s0, s1, s2, s3 = source[k], source[k + 1], source[k + 2], source[k + 3]
            g0 = g1 = g2 = g3 = _ZERO
            for lane in range(LANES):
                error = errors[row, lane]
                g0 += error * values[s0, lane]
                g1 += error * values[s1, lane]
                g2 += error * values[s2, lane]
                g3 += error * values[s3, lane]
            gradient[k] += g0
            gradient[k + 1] += g1
            gradient[k + 2] += g2
            gradient[k + 3] += g3
            k += 4
        while k < end:
            s0, g0 = source[k], _ZERO
            for lane in range(LANES):
                g0 += errors[row, lane] * values[s0, lane]
            gradient[k] += g0
            k += 1


@_inlined
def _loss(
    values: Floats, first: int, last: int, label: int, smoothing: float, lane: int
) -> tuple[float, float, float]:
    """Cross-entropy of one image in nats; its logits are the units from `first` to `last`."""
    largest = values[first, lane]
    for unit in range(first + 1, last):
        largest = max(largest, values[unit, lane])
    total, mean = _ZERO, _ZERO
    for unit in range(first, last):
        logit = values[unit, lane] - largest
        total += np.exp(logit)
        mean += logit / np.float32(last - first)
    log_total = np.log(total)
    own = values[first + label, lane] - largest
    share = np.float32(smoothing)
    loss = (1 - share) * (log_total - own) + share * (log_total - mean)
    return loss, largest, total  # type: ignore[return-value]


@_inlined
def _output_errors(
    network: Network, buffers: Buffers, labels: Integers, images: int, smoothing: float
) -> float:
    """The errors of the output layer for the mean loss of `images`; returns their part of it."""
    values, errors = buffers.values, buffers.errors
    first, last = network.layers[-2], network.layers[-1]
    begin, end = network.inputs + first, network.inputs + last
    share = np.float32(smoothing / (last - first))
    rest, scale = np.float32(1 - smoothing), np.float32(1 / images)
    losses = 0.0
    for lane in range(len(labels)):
        loss, largest, total = _loss(values, begin, end, labels[lane], smoothing, lane)
        losses += loss
        for row in range(first, last):
            value = np.exp(values[network.inputs + row, lane] - largest) / total
            errors[row, lane] = (value - share) * scale
        errors[first + labels[lane], lane] -= rest * scale
    for row in range(first, last):
        for lane in range(len(labels), LANES):
            errors[row, lane] = _ZERO  # no image there
    return losses / images


@_inlined
def _update(
    weight: Floats, gradient: Floats, moments: Floats, rate: float, step: int, rule: Rule
) -> None:
    """One step of the optimizer, as PyTorch's fused updates; the gradient becomes zero."""
    decay = np.float32(rule.weight_decay)
    if rule.update == SGD:
        momentum, size = np.float32(rule.momentum), np.float32(rate)
        for k in range(len(weight)):
            moments[0, k] = momentum * moments[0, k] + gradient[k] + decay * weight[k]
            weight[k] -= size * moments[0, k]
            gradient[k] = _ZERO
        return
    shrink = np.float32(1 - rate * rule.weight_decay)
    size = np.float32(rate / (1 - BETA1**step))
    root = np.float32(np.sqrt(1 - BETA2**step))
    rest1, beta2 = np.float32(1 - BETA1), np.float32(BETA2)
    rest2, epsilon = np.float32(1 - BETA2), np.float32(EPSILON)
    for k in range(len(weight)):
        if rule.update == ADAMW:
            weight[k] *= shrink
            own = gradient[k]
        else:
            own = gradient[k] + decay * weight[k]
        moments[0, k] += rest1 * (own - moments[0, k])
        moments[1, k] = beta2 * moments[1, k] + rest2 * own * own
        weight[k] -= size * moments[0, k] / (np.sqrt(moments[1, k]) / root + epsilon)
        gradient[k] = _ZERO


@_inlined
def _clip(buffers: Buffers, largest: float) -> None:
    """Scale the gradients so that their joint norm is at most `largest`, as engine.clip does."""
    total = 0.0
    for gradient in (buffers.weight_gradient, buffers.bias_gradient):
        for value in gradient:
            total += value * value
    factor = np.float32(largest / (np.sqrt(total) + 1e-6))
    if factor < 1:
        for gradient in (buffers.weight_gradient, buffers.bias_gradient):
            for k in range(len(gradient)):
                gradient[k] *= factor


def _train(
    network: Network,
    buffers: Buffers,
    shares: Shares,
    images: Images,
    order: Integers,
    begins: Integers,
    rates: NDArray[np.float64],
    steps: int,
    rule: Rule,
) -> float:
    """Take a step for each of `rates`, with the rows `order[begins[i] : begins[i + 1]]`.

    Returns the sum of the mean losses of the batches, in nats; `steps` were taken before.
    """
    layers = len(network.layers) - 1
    threads = shares.pixels.shape[0] - 1
    losses = 0.0
    for number in range(len(rates)):
        batch = order[begins[number] : begins[number + 1]]
        for start in range(0, len(batch), LANES):
            rows = batch[start : start + LANES]
            for part in prange(threads):
                first, last = shares.pixels[part], shares.pixels[part + 1]
                _gather(images, rows, network.pixels, first, last, buffers.values)
            for layer in range(layers):
                for part in prange(threads):
                    first, last = shares.forward[layer, part], shares.forward[layer, part + 1]
                    _forward(network, buffers.values, first, last, layer == layers - 1)
            labels = images.labels[rows]
            losses += _output_errors(network, buffers, labels, len(batch), rule.smoothing)
            for layer in range(layers - 2, -1, -1):
                for part in prange(threads):
                    first, last = shares.backward[layer, part], shares.backward[layer, part + 1]
                    _backward(network, buffers, first, last)
            for part in prange(threads):
                _add_gradients(network, buffers, shares.rows[part], shares.rows[part + 1])
        if rule.largest_norm:
            _clip(buffers, rule.largest_norm)
        rate, step = rates[number], steps + number + 1
        _update(network.bias, buffers.bias_gradient, buffers.bias_moments, rate, step, rule)
        for part in prange(threads):
            first, last = shares.survivors[part], shares.survivors[part + 1]
            weight, gradient = network.weight[first:last], buffers.weight_gradient[first:last]
            _update(weight, gradient, buffers.weight_moments[:, first:last], rate, step, rule)
    return losses


def _evaluate(network: Network, values: Floats, images: Images, correct: Flags) -> float:
    """Sum of the losses in nats; `correct`: [images], values: [threads, units, LANES]."""
    count = len(images.labels)
    blocks = -(-count // LANES)
    losses, threads, layers = np.zeros(blocks), values.shape[0], len(network.layers) - 1
    begin, end = network.inputs + network.layers[-2], network.inputs + network.layers[-1]
    for part in prange(threads):
        own = values[part]
        for block in range(part * blocks // threads, (part + 1) * blocks // threads):
            rows = np.arange(block * LANES, min(count, (block + 1) * LANES))
            _gather(images, rows, network.pixels, 0, len(network.pixels), own)
            for layer in range(layers):
                first, last = network.layers[layer], network.layers[layer + 1]
                _forward(network, own, first, last, layer == layers - 1)
            for lane in range(len(rows)):
                label = images.labels[rows[lane]]
                losses[block] += _loss(own, begin, end, label, 0.0, lane)[0]
                best = 0
                for unit in range(begin + 1, end):
                    if own[unit, lane] > own[begin + best, lane]:
                        best = unit - begin
                correct[rows[lane]] = best == label
    return float(losses.sum())


train = _compiled(_train)
evaluate = _compiled(_evaluate)
train_shared = _compiled(_renamed(_train, "train_shared"), parallel=True)
evaluate_shared = _compiled(_renamed(_evaluate, "evaluate_shared"), parallel=True)
