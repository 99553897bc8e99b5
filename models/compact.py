"""Compact networks: the smallest dense network with the outputs of a pruned one.

Units without inputs are constants; they go into the biases of what reads them. Units that no output
reads go too. A fully connected network that reads at most half of the pixels gets only these.
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from models import Architecture, linear_layers
from pruning.masks import Masks, State, apply_masks
from pruning.units import Width, at_least_one, cut, live_units, spread, units_of

SELECTED = 0.5  # share of the inputs; picking more takes longer than multiplying all of them


@dataclass(frozen=True)
class Compact:
    """A smaller network.

    Attributes:
        state: Its values.
        masks: Of `state`: which weights survive, of those between units that are left.
        inputs: The values of a flattened image that it reads, int64; None: all of them.
        units: Numbers of units before and after, by name of the layer that computes them.
    """

    state: State
    masks: Masks
    inputs: Tensor | None
    units: dict[str, tuple[int, int]]


def compact(architecture: Architecture, state: State, masks: Masks, multiple: int = 1) -> Compact:
    """The smallest dense network with the same outputs, up to the order of sums.

    At least one unit of each layer stays.

    Args:
        state: On the CPU; pruned weights count as zero.
        masks: Of any kind, single weights or whole units.
        multiple: A layer keeps units without effect until the number of its units is a multiple of
            this, or it has all of them: convolutions of 8-bit integers need multiples of 8 to be
            fast.

    Raises:
        ValueError: If the model does not state its units.
    """
    widths = architecture.widths
    if not widths:
        raise ValueError(f"{architecture.name} does not state its units: it has no compact network")
    state, masks = remove_dead(architecture, state, masks)
    kept = {
        name: _rounded_up(at_least_one(units), multiple)
        for name, units in live_units(masks, widths).items()
    }
    state, masks = cut(state, kept, widths), cut(masks, kept, widths)
    inputs = None
    if layers := linear_layers(architecture.skeleton):
        first = f"{layers[0]}.weight"
        read = at_least_one(masks[first].any(0))
        if read.sum() <= SELECTED * len(read):
            inputs = read.nonzero().squeeze(1)
            state[first] = state[first][:, inputs].contiguous()
            masks[first] = masks[first][:, inputs].contiguous()
    units = {width.name: (width.count, int(kept[width.name].sum())) for width in widths}
    return Compact(state, masks, inputs, units)


def _rounded_up(units: Tensor, multiple: int) -> Tensor:
    """Bool [count], with some more units true so that their number is a multiple, if it can be."""
    missing = -int(units.sum()) % multiple
    more = (~units).nonzero()[:missing, 0]
    return units.index_fill(0, more, True)


def remove_dead(architecture: Architecture, state: State, masks: Masks) -> tuple[State, Masks]:
    """The same network without the weights that cannot change how an output depends on an image.

    A unit without inputs has a constant value, which becomes part of the biases of what reads it.
    Two kinds stay: one that a padded convolution reads, unless its value is zero, since the padding
    is not constant; and one that a layer without bias reads. Units that no output reads lose their
    weights, and their biases become zero.

    Args:
        state: On the CPU; pruned weights count as zero.

    Returns:
        State and masks, of the same shapes.
    """
    widths = architecture.widths
    state, masks = _fold_constants(architecture, state, masks)
    live = live_units(masks, widths)
    masks = spread(live, masks, widths)
    for width in widths:
        for part in width.made:
            if part.tensor not in masks:
                state[part.tensor] = state[part.tensor] * part.entries(live[width.name])
    return apply_masks(state, masks), masks


def _fold_constants(architecture: Architecture, state: State, masks: Masks) -> tuple[State, Masks]:
    state, masks = apply_masks(state, masks), {name: mask.clone() for name, mask in masks.items()}
    folded = True
    while folded:
        folded = False
        inputs = _layer_inputs(architecture, state)
        for width in architecture.widths:
            units = units_of(masks, [width])[width.name] & ~_has_inputs(width, masks)
            for part in width.read:
                if not _takes_constants(part.tensor, state):
                    values = inputs[part.tensor][None]  # [1, inputs], as a weight has them
                    units = units & (part.sums(values != 0) == 0)
            for part in width.read if units.any() else ():
                folded = True
                entries = part.entries(units)
                weights = state[part.tensor][:, entries].double()
                weights = weights.reshape(*weights.shape[:2], -1).sum(2)  # over positions
                shares = weights @ inputs[part.tensor][entries]
                bias = _bias(part.tensor)
                if bias in state:
                    state[bias] = (state[bias].double() + shares).to(state[bias].dtype)
                masks[part.tensor][:, entries] = False
        state = apply_masks(state, masks)
    return state, masks


def _has_inputs(width: Width, masks: Masks) -> Tensor:
    weights = [part for part in width.made if part.tensor in masks]
    return torch.stack([part.sums(masks[part.tensor]) for part in weights]).any(0)


def _takes_constants(weight: str, state: State) -> bool:
    return _bias(weight) in state and state[weight][0, 0].numel() == 1


def _bias(weight: str) -> str:
    return weight.removesuffix("weight") + "bias"


@torch.no_grad()
def _layer_inputs(architecture: Architecture, state: State) -> dict[str, Tensor]:
    """What each layer reads at one position for a black image, [inputs] in float64."""
    model = architecture.build().double().eval()
    model.load_state_dict(state)
    found: dict[str, Tensor] = {}

    def note(name: str, layer: nn.Module, given: tuple[Tensor]) -> None:
        found[name] = given[0].flatten(2)[0, :, 0] if given[0].ndim > 2 else given[0][0]

    for name in architecture.prunable:
        layer = model.get_submodule(name.removesuffix(".weight"))
        layer.register_forward_pre_hook(partial(note, name))
    model(torch.zeros(1, *architecture.image_shape, dtype=torch.float64))
    return found
