"""Controls: does it matter which weights are pruned, or only how many, or that any are?

Most controls spoil the choice of a criterion in a known way, and keep the number of survivors; one
that changes masks keeps it in every layer. A result that survives the control did not come from the
choice (Su et al. 2020, arXiv:2009.11094; Frankle et al. 2021, arXiv:2009.08576). Such a control
works before the choice, on scores, or after it, on masks::

    scores(scores) -> scores
    masks(pruned, within, seed) -> masks

`pruned` are the masks that the criterion chose, `within` those that bound where survivors may go:
the masks before the round, or dense ones. `pruned` has no survivor outside `within`.

Others train another network in the place of the pruned one (`Control.network`), without a choice.

To add one: write it here, add a line to `CONTROLS`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pruning.masks import Masks, Scores


def unchanged(scores: Scores) -> Scores:
    """The scores of the criterion."""
    return scores


def as_pruned(pruned: Masks, within: Masks, seed: int) -> Masks:
    """The masks that the criterion chose."""
    del within, seed
    return pruned


def inverted(scores: Scores) -> Scores:
    """Prune the largest scores first. Frankle et al. 2021, arXiv:2009.08576."""
    return {name: -value for name, value in scores.items()}


def shuffled_mask(pruned: Masks, within: Masks, seed: int) -> Masks:
    """Move survivors to random places of their layer, among those that survive in `within`.

    Where `within` is dense, this is the random shuffling of Frankle et al. 2021, arXiv:2009.08576,
    and the layerwise rearranging of Su et al. 2020, arXiv:2009.11094. Nested masks stay nested,
    given the same `within` and seed.
    """
    generator = torch.Generator().manual_seed(seed)
    shuffled = {}
    for name, mask in sorted(pruned.items()):  # the order in a checkpoint may differ
        assert not (mask & ~within[name]).any(), f"{name} survives outside of within"
        count = int(mask.sum())
        shuffled[name] = _draw(within[name], count, generator)
    return pruned | shuffled  # in the order of `pruned`


def random_mask(pruned: Masks, within: Masks, seed: int) -> Masks:
    """Draw as many survivors in each layer from the whole layer: pruned weights may return.

    The random tickets of Su et al. 2020, arXiv:2009.11094, except that the density of each layer is
    the criterion's.
    """
    del within
    generator = torch.Generator().manual_seed(seed)
    drawn = {
        name: _draw(torch.ones_like(mask), int(mask.sum()), generator)
        for name, mask in sorted(pruned.items())  # the order in a checkpoint may differ
    }
    return pruned | drawn  # in the order of `pruned`


def _draw(within: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """A mask of `count` survivors, drawn uniformly from those of `within`."""
    places = within.flatten().nonzero().squeeze(1)
    # Drawn on the CPU, so that the masks are the same on a GPU.
    chosen = torch.randperm(len(places), generator=generator)[:count]
    mask = torch.zeros_like(within).flatten()
    mask[places[chosen.to(places.device)]] = True
    return mask.view_as(within)


@dataclass(frozen=True)
class Control:
    """What a round does instead of pruning by a criterion.

    Attributes:
        scores: Spoils the scores before the choice.
        masks: Spoils the masks after it.
        nested: Whether pruned weights stay pruned.
        network: Which network a round trains: "pruned", what the (spoilt) choice leaves; "small", a
            dense one with as many weights (`pruning.units.narrowed`); "whole", with all weights.
    """

    scores: Callable[[Scores], Scores] = unchanged
    masks: Callable[[Masks, Masks, int], Masks] = as_pruned
    nested: bool = True
    network: Literal["pruned", "small", "whole"] = "pruned"


CONTROLS: dict[str, Control] = {
    "none": Control(),
    "inverted": Control(scores=inverted),
    "shuffled_mask": Control(masks=shuffled_mask),
    "random_mask": Control(masks=random_mask, nested=False),
    "small_dense": Control(network="small"),  # Zhu & Gupta 2017, arXiv:1710.01878
    "unpruned": Control(network="whole"),
}
