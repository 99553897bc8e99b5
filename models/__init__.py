"""Models: from a name such as `lenet_300_100` to a network, its initial values and its costs.

A model is a `torch.nn.Module` that maps images [N, channels, height, width] to logits
[N, classes]. Pruning applies to the weights of its linear and convolutional layers, the last of
which is the output layer. To add a family, write a builder `(sizes, image_shape, classes) ->
Module` and add a line to `MODELS`; the names are then `<family>_<sizes>`. If whole units are to be
pruned, also write a function that states which weights belong to each, and add a line to `WIDTHS`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from math import sqrt

import torch
from torch import Tensor, nn

from models.lenet import lenet, lenet_widths
from models.lightcnn import LIGHTCNNS, lightcnn, lightcnn_widths
from pruning.masks import Masks, State
from pruning.units import Width, cut, live_units

MODELS: dict[str, Callable[[str, tuple[int, ...], int], nn.Module]] = {
    "lenet": lenet,
    "lightcnn": lightcnn,
}
WIDTHS: dict[str, Callable[[nn.Module], list[Width]]] = {
    "lenet": lenet_widths,
    "lightcnn": lightcnn_widths,
}
NAMES = (
    "lenet_<n>_<n>... (such as lenet_300_100)",
    *(f"lightcnn_{sizes}" for sizes in LIGHTCNNS),
)
PRUNABLE_LAYERS = (nn.Linear, nn.Conv2d)


def build_model(name: str, image_shape: tuple[int, ...], classes: int) -> nn.Module:
    """The network called `name` for images of `image_shape` (channels, height, width).

    Raises:
        ValueError: If there is no model of this name.
    """
    family, _, sizes = name.partition("_")
    if family not in MODELS:
        raise ValueError(f"model must be one of {', '.join(NAMES)}, got {name}")
    return MODELS[family](sizes, image_shape, classes)


def prunable_weights(model: nn.Module) -> tuple[str, ...]:
    """Names of the weight tensors that can be pruned, from input to output layer."""
    layers = (name for name, layer in model.named_modules() if isinstance(layer, PRUNABLE_LAYERS))
    return tuple(f"{name}.weight" for name in layers)


def linear_layers(model: nn.Module) -> tuple[str, ...]:
    """Names of the layers of a fully connected network, such as ("fc1", "fc2"); else empty.

    It flattens its images, and has ReLU between its layers, which all have biases.
    """
    layers = list(model.named_children()) if isinstance(model, nn.Sequential) else []
    kinds = [type(layer) for _, layer in layers]
    if kinds != [nn.Flatten, nn.Linear, *[nn.ReLU, nn.Linear] * (len(kinds) // 2 - 1)]:
        return ()
    linear = {name: layer for name, layer in layers if isinstance(layer, nn.Linear)}
    return tuple(linear) if all(layer.bias is not None for layer in linear.values()) else ()


def resize(model: nn.Module, widths: Sequence[Width], state: State, inputs: int = 0) -> nn.Module:
    """The model with as many units as `state` has values for.

    Args:
        model: It is changed; values of its parameters are lost.
        widths: Its units.
        inputs: How many values of an image the first layer reads; 0: all of them.

    Raises:
        ValueError: If there is no number of units for which `state` has the right shapes.
    """
    shapes = {name: list(value.shape) for name, value in model.named_parameters()}
    if missing := shapes.keys() - state.keys():
        raise ValueError(f"{', '.join(sorted(missing))} is missing")
    if inputs:
        shapes[prunable_weights(model)[0]][1] = inputs
    for width in widths:
        first = width.made[0]
        size = state[first.tensor].shape[first.dim] if state[first.tensor].ndim else 0
        for part in (*width.made, *width.read):
            count = max(1, size // (first.tiles * first.block))
            shapes[part.tensor][part.dim] = part.tiles * part.block * count
    for name, shape in shapes.items():
        if list(state[name].shape) != shape:
            raise ValueError(f"{name} has shape {list(state[name].shape)}, expected {shape}")
        layer = model.get_submodule(name.rpartition(".")[0])
        empty = torch.empty(shape, device=model.get_parameter(name).device)
        setattr(layer, name.rpartition(".")[2], nn.Parameter(empty))
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            layer.out_features, layer.in_features = layer.weight.shape
        elif isinstance(layer, nn.Conv2d):
            layer.out_channels, layer.in_channels = layer.weight.shape[:2]
    return model


def weight_uses(model: nn.Module, image_shape: tuple[int, ...]) -> dict[str, int]:
    """Multiply-adds per image for one weight of each prunable tensor.

    Raises:
        ValueError: If the model never calls a layer whose weights would be pruned.
    """
    uses = dict.fromkeys(prunable_weights(model), 0)

    def count(name: str, layer: nn.Module, inputs: object, output: Tensor) -> None:
        uses[name] += output[0, 0].numel() if isinstance(layer, nn.Conv2d) else 1

    hooks = [
        model.get_submodule(name.removesuffix(".weight")).register_forward_hook(
            partial(count, name)
        )
        for name in uses
    ]
    device = next(model.parameters()).device
    model.eval()
    with torch.no_grad():
        model(torch.zeros(2, *image_shape, device=device))
    for handle in hooks:
        handle.remove()
    if unused := [name for name, number in uses.items() if not number]:
        raise ValueError(f"the model never calls the layer of {', '.join(unused)}")
    return uses


@dataclass(frozen=True)
class Architecture:
    """A network without values: its name, the shape of its images and its number of classes.

    `image_shape` is (channels, height, width).
    """

    name: str
    image_shape: tuple[int, ...]
    classes: int

    def build(self) -> nn.Module:
        """A new network on the CPU; raises ValueError if there is no model of this name."""
        return build_model(self.name, self.image_shape, self.classes)

    def draw(self, seed: int, masks: Masks | None = None) -> State:
        """Random initial values on the CPU: Gaussian Glorot weights, zero biases.

        Tensors that are not in a prunable layer keep the model's own initialisation. The result
        depends on the arguments only. Frankle & Carbin 2019, arXiv:1803.03635.

        Args:
            masks: Of whole units. The variance is then that of the network which has only the units
                that are left, since it depends on the numbers of inputs and outputs of a layer.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = self.build()
        generator = torch.Generator().manual_seed(seed)
        state = {name: value.detach() for name, value in model.state_dict().items()}
        for weight in prunable_weights(model):
            nn.init.xavier_normal_(state[weight], generator=generator)
            bias = weight.removesuffix("weight") + "bias"
            if bias in state:
                nn.init.zeros_(state[bias])
        if masks:
            small = cut(masks, live_units(masks, self.widths), self.widths)
            for name, mask in masks.items():
                state[name] *= sqrt(sum(mask.shape[:2]) / sum(small[name].shape[:2]))
        return state

    @cached_property
    def skeleton(self) -> nn.Module:
        """The network on the meta device, in evaluation mode: shapes without values."""
        with torch.device("meta"):
            return self.build().eval()

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Number of weights in each prunable tensor, from input to output layer."""
        names = prunable_weights(self.skeleton)
        return {name: self.skeleton.get_parameter(name).numel() for name in names}

    @property
    def prunable(self) -> tuple[str, ...]:
        """Names of the prunable tensors, from input to output layer."""
        return tuple(self.sizes)

    @cached_property
    def widths(self) -> tuple[Width, ...]:
        """Its units, from input to output; empty if the model does not state them."""
        widths = WIDTHS.get(self.name.partition("_")[0])
        return tuple(widths(self.skeleton)) if widths else ()

    @cached_property
    def parameters(self) -> int:
        """Number of all parameters, biases included."""
        return sum(value.numel() for value in self.skeleton.parameters())

    @cached_property
    def uses(self) -> dict[str, int]:
        """Multiply-adds per image for one weight of each prunable tensor."""
        with torch.random.fork_rng(devices=[]):  # building draws random values that are not used
            return weight_uses(self.build(), self.image_shape)
