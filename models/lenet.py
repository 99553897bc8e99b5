"""LeNet-300-100 and other fully connected networks. LeCun et al. 1998; arXiv:1803.03635."""

from collections import OrderedDict
from itertools import pairwise
from math import prod

from torch import nn

from pruning.units import Part, Width


def lenet(sizes: str, image_shape: tuple[int, ...], classes: int) -> nn.Module:
    """A fully connected network with ReLU between its layers `fc1`, `fc2`, ...

    The hidden layers have the given sizes, such as "300_100".

    Raises:
        ValueError: If the sizes are not positive integers separated by underscores.
    """
    parts = sizes.split("_")
    if not all(part.isascii() and part.isdecimal() and int(part) > 0 for part in parts):
        raise ValueError(
            f"model lenet requires layer sizes such as lenet_300_100, got lenet_{sizes}"
        )
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    widths = prod(image_shape), *(int(part) for part in parts), classes
    for number, (inputs, outputs) in enumerate(pairwise(widths), start=1):
        layers[f"fc{number}"] = nn.Linear(inputs, outputs)
        layers[f"relu{number}"] = nn.ReLU()
    layers.popitem()  # logits keep their sign
    return nn.Sequential(layers)


def lenet_widths(model: nn.Module) -> list[Width]:
    """The neurons of each hidden layer: `fc1` computes them, `fc2` reads them, and so on."""
    layers = [(name, each) for name, each in model.named_children() if isinstance(each, nn.Linear)]
    return [
        Width(
            name,
            layer.out_features,
            made=(Part(f"{name}.weight", 0), Part(f"{name}.bias", 0)),
            read=(Part(f"{reader}.weight", 1),),
        )
        for (name, layer), (reader, _) in pairwise(layers)
    ]
