"""Integers: the same ONNX graph, as ONNX Runtime computes it fastest with 8-bit integers.

* A LightCNN takes the larger of two halves of its channels. ONNX Runtime 1.32 has no maximum of two
  tensors of 8-bit integers: it converts them to float32 and back, which takes a quarter of the time
  of a network. Its pooling of 8-bit integers is fast, and gives the same: the maximum of windows of
  two values. Where the maximum is pooled next, that comes first: there are fewer values to compare.
* A convolution of grey images reads one channel, for which there is no fast code. Reading squares
  of 2x2 pixels as four channels is faster, and makes four outputs at a time: those that are pooled.
"""

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxscript.ir import DataType, Node, Value, tensor
from onnxscript.rewriter import MatchResult, RewriteRule, rewrite

LAST, FIRST = [0, 2, 3, 1], [0, 3, 1, 2]  # channels of [N, channels, height, width], and back
PHASES = tuple(product((0, 1), (0, 1)))  # row and column of each pixel of a square of 2x2


def for_integers(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph, with operations that take little time when they are quantised."""
    for rule in (
        RewriteRule(_pooled_maximum_of_grey, _read_squares, _is_grey),
        RewriteRule(_pooled_maximum, _pool_first, _is_image),
        RewriteRule(_maximum, _pool_halves, _is_image),
    ):
        model = rewrite(model, [rule])
    return model


def _maximum(op: Any, values: Any) -> Any:
    first, second = op.Split(values, num_outputs=2, axis=1, _outputs=2)
    return op.Max(first, second, _outputs=["result"])


def _pooled_maximum(op: Any, values: Any) -> Any:
    first, second = op.Split(values, num_outputs=2, axis=1, _outputs=2)
    return op.MaxPool(op.Max(first, second), _outputs=["result"])


def _pooled_maximum_of_grey(op: Any, pixels: Any) -> Any:
    values = op.Conv(pixels, _allow_other_inputs=True, _outputs=["values"])
    return _pooled_maximum(op, values)


def _is_image(context: Any, values: Value, result: Value, **_: Value) -> MatchResult:
    """Whether values and result are [N, channels, height, width], all but N known."""
    del context
    found = MatchResult()
    if len(_sizes(values)) != 3 or len(_sizes(result)) != 3 or _sizes(values)[0] % 2:
        found.fail("these are not two halves of the channels of an image of known size")
    return found


def _is_grey(
    context: Any, pixels: Value, values: Value, result: Value, **rest: Value
) -> MatchResult:
    """Whether a convolution of one channel keeps the size, and its squares of 2x2 are pooled."""
    found = _is_image(context, values, result, **rest)
    convolution, pooling = _made(values), _made(result)
    constants = [_constant(each) for each in convolution.inputs[1:]]
    side = constants[0].shape[-1] if all(each.size for each in constants) else 0
    same = _window(convolution) == ([side, side], [1, 1], [1, 1], [side // 2] * 4)
    squares = _window(pooling) == ([2, 2], [2, 2], [1, 1], [0] * 4)
    even = [1, *(2 * size for size in _sizes(result)[1:])]
    if not (found and side % 2 and same and squares) or _sizes(pixels) != even:
        found.fail("this is not a convolution of a grey image whose squares of 2x2 are pooled")
    return found


def _made(value: Value) -> Node:
    node = value.producer()
    assert node
    return node


def _constant(value: Value | None) -> NDArray[np.float32]:
    """Its numbers; none if it is not constant."""
    constant = value.const_value if value else None
    return constant.numpy() if constant else np.zeros(0, np.float32)


def _window(node: Node) -> tuple[list[int], list[int], list[int], list[int]]:
    """Of a convolution or pooling: the kernel's sides, strides, dilations, padding."""

    def numbers(name: str, default: list[int]) -> list[int]:
        attribute = node.attributes.get(name)
        return list(attribute.as_ints()) if attribute else default

    one = [1, 1]
    kernel, strides = numbers("kernel_shape", []), numbers("strides", one)
    return kernel, strides, numbers("dilations", one), numbers("pads", [0] * 4)


def _sizes(value: Value) -> list[int]:
    """Without N, where they are known."""
    return [size for size in (value.shape or ())[1:] if isinstance(size, int)]


def _pool_halves(op: Any, values: Value, result: Value, **_: Value) -> Any:
    return _largest(op, values, 2, _sizes(result))


def _pool_first(op: Any, values: Value, result: Value, **_: Value) -> Any:
    pooled = op.MaxPool(values, **_made(result).attributes)
    return _largest(op, pooled, 2, _sizes(result))


def _read_squares(op: Any, pixels: Value, values: Value, result: Value, **_: Value) -> Any:
    weight, *bias = (_constant(each) for each in _made(values).inputs[1:])
    kernel = squares_kernel(weight)
    constants = [kernel, *(np.tile(each, 4) for each in bias)]
    squares = op.SpaceToDepth(pixels, blocksize=2)
    inputs = [op.Constant(value=tensor(each)) for each in constants]
    outputs = op.Conv(squares, *inputs, pads=[kernel.shape[-1] // 2] * 4)
    return _largest(op, outputs, 8, _sizes(result))


def squares_kernel(kernel: NDArray[np.float32]) -> NDArray[np.float32]:
    """The kernel that does with squares of 2x2 pixels what `kernel` does with pixels.

    Args:
        kernel: [outputs, 1, side, side], of an odd side.

    Returns:
        [4 * outputs, 4, ...]. Its inputs are the pixels of a square, row by row; its outputs those
        of the first pixel, of the second, and so on.
    """
    outputs, _, side, _ = kernel.shape
    reach = side // 2
    around = range(-((reach + 1) // 2), (reach + 1) // 2 + 1)  # squares that a square reads
    large = np.zeros((4, outputs, 4, len(around), len(around)), kernel.dtype)
    for (made, (y_made, x_made)), (read, (y_read, x_read)) in product(enumerate(PHASES), repeat=2):
        for (row, y), (column, x) in product(enumerate(around), repeat=2):
            down, right = 2 * y + y_read - y_made + reach, 2 * x + x_read - x_made + reach
            if 0 <= down < side and 0 <= right < side:
                large[made, :, read, row, column] = kernel[:, 0, down, right]
    return large.reshape(4 * outputs, 4, len(around), len(around))


def _largest(op: Any, values: Any, count: int, sizes: Sequence[int]) -> Any:
    """The largest of several groups of channels, [N, count * channels, height, width].

    With channels last, the groups of a pixel are a column for each channel, and nothing but the
    pooling moves a value.

    Returns:
        [N, channels, height, width], whose `sizes` are known.
    """
    channels, height, width = sizes
    columns = _reshape(op, values, [0, height * width, count, channels])
    largest = op.MaxPool(columns, kernel_shape=[1, count])  # [N, channels, height * width, 1]
    return _reshape(op, largest, [0, height, width, channels])


def _reshape(op: Any, values: Any, shape: Sequence[int]) -> Any:
    """Reshape with channels last."""
    constant = op.Constant(value=tensor(shape, DataType.INT64))
    return op.Transpose(op.Reshape(op.Transpose(values, perm=LAST), constant), perm=FIRST)
