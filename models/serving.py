"""Serving: a network that can be called with plain pixels, and how to build it without its data."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Annotated

import torch
from pydantic import AfterValidator, Field, FiniteFloat
from torch import Tensor, nn

from models import Architecture, linear_layers, resize


class FromPixels(nn.Module):
    """A network with its preprocessing.

    Images [N, channels, height, width] with pixels in [0, 1] become logits [N, classes]. If `crop`
    is not 0, the network gets the square of that side in the centre of the image; if there are
    `inputs`, [k] int64, it gets these values of each flattened image. With `l2`, pixels are divided
    by the L2 norm of the image, or of the square. If `finite_only` is set, NaN and infinite pixels
    raise a RuntimeError.
    """

    inputs: Tensor | None
    finite_only = False

    def __init__(
        self,
        network: nn.Module,
        mean: float,
        std: float,
        crop: int = 0,
        inputs: Tensor | None = None,
        l2: bool = False,
    ) -> None:
        super().__init__()
        self.network, self.mean, self.std, self.crop, self.l2 = network, mean, std, crop, l2
        self.register_buffer("inputs", inputs)

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels to logits."""
        if self.finite_only:
            torch._assert(torch.isfinite(pixels).all(), "pixels must be finite")
        if self.crop:
            top, left = ((side - self.crop) // 2 for side in pixels.shape[-2:])
            pixels = pixels[..., top : top + self.crop, left : left + self.crop]
        # Of all pixels, also if the network reads some of them.
        norms = _norms(pixels) if self.l2 else None  # [N, 1, 1, 1]
        if self.inputs is not None:
            pixels = pixels.flatten(1).index_select(1, self.inputs)
            norms = None if norms is None else norms.flatten(1)
        if norms is not None:
            pixels = pixels / norms
        logits: Tensor = self.network((pixels - self.mean) / self.std)
        return logits


def _norms(pixels: Tensor) -> Tensor:
    """L2 norms [N, 1, 1, 1]; 1 for a black image.

    Without a clamp, whose result 8-bit ONNX files would round, and without a small summand, which
    the export of ONNX files takes for zero.
    """
    norms = pixels.square().sum((1, 2, 3), keepdim=True).sqrt()
    return norms + (norms == 0)


MOST_SIDE = 1 << 16
MOST_PIXELS = 1 << 22  # of an image, in all channels
MOST_CLASSES = 1 << 17
Side = Annotated[int, Field(ge=1, le=MOST_SIDE)]
Name = Annotated[str, Field(max_length=1000)]


def _limited(shape: tuple[int, ...]) -> tuple[int, ...]:
    if prod(shape) > MOST_PIXELS:
        raise ValueError(f"an image may have at most {MOST_PIXELS:,} pixels, not {prod(shape):,}")
    return shape


@dataclass(frozen=True)
class NetworkSpec:
    """Everything about a network except its values.

    Pydantic enforces the limits when the spec comes from a file.
    """

    model: Annotated[str, Field(max_length=1000)]  # a name of `build_model`
    # Channels, height and width of an image, before the crop.
    image_shape: Annotated[
        tuple[Side, ...], Field(min_length=3, max_length=3), AfterValidator(_limited)
    ]
    # In the order of the logits.
    class_names: Annotated[tuple[Name, ...], Field(min_length=1, max_length=MOST_CLASSES)]
    mean: FiniteFloat  # of the training pixels in [0, 1]
    std: Annotated[FiniteFloat, Field(gt=0)]
    # Side of the square that the network sees; 0 means the whole image.
    crop: Annotated[int, Field(ge=0, le=MOST_SIDE)] = 0
    compact: bool = False  # whether it has as many units as its values say, or all of the model's
    inputs: tuple[int, ...] | None = None  # values of a flattened image that it reads; None: all
    l2: bool = (
        False  # whether pixels are divided by the L2 norm of the image; mean 0 and std 1 then
    )

    @property
    def architecture(self) -> Architecture:
        """The network without values, with all units of its model."""
        shape = (self.image_shape[0], self.crop, self.crop) if self.crop else self.image_shape
        return Architecture(self.model, shape, len(self.class_names))

    def build(self, state: Mapping[str, Tensor]) -> FromPixels:
        """The network with the values `state`, which it shares, in evaluation mode.

        Raises:
            ValueError: If the values are not those of such a network.
        """
        if self.crop > min(self.image_shape[1:]):
            raise ValueError(f"a crop of {self.crop} is larger than its images")
        if self.l2 and (self.mean, self.std) != (0, 1):
            raise ValueError("pixels that are divided by a norm have mean 0 and std 1")
        network = self._skeleton()
        expected = {name: value.dtype for name, value in network.state_dict().items()}
        inputs = None
        if self.inputs is not None:
            if not self.compact or not linear_layers(network):
                raise ValueError("only a compact fully connected network can have inputs")
            pixels = prod(self.architecture.image_shape)
            if not self.inputs or not all(0 <= each < pixels for each in self.inputs):
                raise ValueError("the network reads pixels that its images do not have")
            inputs = torch.tensor(self.inputs)
        if self.compact:
            resize(network, self.architecture.widths, dict(state), len(self.inputs or ()))
        try:
            network.load_state_dict(dict(state), assign=True)
        except RuntimeError as error:
            raise ValueError(" ".join(str(error).split())) from None
        for name, kind in expected.items():
            if state[name].dtype != kind:
                raise ValueError(f"{name} is {state[name].dtype}, expected {kind}")
        return FromPixels(network, self.mean, self.std, self.crop, inputs, self.l2).eval()

    def _skeleton(self) -> nn.Module:
        try:
            with torch.device("meta"):  # draws no random values, takes no memory
                return self.architecture.build()
        except (RuntimeError, OverflowError, TypeError) as error:  # sizes that overflow
            raise ValueError(f"it cannot be built: {error}") from None
