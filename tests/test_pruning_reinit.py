from dataclasses import replace

import pytest
import torch

from models import Architecture
from pruning.reinit import REINITS, Memory, rewind


def state_of(value):
    return {"w": torch.full((2, 2), float(value)), "b": torch.full((2,), float(value))}


@pytest.fixture
def memory():
    masks = {"w": torch.tensor([[True, False], [True, True]])}
    return Memory(state_of(1), state_of(2), state_of(3), masks, draw=state_of)


@pytest.mark.parametrize("name", REINITS)
def test_every_method_returns_a_whole_state_and_changes_nothing(name, memory):
    start = REINITS[name].values(memory, 9)
    assert {key: value.shape for key, value in start.items()} == {"w": (2, 2), "b": (2,)}
    for kept, value in ((memory.initial, 1), (memory.rewound, 2), (memory.trained, 3)):
        assert all((tensor == value).all() for tensor in kept.values())


@pytest.mark.parametrize(
    ("name", "value"),
    [("keep", 3), ("random", 9), ("lottery", 1), ("rewind", 2), ("lr_rewind", 3)],
)
def test_each_method_starts_from_its_values_biases_included(name, value, memory):
    start = REINITS[name].values(memory, 9)
    assert (start["w"] == value).all()
    assert (start["b"] == value).all()


def test_rewind_without_early_values_is_refused(memory):
    with pytest.raises(ValueError, match="rewind needs the values"):
        rewind(replace(memory, rewound=None), 0)


def test_random_scaled_divides_by_the_square_root_of_the_density(memory):
    start = REINITS["random_scaled"].values(memory, 9)
    assert start["w"].tolist() == torch.full((2, 2), 9 * (4 / 3) ** 0.5).tolist()
    assert (start["b"] == 9).all()
    for density, factor in ((1, 1), (0.25, 2), (0, 2)):  # an emptied layer has nothing to scale
        masks = {"w": torch.arange(4).view(2, 2) < 4 * density}
        start = REINITS["random_scaled"].values(replace(memory, masks=masks), 9)
        assert (start["w"] == 9 * factor).all()


@pytest.mark.parametrize(("name", "share"), [("random_scaled", 1), ("random", 0.1)])
def test_random_scaled_gives_the_input_of_a_unit_the_variance_of_the_dense_network(name, share):
    """With independent inputs of variance 1, it is the sum of the squares of its weights."""
    architecture = Architecture("lenet_300_100", (1, 28, 28), 10)
    dense, chance = architecture.draw(1), torch.Generator().manual_seed(0)
    masks = {
        key: torch.rand(dense[key].shape, generator=chance) < 0.1 for key in architecture.prunable
    }
    start = REINITS[name].values(Memory(dense, None, dense, masks, architecture.draw), 2)
    for key in ("fc1.weight", "fc2.weight"):
        variance = (start[key] * masks[key]).square().sum(1).mean()
        assert variance / dense[key].square().sum(1).mean() == pytest.approx(share, rel=0.05)


@pytest.fixture
def drawn():
    """A layer of a thousand weights, half of them pruned."""
    generator = torch.Generator().manual_seed(0)
    initial = {"w": torch.randn(20, 50, generator=generator) / 3, "b": torch.ones(20)}
    masks = {"w": torch.rand(20, 50, generator=generator) < 0.5}
    return Memory(initial, None, state_of(3), masks, draw=state_of)


def test_sign_keeps_signs_at_the_deviation_of_the_layer(drawn):
    start = REINITS["sign"].values(drawn, 0)
    initial = drawn.initial["w"]
    assert torch.equal(start["w"].sign(), initial.sign())
    assert torch.allclose(start["w"].abs(), initial.std().expand(20, 50))
    assert torch.equal(start["b"], drawn.initial["b"])


def test_shuffle_permutes_the_first_values_of_the_survivors(drawn):
    start = REINITS["shuffle"].values(drawn, 0)
    mask, initial = drawn.masks["w"], drawn.initial["w"]
    assert torch.equal(start["w"][mask].sort().values, initial[mask].sort().values)
    assert (start["w"][mask] == initial[mask]).float().mean() < 0.05
    assert torch.equal(start["b"], drawn.initial["b"])
    assert not torch.equal(start["w"], REINITS["shuffle"].values(drawn, 1)["w"])
