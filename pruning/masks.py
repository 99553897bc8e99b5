"""Masks: which weights survive, and how many are pruned in each round.

A network is plain data: a `State` (a snapshot of its `state_dict`) and `Masks` (bool, one for each
prunable weight tensor, True = survives). Everything here is a pure function over these: nothing is
mutated, nothing is random. A *scope* says which tensors compete with each other (a *group*). To add
one: write it here, add a line to `SCOPES`.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

State = dict[str, Tensor]
Masks = dict[str, Tensor]
Scores = dict[str, Tensor]

MOST_ROUNDS = 1000
REMAINDER = 0.01  # share of a round's removals that the last round may add, to save one more round


@dataclass(frozen=True)
class Group:
    """Prunable tensors that compete with each other, and the share they lose in a full round."""

    names: tuple[str, ...]
    rate: float


def dense_masks(state: State, prunable: Iterable[str]) -> Masks:
    """Masks under which every weight of the tensors named in `prunable` survives."""
    return {name: torch.ones_like(state[name], dtype=torch.bool) for name in prunable}


def apply_masks(state: State, masks: Masks) -> State:
    """A copy of `state` in which every pruned weight is exactly +0.0."""
    return {
        name: torch.where(masks[name], value, torch.zeros_like(value))
        if name in masks
        else value.clone()
        for name, value in state.items()
    }


def layerwise(hidden: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Each layer loses the same share of its own weights."""
    return [(name,) for name in hidden]


def network_wide(hidden: tuple[str, ...]) -> list[tuple[str, ...]]:
    """All layers compete: the lowest scores of the whole network are pruned."""
    return [hidden] if hidden else []


# What competes: from the names of hidden tensors or widths (pruning.units), input first, to groups.
SCOPES: dict[str, Callable[[tuple[str, ...]], list[tuple[str, ...]]]] = {
    "layer": layerwise,
    "global": network_wide,
}


def drop_lowest(scores: Tensor, mask: Tensor, count: int) -> Tensor:
    """Prune exactly `count` survivors of `mask`, lowest scores first.

    Args:
        scores: Any shape; entries where `mask` is False are ignored.
        mask: Bool, shaped like `scores`; True marks a survivor.
        count: How many survivors to remove, from 0 to all of them.

    Returns:
        A new mask that never revives a weight. Ties are broken by flat index, lower first.

    Raises:
        ValueError: If `count` is out of range or a survivor's score is NaN.
    """
    survivors = mask.flatten().nonzero().squeeze(1)
    if not 0 <= count <= len(survivors):
        raise ValueError(f"count must be from 0 to the {len(survivors)} survivors, got {count}")
    candidates = scores.flatten()[survivors]
    check_scores(candidates)
    lowest = candidates.argsort(stable=True)[:count]
    kept = mask.flatten().clone()
    kept[survivors[lowest]] = False
    return kept.view_as(mask)


def check_scores(scores: Tensor) -> None:
    """Raise ValueError if a survivor's score is NaN."""
    if scores.isnan().any():
        raise ValueError("scores must not be NaN where the weight survives")


def prune(scores: Scores, masks: Masks, removals: Mapping[tuple[str, ...], int]) -> Masks:
    """Prune `removals[names]` weights in each group of tensors, lowest scores first.

    Raises:
        ValueError: If a group has fewer survivors than it must lose, or a survivor's score is NaN.
    """
    pruned = dict(masks)
    for names, count in removals.items():
        flat_scores = torch.cat([scores[name].flatten() for name in names])
        flat_mask = torch.cat([masks[name].flatten() for name in names])
        kept = drop_lowest(flat_scores, flat_mask, count)
        parts = torch.split(kept, [masks[name].numel() for name in names])
        pruned |= {name: part.view_as(masks[name]) for name, part in zip(names, parts, strict=True)}
    return pruned


def groups_of(
    names: tuple[str, ...], scope: str, rate: float, output_rate: float | None
) -> list[Group]:
    """The groups of a network whose last prunable tensor (`names[-1]`) is its output layer.

    Args:
        scope: A key of `SCOPES`.
        output_rate: If given, the output layer is a group of its own in every scope.
    """
    if output_rate is None:
        return [Group(each, rate) for each in SCOPES[scope](names)]
    inner = [Group(each, rate) for each in SCOPES[scope](names[:-1])]
    return [*inner, Group(names[-1:], output_rate)]


def plan_removals(
    sizes: Mapping[str, int], groups: list[Group], target_sparsity: float, rounds: int
) -> list[dict[tuple[str, ...], int]]:
    """How many weights each group loses in each round, fixed before anything is trained.

    A full round takes `round(rate * survivors)` weights from a group. With `rounds` = 0 there are
    as many rounds as `target_sparsity` needs. The last one removes exactly what it takes to
    reach `round(target_sparsity * all weights)`, in the proportions of a full round, and may take
    a remainder of up to `REMAINDER` of its own removals as well. Otherwise there are exactly
    `rounds` full rounds and the target is ignored.

    Args:
        sizes: Number of weights of each prunable tensor.

    Raises:
        ValueError: If a full round removes nothing before the plan is complete, if no weight
            survives, or if the target takes more than `MOST_ROUNDS` rounds.
    """
    survivors = {group.names: sum(sizes[name] for name in group.names) for group in groups}
    left = round(target_sparsity * sum(sizes.values()))
    plan: list[dict[tuple[str, ...], int]] = []
    while len(plan) < rounds if rounds else left > 0:
        full = {group.names: round(group.rate * survivors[group.names]) for group in groups}
        if not any(full.values()):
            raise ValueError(
                f"prune_rate is too small: round {len(plan) + 1} would remove no weight of the "
                f"{sum(survivors.values())} that survive ({_rates_text(groups, survivors)}); "
                "raise it (or output_prune_rate), or use fewer rounds or a lower target_sparsity"
            )
        last = not rounds and left <= (1 + REMAINDER) * sum(full.values())
        removals = _share_out(left, full) if last else full
        survivors = {names: survivors[names] - removals[names] for names in survivors}
        left -= sum(removals.values())
        plan.append(removals)
        if not any(survivors.values()):
            raise ValueError(
                f"prune_rate is too large: no weight would survive round {len(plan)}; lower it (or "
                "output_prune_rate), or use fewer rounds or a lower target_sparsity"
            )
        if len(plan) > MOST_ROUNDS:
            raise ValueError(
                f"target_sparsity must be reached within {MOST_ROUNDS} rounds, got "
                f"{target_sparsity}: raise prune_rate (and output_prune_rate) or lower the target"
            )
    return plan


def _rates_text(groups: list[Group], survivors: Mapping[tuple[str, ...], int]) -> str:
    """Each rate and what it applies to, such as "0.2 of 3, 0.001 of 90"."""
    left: dict[float, int] = {}
    for group in groups:
        left[group.rate] = left.get(group.rate, 0) + survivors[group.names]
    return ", ".join(f"{rate:g} of {count}" for rate, count in left.items())


def in_steps(
    removals: Mapping[tuple[str, ...], int], survivors: Mapping[tuple[str, ...], int], steps: int
) -> list[dict[tuple[str, ...], int]]:
    """Spread the removals of a round over steps that each prune about the same share.

    After step k of n a group has `survivors * (left / survivors) ** (k / n)` weights, rounded, as
    in Tanaka et al. 2020, arXiv:2006.05467; a group that loses everything keeps one weight until
    the last step. Steps that would remove nothing are skipped, so there may be fewer.

    Args:
        removals: How many weights each group loses in the round.
        survivors: How many weights each of these groups has before it.

    Returns:
        Removals for each step, with all groups in each; for every group they add up to `removals`.

    Raises:
        ValueError: If `steps` is less than 1, or a group has fewer survivors than it must lose.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    taken = {}
    for names, count in removals.items():
        before = survivors[names]
        if not 0 <= count <= before:
            raise ValueError(f"removals must be from 0 to the {before} survivors, got {count}")
        share = max(before - count, 1) / max(before, 1)
        kept = [round(before * share ** (k / steps)) for k in range(steps)] + [before - count]
        taken[names] = [more - less for more, less in pairwise(kept)]
    spread = [{names: taken[names][k] for names in taken} for k in range(steps)]
    return [step for step in spread if any(step.values())]


def _share_out(total: int, full: dict[tuple[str, ...], int]) -> dict[tuple[str, ...], int]:
    """Split `total` in the proportions of `full`: largest remainders round up."""
    whole = sum(full.values())
    shares = {names: total * count // whole for names, count in full.items()}
    by_remainder = sorted(full, key=lambda names: -(total * full[names] % whole))
    for names in by_remainder[: total - sum(shares.values())]:
        shares[names] += 1
    return shares
