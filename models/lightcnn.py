"""LightCNN-9, -29 and -29v2: face recognition with Max-Feature-Maps. Wu et al., arXiv:1511.02683.

Layers have the names and shapes of the authors' PyTorch release, so that its checkpoints can be
loaded (`models.published`): `features.2.conv_a.filter.weight` is the 1x1 convolution of the first
group. The release is for grey 128x128 images. Here pooling rounds odd sizes up, so that every size
works; so does the release, except for its 29v2, which rounds down.
"""

from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from math import ceil
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pruning.units import Part, Width

DROPOUT = 0.5


class _Maximum(torch.autograd.Function):
    """`torch.maximum` with a gradient that is ten times as fast on a CPU."""

    @staticmethod
    def forward(ctx: Any, first: Tensor, second: Tensor) -> Tensor:
        ctx.save_for_backward(first - second)
        return torch.maximum(first, second)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        (lead,) = ctx.saved_tensors
        first = torch.ops.aten.threshold_backward(gradient, lead, 0)  # where lead > 0
        return first, gradient - first


class MFM(nn.Module):
    """Max-Feature-Map: the larger of the two halves of a layer's output channels."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.filter = layer

    def forward(self, values: Tensor) -> Tensor:
        """Values [N, inputs, ...] to [N, outputs, ...]."""
        return max_feature_map(self.filter(values))


class Residual(nn.Module):
    """Two 3x3 convolutions with MFM, added to their input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = mfm_conv(channels, channels, 3)
        self.conv2 = mfm_conv(channels, channels, 3)

    def forward(self, values: Tensor) -> Tensor:
        """Values [N, channels, height, width] to the same shape."""
        result: Tensor = values + self.conv2(self.conv1(values))
        return result


class MaxMeanPool(nn.Module):
    """Maximum plus mean of each 2x2 square, including partial squares at the border."""

    def forward(self, values: Tensor) -> Tensor:
        """Values [N, channels, height, width], height and width halved, rounded up."""
        mean = F.avg_pool2d(values, 2, ceil_mode=True)
        return F.max_pool2d(values, 2, ceil_mode=True) + mean


class LightCNN9(nn.Module):
    """Convolutions in `features`, then the linear layers `fc1` (with MFM) and `fc2`."""

    def __init__(self, image_shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            mfm_conv(image_shape[0], 48, 5),
            nn.MaxPool2d(2, ceil_mode=True),
            group(48, 96),
            nn.MaxPool2d(2, ceil_mode=True),
            group(96, 192),
            nn.MaxPool2d(2, ceil_mode=True),
            group(192, 128),
            group(128, 128),
            nn.MaxPool2d(2, ceil_mode=True),
        )
        self.fc1 = MFM(nn.Linear(pooled_size(image_shape), 2 * 256))
        self.fc2 = nn.Linear(256, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Images [N, channels, height, width] to logits [N, classes]."""
        face = self.fc1(self.features(images).flatten(1))  # [N, 256]
        logits: Tensor = self.fc2(F.dropout(face, DROPOUT, self.training))
        return logits


class LightCNN29(nn.Module):
    """LightCNN-9 with 1, 2, 3 and 4 residual blocks before its four groups.

    With `v2` the pooling adds the mean, `fc` has no MFM and `fc2` no bias.
    """

    def __init__(self, image_shape: tuple[int, ...], classes: int, v2: bool = False) -> None:
        super().__init__()
        self.conv1 = mfm_conv(image_shape[0], 48, 5)
        self.block1 = residuals(48, 1)
        self.group1 = group(48, 96)
        self.block2 = residuals(96, 2)
        self.group2 = group(96, 192)
        self.block3 = residuals(192, 3)
        self.group3 = group(192, 128)
        self.block4 = residuals(128, 4)
        self.group4 = group(128, 128)
        self.pool = MaxMeanPool() if v2 else nn.MaxPool2d(2, ceil_mode=True)
        size = pooled_size(image_shape)
        self.fc = nn.Linear(size, 256) if v2 else MFM(nn.Linear(size, 2 * 256))
        self.fc2 = nn.Linear(256, classes, bias=not v2)

    def forward(self, images: Tensor) -> Tensor:
        """Images [N, channels, height, width] to logits [N, classes]."""
        values = self.pool(self.conv1(images))  # [N, 48, height / 2, width / 2]
        values = self.pool(self.group1(self.block1(values)))  # [N, 96, height / 4, ...]
        values = self.pool(self.group2(self.block2(values)))  # [N, 192, height / 8, ...]
        values = self.group3(self.block3(values))  # [N, 128, height / 8, ...]
        values = self.pool(self.group4(self.block4(values)))  # [N, 128, height / 16, ...]
        face = self.fc(values.flatten(1))  # [N, 256]
        logits: Tensor = self.fc2(F.dropout(face, DROPOUT, self.training))
        return logits


LIGHTCNNS: dict[str, Callable[[tuple[int, ...], int], nn.Module]] = {
    "9": LightCNN9,
    "29": LightCNN29,
    "29_v2": partial(LightCNN29, v2=True),
}


def lightcnn(sizes: str, image_shape: tuple[int, ...], classes: int) -> nn.Module:
    """A LightCNN for images of `image_shape` (channels, height, width): "9", "29" or "29_v2".

    Raises:
        ValueError: If there is no LightCNN of this name.
    """
    if sizes not in LIGHTCNNS:
        known = ", ".join(f"lightcnn_{name}" for name in LIGHTCNNS)
        raise ValueError(f"model lightcnn must be one of {known}, got lightcnn_{sizes}")
    return LIGHTCNNS[sizes](image_shape, classes)


def lightcnn_widths(model: nn.Module) -> list[Width]:
    """The channels and neurons after each layer that another one reads.

    Each layer reads the one before. A residual block adds its result to what it reads, so all
    blocks of a stage make and read the channels of the layer before them.
    """
    layers: Layers = {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Conv2d | nn.Linear)
    }
    inside = [name for name, block in model.named_modules() if isinstance(block, Residual)]
    chain = [name for name in layers if not name.startswith(tuple(f"{each}." for each in inside))]
    widths = [_width(layers, [f"{each}.conv1.filter"], [f"{each}.conv2.filter"]) for each in inside]
    order = list(layers)
    for made, read in pairwise(chain):
        between = order[order.index(made) + 1 : order.index(read)]
        adding, reading = between[1::2], between[::2]  # conv1 reads, conv2 adds
        widths.append(_width(layers, [made, *adding], [*reading, read]))
    return sorted(
        widths, key=lambda width: order.index(width.made[0].tensor.removesuffix(".weight"))
    )


Layers = dict[str, nn.Conv2d | nn.Linear]


def _width(layers: Layers, made: list[str], read: list[str]) -> Width:
    """The units that the layers `made` compute and the layers `read` read."""
    tiles = 2 if made[0].endswith(".filter") else 1  # an MFM takes the larger of two halves
    count = len(layers[made[0]].weight) // tiles
    parts = [
        Part(f"{name}.{kind}", 0, tiles=tiles)
        for name in made
        for kind, value in layers[name].named_parameters()
    ]
    readers = [
        Part(f"{name}.weight", 1, block=layers[name].weight.shape[1] // count)  # flattened
        for name in read
    ]
    return Width(made[0].removesuffix(".filter"), count, tuple(parts), tuple(readers))


def max_feature_map(values: Tensor) -> Tensor:
    """Values [N, 2 * channels, ...] to the larger of channels `c` and `channels + c`, for each `c`.

    Equals `torch.maximum` of the halves, except that ties pass all the gradient to the second half.
    """
    first, second = values.chunk(2, dim=1)
    if not values.requires_grad:
        return torch.maximum(first, second)
    larger: Tensor = _Maximum.apply(first, second)
    return larger


def mfm_conv(inputs: int, outputs: int, size: int) -> MFM:
    """A convolution with MFM that keeps height and width; the kernel `size` must be odd."""
    return MFM(nn.Conv2d(inputs, 2 * outputs, size, padding=size // 2))


def group(inputs: int, outputs: int) -> nn.Sequential:
    """A 1x1 convolution, then a 3x3 convolution, each with MFM."""
    first, second = mfm_conv(inputs, inputs, 1), mfm_conv(inputs, outputs, 3)
    return nn.Sequential(OrderedDict(conv_a=first, conv=second))


def residuals(channels: int, count: int) -> nn.Sequential:
    """`count` residual blocks in a row."""
    return nn.Sequential(*(Residual(channels) for _ in range(count)))


def pooled_size(image_shape: tuple[int, ...]) -> int:
    """Number of values in 128 channels after four poolings: 8192 for images of 128x128."""
    _, height, width = image_shape
    return 128 * ceil(height / 16) * ceil(width / 16)
