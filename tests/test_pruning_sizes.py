from math import isnan

import pytest
import torch

from pruning import sizes


@pytest.fixture
def network():
    masks = {
        "conv": torch.zeros(2, 1, 2, 2, dtype=torch.bool),
        "fc": torch.ones(1, 4, dtype=torch.bool),
    }
    masks["conv"][0] = True
    state = {"conv": masks["conv"].float(), "fc": masks["fc"].float(), "bias": torch.ones(3)}
    return state, masks


def test_counts_by_hand(network):
    _, masks = network
    assert sizes.remaining_weights(masks) == 8
    assert sizes.sparsity(masks) == pytest.approx(4 / 12)  # over prunable weights alone
    assert sizes.compression_ratio(15, masks) == 15 / 11  # biases count
    assert sizes.theoretical_speedup(masks, {"conv": 9, "fc": 1}) == (8 * 9 + 4) / (4 * 9 + 4)


def test_a_network_without_weights_has_no_speed(network):
    _, masks = network
    nothing = {name: torch.zeros_like(mask) for name, mask in masks.items()}
    assert isnan(sizes.theoretical_speedup(nothing, {"conv": 9, "fc": 1}))
    assert sizes.sparsity(nothing) == 1.0
