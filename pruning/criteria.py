"""Criteria: how much does each weight matter? The lowest scores are pruned first.

Every criterion is a pure function of two snapshots of one network::

    criterion(initial, trained, masks, seed) -> scores

Scores have the keys of `masks` and the shapes of the weights; scores of pruned weights are
ignored. To add one: write it here, add a line to `CRITERIA`.
"""

from collections.abc import Callable

import torch

from pruning.masks import Masks, Scores, State

Criterion = Callable[[State, State, Masks, int], Scores]


def magnitude(initial: State, trained: State, masks: Masks, seed: int) -> Scores:
    """Keep weights that end up large: |w_trained|. Frankle & Carbin 2019, arXiv:1803.03635."""
    del initial, seed
    return {name: trained[name].abs() for name in masks}


def random(initial: State, trained: State, masks: Masks, seed: int) -> Scores:
    """Keep weights by lot: the control to beat. Blalock et al. 2020, arXiv:2003.03033."""
    del initial
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.rand(mask.shape, generator=generator).to(trained[name].device)
        for name, mask in sorted(masks.items())  # a checkpoint may hold them in another order
    }


CRITERIA: dict[str, Criterion] = {
    "magnitude": magnitude,
    "random": random,
}
