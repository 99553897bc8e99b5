"""Criteria: how important is each weight? The lowest scores are pruned first.

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
    """What a criterion scores by.

    Attributes:
        start: The values from which the training of this network began: those of its last round.
        trained: The network to prune.
        masks: Its masks.
        loss_gradient: From a masked state to the gradient of the mean training loss; keys of
            `masks`, shapes of the weights.
        flow_gradient: The same for the sum of the logits, for one image of ones, in the network
            with the absolute value of every parameter.
    """

    start: State
    trained: State
    masks: Masks
    loss_gradient: Gradient
    flow_gradient: Gradient


def magnitude(evidence: Evidence, seed: int) -> Scores:
    """Keep the largest weights after training: |w_trained|. Frankle & Carbin, arXiv:1803.03635."""
    del seed
    return {name: evidence.trained[name].abs() for name in evidence.masks}


def random(evidence: Evidence, seed: int) -> Scores:
    """Keep random weights: the baseline to beat. Blalock et al. 2020, arXiv:2003.03033."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.rand(mask.shape, generator=generator).to(evidence.trained[name].device)
        for name, mask in sorted(evidence.masks.items())  # the order in a checkpoint may differ
    }


def magnitude_increase(evidence: Evidence, seed: int) -> Scores:
    """Keep weights that grew: |w_trained| - |w_start|. Zhou et al. 2019, arXiv:1905.01067."""
    del seed
    start, trained = evidence.start, evidence.trained
    return {name: trained[name].abs() - start[name].abs() for name in evidence.masks}


def movement(evidence: Evidence, seed: int) -> Scores:
    """Keep weights that moved far: |w_trained - w_start|. Zhou et al. 2019, arXiv:1905.01067."""
    del seed
    start, trained = evidence.start, evidence.trained
    return {name: (trained[name] - start[name]).abs() for name in evidence.masks}


def large_init(evidence: Evidence, seed: int) -> Scores:
    """Keep the largest weights before training: |w_start|. Zhou et al. 2019, arXiv:1905.01067."""
    del seed
    return {name: evidence.start[name].abs() for name in evidence.masks}


def gradient(evidence: Evidence, seed: int) -> Scores:
    """Keep weights that the loss depends on after training: |w_trained * d loss / d w_trained|.

    "Gradient magnitude pruning" of Blalock et al. 2020, arXiv:2003.03033, over all training images
    rather than one batch.
    """
    del seed
    return _saliency(evidence.trained, evidence.masks, evidence.loss_gradient)


def snip(evidence: Evidence, seed: int) -> Scores:
    """Keep weights that the loss depends on before training: |w_start * d loss / d w_start|.

    Lee et al. 2019, arXiv:1810.02340, over all training images rather than one batch. The gradient
    is taken under the current masks, so several rounds are the iterative SNIP of de Jorge et al.
    2020, arXiv:2006.09081.
    """
    del seed
    return _saliency(evidence.start, evidence.masks, evidence.loss_gradient)


def synflow(evidence: Evidence, seed: int) -> Scores:
    """Keep weights that carry much of the flow through the network before training.

    |w_start| times the gradient of the flow at |w_start|, under the current masks; independent
    of the data. Tanaka et al. 2020, arXiv:2006.05467: recomputed many times in a round, it does not
    empty a layer while others have weights left.
    """
    del seed
    return _saliency(evidence.start, evidence.masks, evidence.flow_gradient)


def _saliency(state: State, masks: Masks, gradient: Gradient) -> Scores:
    """|weight * gradient|: the change of the function without the weight, to first order."""
    masked = apply_masks(state, masks)
    slopes = gradient(masked)
    return {name: (masked[name] * slopes[name]).abs() for name in masks}


@dataclass(frozen=True)
class Criterion:
    """A way to score.

    Attributes:
        scores: The scores.
        steps: Number of steps in which a round removes its weights. Scores are recomputed before
            each, under the current masks (`pruning.masks.in_steps`).
        scope: Which layers compete, unless the user says so; a key of `pruning.masks.SCOPES`.
    """

    scores: Callable[[Evidence, int], Scores]
    steps: int = 1
    scope: str = "layer"


CRITERIA: dict[str, Criterion] = {
    "magnitude": Criterion(magnitude),
    "random": Criterion(random),
    "magnitude_increase": Criterion(magnitude_increase),
    "movement": Criterion(movement),
    "large_init": Criterion(large_init),
    "gradient": Criterion(gradient),
    "snip": Criterion(snip, scope="global"),  # as in their papers
    "synflow": Criterion(synflow, steps=100, scope="global"),
}
