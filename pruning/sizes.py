"""Sizes: a pruned network in weights, in parameters and in multiply-adds.

Compression and speed-up are both reported, because pruning methods rank differently by them
(Blalock et al. 2020, arXiv:2003.03033). Both are those of an ideal implementation.
"""

from collections.abc import Mapping

from pruning.masks import Masks


def remaining_weights(masks: Masks) -> int:
    """Number of prunable weights that survive."""
    return sum(int(mask.sum()) for mask in masks.values())


def sparsity(masks: Masks) -> float:
    """Share of the prunable weights that are pruned, in [0, 1]."""
    return 1 - remaining_weights(masks) / sum(mask.numel() for mask in masks.values())


def compression_ratio(parameters: int, masks: Masks) -> float:
    """All parameters of the network over those that survive, at least 1.

    Args:
        parameters: Number of parameters of the dense network, biases included.
    """
    pruned = sum(mask.numel() for mask in masks.values()) - remaining_weights(masks)
    return parameters / (parameters - pruned)


def theoretical_speedup(masks: Masks, uses: Mapping[str, int]) -> float:
    """Multiply-adds of the dense network over those of the surviving weights, at least 1.

    Args:
        uses: Multiply-adds of one weight of each tensor for one input (1 in a linear layer, the
            number of output positions in a convolution).

    Returns:
        The ratio; NaN when no weight survives, since there is nothing left to compute.
    """
    dense = sum(uses[name] * mask.numel() for name, mask in masks.items())
    surviving = sum(uses[name] * int(mask.sum()) for name, mask in masks.items())
    return dense / surviving if surviving else float("nan")
