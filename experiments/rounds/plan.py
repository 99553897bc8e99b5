"""Removals: how many weights each round of an experiment takes, known before it begins."""

from typing import Protocol

import torch

from experiments.config.experiment import Resolved
from models import build_model, prunable_weights
from pruning.masks import groups_of, plan_removals

Removals = dict[tuple[str, ...], int]
Plan = list[Removals]


class DataShape(Protocol):
    """Data, or whoever knows as much about them as a network's size depends on."""

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Channels, height and width."""

    @property
    def classes(self) -> int:
        """How many there are."""


def plan_rounds(config: Resolved, data: DataShape) -> Plan:
    """How many weights each round removes where; its length is the number of pruning rounds.

    Raises:
        ValueError: As `pruning.masks.plan_removals`.
    """
    with torch.device("meta"):  # only the sizes matter
        model = build_model(config.model, data.image_shape, data.classes)
    names = prunable_weights(model)
    counts = {name: model.get_parameter(name).numel() for name in names}
    split_off = config.output_prune_rate != config.prune_rate
    output_rate = config.output_prune_rate if split_off else None
    groups = groups_of(names, config.scope, config.prune_rate, output_rate)
    return plan_removals(counts, groups, config.target_sparsity, config.rounds)
