"""Criteria: how much does each weight matter? The lowest scores are pruned first.

Every criterion is a pure function of what is known about one network::

    criterion(evidence, seed) -> scores

Scores have the keys of `evidence.masks` and the shapes of the weights; scores of pruned weights are
ignored. To add one: write it here, add a line to `CRITERIA`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from pruning.masks import Masks, Scores, State, apply_masks

Gradient = Callable[[State], State]


@dataclass(frozen=True)
class Evidence:
    """What a criterion can judge by.

    `initial` is the dense network before training, whatever the round starts from; `trained` the
    network that is to be pruned, `masks` what is left of it.

    The two gradients take a masked state and have the keys of `masks` and the shapes of the
    weights: `loss_gradient` that of the mean training loss, `flow_gradient` that of the sum of the
    logits, for one image of ones, in the network whose every parameter is replaced by its absolute
    value.
    """

    initial: State
    trained: State
    masks: Masks
    loss_gradient: Gradient
    flow_gradient: Gradient


def magnitude(evidence: Evidence, seed: int) -> Scores:
    """Keep weights that end up large: |w_trained|. Frankle & Carbin 2019, arXiv:1803.03635."""
    del seed
    return {name: evidence.trained[name].abs() for name in evidence.masks}


def random(evidence: Evidence, seed: int) -> Scores:
    """Keep weights by lot: the control to beat. Blalock et al. 2020, arXiv:2003.03033."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.rand(mask.shape, generator=generator).to(evidence.trained[name].device)
        for name, mask in sorted(evidence.masks.items())  # a checkpoint may order them otherwise
    }


def magnitude_increase(evidence: Evidence, seed: int) -> Scores:
    """Keep weights that grew: |w_trained| - |w_initial|. Zhou et al. 2019, arXiv:1905.01067."""
    del seed
    initial, trained = evidence.initial, evidence.trained
    return {name: trained[name].abs() - initial[name].abs() for name in evidence.masks}


def movement(evidence: Evidence, seed: int) -> Scores:
    """Keep weights that moved far: |w_trained - w_initial|. Zhou et al. 2019, arXiv:1905.01067."""
    del seed
    initial, trained = evidence.initial, evidence.trained
    return {name: (trained[name] - initial[name]).abs() for name in evidence.masks}


def large_init(evidence: Evidence, seed: int) -> Scores:
    """Keep weights that began large: |w_initial|. Zhou et al. 2019, arXiv:1905.01067."""
    del seed
    return {name: evidence.initial[name].abs() for name in evidence.masks}


def gradient(evidence: Evidence, seed: int) -> Scores:
    """Keep weights that the loss hangs on after training: |w_trained * d loss / d w_trained|.

    "Gradient magnitude pruning" of Blalock et al. 2020, arXiv:2003.03033, over all training images
    rather than one batch.
    """
    del seed
    return _stakes(evidence.trained, evidence.masks, evidence.loss_gradient)


def snip(evidence: Evidence, seed: int) -> Scores:
    """Keep weights that the loss hangs on before training: |w_initial * d loss / d w_initial|.

    Lee et al. 2019, arXiv:1810.02340, over all training images rather than one batch. It is taken
    under the masks so far, so that several rounds are the iterative SNIP of de Jorge et al. 2020,
    arXiv:2006.09081.
    """
    del seed
    return _stakes(evidence.initial, evidence.masks, evidence.loss_gradient)


def synflow(evidence: Evidence, seed: int) -> Scores:
    """Keep weights through which much flows before training, whatever the data.

    |w_initial| times the gradient of the flow at |w_initial|, under the masks so far. Tanaka et al.
    2020, arXiv:2006.05467: taken anew many times a round, it empties no layer while another has
    weights to spare.
    """
    del seed
    return _stakes(evidence.initial, evidence.masks, evidence.flow_gradient)


def _stakes(state: State, masks: Masks, gradient: Gradient) -> Scores:
    """|weight * gradient|: to first order, what is at stake with each weight."""
    masked = apply_masks(state, masks)
    slopes = gradient(masked)
    return {name: (masked[name] * slopes[name]).abs() for name in masks}


@dataclass(frozen=True)
class Criterion:
    """A way to score, and in how many steps a round removes its weights.

    Scores are taken anew before each step, under the masks that the steps before it left
    (`pruning.masks.in_steps`).
    """

    scores: Callable[[Evidence, int], Scores]
    steps: int = 1


CRITERIA: dict[str, Criterion] = {
    "magnitude": Criterion(magnitude),
    "random": Criterion(random),
    "magnitude_increase": Criterion(magnitude_increase),
    "movement": Criterion(movement),
    "large_init": Criterion(large_init),
    "gradient": Criterion(gradient),
    "snip": Criterion(snip),
    "synflow": Criterion(synflow, steps=100),  # as in its paper
}
