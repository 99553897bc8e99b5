"""Controls: does it matter which weights were chosen, or only how many in each layer?

A control spoils the choice of a criterion in a known way, and leaves the number of survivors as it
was: exactly so in every layer for a control of masks. A result that outlives it did not come from
the choice (Su et al. 2020, arXiv:2009.11094; Frankle et al. 2021, arXiv:2009.08576). A control may
work before the choice, on scores, or after it, on masks::

    scores(scores) -> scores
    masks(pruned, within, seed) -> masks

`pruned` is what the criterion left, `within` where survivors may go: the masks before the round, or
dense ones, under which the whole layer is open. `pruned` never survives outside `within`.

To add one: write it here, add a line to `CONTROLS`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pruning.masks import Masks, Scores


def unchanged(scores: Scores) -> Scores:
    """The scores as the criterion gave them."""
    return scores


def as_pruned(pruned: Masks, within: Masks, seed: int) -> Masks:
    """The masks as the criterion left them."""
    del within, seed
    return pruned


def inverted(scores: Scores) -> Scores:
    """The largest scores go first. Frankle et al. 2021, arXiv:2009.08576."""
    return {name: -value for name, value in scores.items()}


def shuffled_mask(pruned: Masks, within: Masks, seed: int) -> Masks:
    """Survivors change places within their layer, among the places that `within` has left.

    Where `within` is dense, this is the random shuffling of Frankle et al. 2021, arXiv:2009.08576,
    and the layerwise rearranging of Su et al. 2020, arXiv:2009.11094. Masks that lie in each other
    still do after it, given the same `within` and seed.
    """
    generator = torch.Generator().manual_seed(seed)
    shuffled = {}
    for name, mask in sorted(pruned.items()):  # a checkpoint may hold them in another order
        assert not (mask & ~within[name]).any(), f"{name} survives outside of within"
        count = int(mask.sum())
        shuffled[name] = _draw(within[name], count, generator)
    return pruned | shuffled  # in the order that `pruned` has


def random_mask(pruned: Masks, within: Masks, seed: int) -> Masks:
    """As many survivors in each layer, drawn from the whole layer: pruned weights may return.

    The random tickets of Su et al. 2020, arXiv:2009.11094, but for the density of each layer, which
    is the criterion's here.
    """
    del within
    generator = torch.Generator().manual_seed(seed)
    drawn = {
        name: _draw(torch.ones_like(mask), int(mask.sum()), generator)
        for name, mask in sorted(pruned.items())  # a checkpoint may hold them in another order
    }
    return pruned | drawn  # in the order that `pruned` has


def _draw(within: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """A mask of `count` survivors, any of those in `within` equally likely."""
    places = within.flatten().nonzero().squeeze(1)
    # Drawn on the CPU, so that a GPU gives the same masks.
    chosen = torch.randperm(len(places), generator=generator)[:count]
    mask = torch.zeros_like(within).flatten()
    mask[places[chosen.to(places.device)]] = True
    return mask.view_as(within)


@dataclass(frozen=True)
class Control:
    """A way to spoil a choice; where not `nested`, pruned weights may come back."""

    scores: Callable[[Scores], Scores] = unchanged
    masks: Callable[[Masks, Masks, int], Masks] = as_pruned
    nested: bool = True


CONTROLS: dict[str, Control] = {
    "none": Control(),
    "inverted": Control(scores=inverted),
    "shuffled_mask": Control(masks=shuffled_mask),
    "random_mask": Control(masks=random_mask, nested=False),
}
