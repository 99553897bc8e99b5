"""Units: neurons and channels, each pruned with all weights that compute it and that read it.

Pruning units instead of single weights is structured pruning: Li et al. 2017, arXiv:1608.08710. A
model states which weights belong together as `Width`s; a width is a set of units of one kind, such
as the neurons of a layer. Masks stay masks: under `spread`, all weights of a unit survive, or none.
"""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, prod

import torch
from torch import Tensor

from pruning.masks import Masks, Scores, State, check_scores

GRANULARITIES = ("weight", "unit")  # what is pruned at once
TARGETS = ("weights", "macs")  # what is counted: weights, or multiply-adds for one image

Kept = dict[str, Tensor]  # by name of a width: bool [count], True = survives


@dataclass(frozen=True)
class Part:
    """Where the units of a width lie along one dimension of a tensor.

    The dimension has `tiles * count * block` entries, in this order: a max-feature-map has two
    tiles, and a flattened channel is a block of as many entries as it has positions.
    """

    tensor: str
    dim: int
    tiles: int = 1
    block: int = 1

    def entries(self, kept: Tensor) -> Tensor:
        """Which entries of the dimension belong to units that are `kept`, bool [count]."""
        return kept[None, :, None].expand(self.tiles, -1, self.block).flatten()

    def sums(self, values: Tensor) -> Tensor:
        """Values shaped like the tensor, summed over each unit: [count]."""
        whole = values.movedim(self.dim, 0).flatten(1).sum(1)
        return whole.view(self.tiles, -1, self.block).sum((0, 2))


@dataclass(frozen=True)
class Width:
    """Units that can be pruned, by what computes them and what reads them.

    Attributes:
        name: That of the layer which computes them.
        count: How many there are.
        made: Weights and biases. Where several layers add to the same units, all of them.
        read: Weights.
    """

    name: str
    count: int
    made: tuple[Part, ...]
    read: tuple[Part, ...]

    def weights(self, masks: Masks) -> list[Part]:
        """The parts that are in prunable tensors."""
        return [part for part in (*self.made, *self.read) if part.tensor in masks]


Widths = Sequence[Width]


def units_of(masks: Masks, widths: Widths) -> Kept:
    """Which units survive: those that a surviving weight reads."""
    readers = {
        width.name: torch.stack([part.sums(masks[part.tensor]) for part in width.read])
        for width in widths
    }
    return {name: counts.any(0) for name, counts in readers.items()}


def live_units(masks: Masks, widths: Widths) -> Kept:
    """Which units can change an output: those that an output reads, directly or through others.

    Fewer than `units_of` where a surviving weight makes a unit that nothing reads.
    """
    kept = units_of(masks, widths)
    while True:
        before, masks = kept, spread(kept, masks, widths)
        kept = units_of(masks, widths)
        if all(kept[name].equal(units) for name, units in before.items()):
            return kept


def at_least_one(units: Tensor) -> Tensor:
    """Bool [count], the first one true if none is: no layer is without units."""
    if units.any():
        return units
    return torch.arange(len(units), device=units.device) == 0


def spread(kept: Kept, masks: Masks, widths: Widths) -> Masks:
    """`masks` without the weights of the units that are not `kept`."""
    result = dict(masks)
    for width in widths:
        for part in width.weights(masks):
            mask = result[part.tensor]
            shape = [-1 if dim == part.dim else 1 for dim in range(mask.ndim)]
            result[part.tensor] = mask & part.entries(kept[width.name]).view(shape)
    return result


def cost(masks: Masks, prices: Mapping[str, int]) -> int:
    """What the survivors cost, such as multiply-adds; `prices` are those of one weight each."""
    return sum(prices[name] * int(mask.sum()) for name, mask in masks.items())


def smallest_cost(sizes: Mapping[str, int], prices: Mapping[str, int], widths: Widths) -> int:
    """What is left with one unit in each width.

    Args:
        sizes: Number of weights of each prunable tensor.
    """
    counts: dict[str, list[int]] = {name: [] for name in sizes}
    for width in widths:
        for part in (*width.made, *width.read):
            if part.tensor in counts:
                counts[part.tensor].append(width.count)
    return sum(prices[name] * (size // prod(counts[name])) for name, size in sizes.items())


def narrowed(masks: Masks, widths: Widths, weights: int) -> Masks:
    """The smallest network with at least `weights` weights that has the same share of each width.

    A width of n units keeps the first ceil(share * n). One unit of each stays, even if that is more
    than `weights`. The result is the small dense network of Zhu & Gupta 2017, arXiv:1710.01878.

    Args:
        masks: Those of the whole network, dense.
        weights: At most as many as it has.
    """
    counts = {width.name: width.count for width in widths}
    device = next(iter(masks.values())).device
    every = {Fraction(kept, n) for n in counts.values() for kept in range(1, n + 1)}

    def with_share(share: Fraction) -> Masks:
        kept = {
            name: torch.arange(n, device=device) < ceil(share * n) for name, n in counts.items()
        }
        return spread(kept, masks, widths)

    shares, prices = sorted(every), dict.fromkeys(masks, 1)
    enough = bisect_left(shares, weights, key=lambda share: cost(with_share(share), prices))
    return with_share(shares[enough])


def prune_units(
    scores: Scores,
    masks: Masks,
    widths: Widths,
    groups: Sequence[tuple[str, ...]],
    prices: Mapping[str, int],
    limit: int,
) -> Masks:
    """Prune as few units as it takes for the survivors to cost at most `limit`.

    The score of a unit is the sum over its surviving weights, divided by their cost; the lowest are
    pruned first. Where there are several groups, each loses about the same share of its units. The
    best unit of each width stays.

    Args:
        scores: Keys and shapes of `masks`.
        groups: Names of widths that compete with each other.
        prices: What one weight of each tensor costs.

    Returns:
        New masks that never revive a weight. Ties are broken by width and number, first ones first.

    Raises:
        ValueError: If one unit in each width costs more, or a survivor's score is NaN.
    """
    kept = units_of(masks, widths)
    order = _order(scores, masks, widths, groups, prices, kept)

    def without(count: int) -> Masks:
        left = {name: units.clone() for name, units in kept.items()}
        for name, unit in order[:count]:
            left[name][unit] = False
        return spread(left, masks, widths)

    costs = range(len(order) + 1)
    count = bisect_left(costs, -limit, key=lambda count: -cost(without(count), prices))
    if count == len(costs):
        raise ValueError(
            f"one unit in each layer costs {cost(without(len(order)), prices)}, more than {limit}"
        )
    return without(count)


def _order(
    scores: Scores,
    masks: Masks,
    widths: Widths,
    groups: Sequence[tuple[str, ...]],
    prices: Mapping[str, int],
    kept: Kept,
) -> list[tuple[str, int]]:
    """The units that may be pruned, first ones first: name of the width, and number."""
    values = {width.name: _values(scores, masks, width, prices) for width in widths}
    ranked = []
    for group in groups:
        units = [(name, int(unit)) for name in group for unit in kept[name].nonzero()]
        units.sort(key=lambda unit: float(values[unit[0]][unit[1]]))
        ranked += [
            ((rank + 0.5) / len(units), name, unit) for rank, (name, unit) in enumerate(units)
        ]
    ranked.sort(key=lambda each: each[0])
    best = {name: unit for _, name, unit in ranked}  # the last one of each width
    return [(name, unit) for _, name, unit in ranked if best[name] != unit]


def _values(scores: Scores, masks: Masks, width: Width, prices: Mapping[str, int]) -> Tensor:
    """The score of each unit per cost, [count] in float64."""
    total, price = torch.zeros(()), torch.zeros(())
    for part in width.weights(masks):
        mask = masks[part.tensor]
        check_scores(scores[part.tensor][mask])
        total = total + part.sums(torch.where(mask, scores[part.tensor].double(), 0.0))
        price = price + prices[part.tensor] * part.sums(mask)
    return (total / price).cpu()


def cut(tensors: State, kept: Kept, widths: Widths) -> State:
    """The tensors of the network that has only the units that are `kept`."""
    places = _places(kept, widths)
    return {name: _cut(value, places.get(name, [])) for name, value in tensors.items()}


def paste(small: State, whole: State, kept: Kept, widths: Widths) -> State:
    """A copy of `whole` with the values of `small` for the units that are `kept`: undoes `cut`."""
    places = _places(kept, widths)
    return {name: _paste(small[name], whole[name], places.get(name, [])) for name in whole}


Places = list[tuple[int, Tensor]]  # dimensions of a tensor, and which of their entries are kept


def _places(kept: Kept, widths: Widths) -> dict[str, Places]:
    places: dict[str, Places] = {}
    for width in widths:
        for part in (*width.made, *width.read):
            entries = part.entries(kept[width.name]).nonzero().squeeze(1)
            places.setdefault(part.tensor, []).append((part.dim, entries))
    return places


def _cut(value: Tensor, places: Places) -> Tensor:
    for dim, entries in places:
        value = value.index_select(dim, entries.to(value.device))
    return value


def _paste(small: Tensor, whole: Tensor, places: Places) -> Tensor:
    if not places:
        return small.clone()
    (dim, entries), *rest = places
    entries = entries.to(whole.device)
    return whole.index_copy(dim, entries, _paste(small, whole.index_select(dim, entries), rest))
