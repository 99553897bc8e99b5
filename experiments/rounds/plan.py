"""Plan: how many weights each round of an experiment removes, known before it begins."""

from collections.abc import Mapping
from math import floor
from typing import Protocol

from experiments.config.experiment import Resolved
from models import WIDTHS, Architecture
from pruning.controls import CONTROLS
from pruning.masks import Group, groups_of, plan_removals
from pruning.units import smallest_cost

Removals = dict[tuple[str, ...], int]
Plan = list[Removals]


class DataShape(Protocol):
    """Data, or an object that knows as much about them as a network's size depends on."""

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Channels, height and width."""

    @property
    def classes(self) -> int:
        """Number of classes."""


def prices_of(config: Resolved, architecture: Architecture) -> dict[str, int]:
    """What a weight of each prunable tensor counts for in the plan."""
    return architecture.uses if config.target == "macs" else dict.fromkeys(architecture.sizes, 1)


def plan_rounds(config: Resolved, data: DataShape) -> Plan:
    """How many weights each round removes from each group; one entry for each pruning round.

    Where whole units are pruned, all layers are one group. With target=macs, numbers of
    multiply-adds take the place of numbers of weights.

    Raises:
        ValueError: As `pruning.masks.plan_removals`; if the model does not state its units, or one
            unit in each layer is more than the target.
    """
    architecture = Architecture(config.model, data.image_shape, data.classes)
    sizes = architecture.sizes
    if CONTROLS[config.control].network == "small":
        _check_units(architecture, f"control={config.control}")
    if config.granularity == "unit":
        _check_units(architecture, "granularity=unit")
        return _plan_units(config, architecture)
    split_off = config.output_prune_rate != config.prune_rate
    output_rate = config.output_prune_rate if split_off else None
    groups = groups_of(tuple(sizes), config.scope, config.prune_rate, output_rate)
    return plan_removals(sizes, groups, config.target_sparsity, config.rounds)


def left_after(plan: Plan, sizes: Mapping[str, int], prices: Mapping[str, int]) -> Removals:
    """What each group is planned to have after these rounds."""
    return {
        names: sum(prices[name] * sizes[name] for name in names)
        - sum(removals[names] for removals in plan)
        for names in plan[-1]
    }


def _check_units(architecture: Architecture, parameter: str) -> None:
    if not architecture.widths:
        known = ", ".join(WIDTHS)
        raise ValueError(
            f"{parameter} needs a model that states its units ({known}), got {architecture.name}"
        )


def _plan_units(config: Resolved, architecture: Architecture) -> Plan:
    prices = prices_of(config, architecture)
    costs = {name: prices[name] * size for name, size in architecture.sizes.items()}
    everything = Group(tuple(costs), config.prune_rate)
    plan = plan_removals(costs, [everything], config.target_sparsity, config.rounds)
    whole, removed = sum(costs.values()), sum(sum(removals.values()) for removals in plan)
    least = smallest_cost(architecture.sizes, prices, architecture.widths)
    if whole - removed < least:
        most = floor(1000 * (1 - least / whole)) / 1000
        raise ValueError(
            f"with granularity=unit, at most {most:.1%} of the {config.target} of {config.model} "
            f"can be pruned, since one unit of each layer stays; the last round would reach "
            f"{removed / whole:.2%}: lower target_sparsity or rounds"
        )
    return plan
