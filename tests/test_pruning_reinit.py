import pytest
import torch

from pruning.reinit import REINITS, Memory, rewind


def state_of(value):
    return {"w": torch.full((2, 2), float(value)), "b": torch.full((2,), float(value))}


@pytest.fixture
def memory():
    return Memory(initial=state_of(1), rewound=state_of(2), trained=state_of(3), draw=state_of)


@pytest.mark.parametrize("name", REINITS)
def test_every_method_returns_a_whole_state_and_changes_nothing(name, memory):
    start = REINITS[name].values(memory, 9)
    assert {key: value.shape for key, value in start.items()} == {"w": (2, 2), "b": (2,)}
    for kept, value in ((memory.initial, 1), (memory.rewound, 2), (memory.trained, 3)):
        assert all((tensor == value).all() for tensor in kept.values())


@pytest.mark.parametrize(
    ("name", "value"), [("keep", 3), ("random", 9), ("lottery", 1), ("rewind", 2)]
)
def test_each_method_starts_from_its_values_biases_included(name, value, memory):
    start = REINITS[name].values(memory, 9)
    assert (start["w"] == value).all()
    assert (start["b"] == value).all()


def test_rewind_without_early_values_is_refused(memory):
    with pytest.raises(ValueError, match="rewind needs the values"):
        rewind(Memory(memory.initial, None, memory.trained, memory.draw), 0)
