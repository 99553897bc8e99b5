"""Plan: how many weights each round of an experiment removes, known before it begins."""

from typing import Protocol

from experiments.config.experiment import Resolved
from models import Architecture
from pruning.masks import groups_of, plan_removals

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


def plan_rounds(config: Resolved, data: DataShape) -> Plan:
    """How many weights each round removes from each group; one entry for each pruning round.

    Raises:
        ValueError: As `pruning.masks.plan_removals`.
    """
    sizes = Architecture(config.model, data.image_shape, data.classes).sizes
    split_off = config.output_prune_rate != config.prune_rate
    output_rate = config.output_prune_rate if split_off else None
    groups = groups_of(tuple(sizes), config.scope, config.prune_rate, output_rate)
    return plan_removals(sizes, groups, config.target_sparsity, config.rounds)
