"""Serving: a network that can be called with plain pixels, and how to build it without its data."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models import build_model


class FromPixels(nn.Module):
    """A network with its preprocessing.

    Images [N, channels, height, width] with pixels in [0, 1] become logits [N, classes]. If `crop`
    is not 0, the network gets the square of that side in the centre of the image.
    """

    def __init__(self, network: nn.Module, mean: float, std: float, crop: int = 0) -> None:
        super().__init__()
        self.network, self.mean, self.std, self.crop = network, mean, std, crop

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels to logits."""
        if self.crop:
            top, left = ((side - self.crop) // 2 for side in pixels.shape[-2:])
            pixels = pixels[..., top : top + self.crop, left : left + self.crop]
        logits: Tensor = self.network((pixels - self.mean) / self.std)
        return logits


@dataclass(frozen=True)
class NetworkSpec:
    """Everything about a network except its values."""

    model: str  # a name of `build_model`
    image_shape: tuple[int, ...]  # channels, height and width of an image, before the crop
    class_names: tuple[str, ...]  # in the order of the logits
    mean: float  # of the training pixels in [0, 1]
    std: float
    crop: int = 0  # side of the square that the network sees; 0 means the whole image

    def build(self, state: Mapping[str, Tensor]) -> FromPixels:
        """The network with the values `state`, which it shares, in evaluation mode.

        Raises:
            RuntimeError: If the names or shapes of the values are not those of the model.
        """
        shape = (self.image_shape[0], self.crop, self.crop) if self.crop else self.image_shape
        with torch.device("meta"):  # draws no random values
            network = build_model(self.model, shape, len(self.class_names))
        network.load_state_dict(dict(state), assign=True)
        return FromPixels(network, self.mean, self.std, self.crop).eval()
