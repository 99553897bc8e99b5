"""LeNet-300-100 and other fully connected networks. LeCun et al. 1998; arXiv:1803.03635."""

from itertools import pairwise
from math import prod

import torch.nn.functional as F
from torch import Tensor, nn


class LeNet(nn.Module):
    """A fully connected network with ReLU between its layers `fc1`, `fc2`, ..."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        layers = [nn.Linear(inputs, outputs) for inputs, outputs in pairwise(widths)]
        for number, layer in enumerate(layers, start=1):
            self.add_module(f"fc{number}", layer)
        self.hidden, self.output = layers[:-1], layers[-1:]  # lists: not registered again

    def forward(self, images: Tensor) -> Tensor:
        """Images [N, ...] to logits [N, classes]."""
        values = images.flatten(1)  # [N, pixels]
        for layer in self.hidden:
            values = F.relu(layer(values))
        logits: Tensor = self.output[0](values)
        return logits


def lenet(sizes: str, image_shape: tuple[int, ...], classes: int) -> nn.Module:
    """A LeNet with hidden layers of the given sizes, such as "300_100".

    Raises:
        ValueError: If the sizes are not positive integers separated by underscores.
    """
    parts = sizes.split("_")
    if not all(part.isascii() and part.isdecimal() and int(part) > 0 for part in parts):
        raise ValueError(
            f"model lenet requires layer sizes such as lenet_300_100, got lenet_{sizes}"
        )
    return LeNet((prod(image_shape), *(int(part) for part in parts), classes))
