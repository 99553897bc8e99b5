"""Maxima: the same ONNX graph with maxima that take little time in 8-bit integers.

A LightCNN takes the larger of two halves of its channels. ONNX Runtime 1.32 has no maximum of two
tensors of 8-bit integers: it converts them to float32 and back, which takes a quarter of the time.
Its pooling of 8-bit integers is fast, and gives the same: the maximum of windows of two values.
"""

from collections.abc import Sequence
from typing import Any

import onnx
from onnx_ir import DataType, Value, tensor
from onnxscript.rewriter import MatchResult, RewriteRule, rewrite

LAST, FIRST = [0, 2, 3, 1], [0, 3, 1, 2]  # channels of [N, channels, height, width], and back


def pool_maxima(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph, with a pooling where it has the maximum of two halves of an image's channels.

    Where the maximum is pooled next, that comes first: there are fewer values to compare then.
    """
    for rule in (
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


def _is_image(context: Any, values: Value, result: Value, **_: Value) -> MatchResult:
    """Whether values and result are [N, channels, height, width], all but N known."""
    del context
    found = MatchResult()
    if len(_sizes(values)) != 3 or len(_sizes(result)) != 3 or _sizes(values)[0] % 2:
        found.fail("these are not two halves of the channels of an image of known size")
    return found


def _sizes(value: Value) -> list[int]:
    """Without N, where they are known."""
    return [size for size in (value.shape or ())[1:] if isinstance(size, int)]


def _pool_halves(op: Any, values: Value, result: Value, **_: Value) -> Any:
    return _larger(op, values, _sizes(result))


def _pool_first(op: Any, values: Value, result: Value, **_: Value) -> Any:
    pooling = result.producer()
    assert pooling
    return _larger(op, op.MaxPool(values, **pooling.attributes), _sizes(result))


def _larger(op: Any, values: Any, sizes: Sequence[int]) -> Any:
    """The larger of the halves of channels, [N, 2 * channels, height, width] to [N, *sizes].

    With channels last, the halves of a pixel are a column of two for each channel, and nothing but
    the pooling moves a value.
    """
    channels, height, width = sizes
    pairs = _reshape(op, values, [0, height * width, 2, channels])
    larger = op.MaxPool(pairs, kernel_shape=[1, 2])  # [N, channels, height * width, 1]
    return _reshape(op, larger, [0, height, width, channels])


def _reshape(op: Any, values: Any, shape: Sequence[int]) -> Any:
    """Reshape with channels last."""
    constant = op.Constant(value=tensor(shape, DataType.INT64))
    return op.Transpose(op.Reshape(op.Transpose(values, perm=LAST), constant), perm=FIRST)
