import pytest
import torch

from pruning.criteria import CRITERIA, magnitude, random


@pytest.fixture
def snapshots():
    generator = torch.Generator().manual_seed(0)
    shapes = {"a.weight": (4, 3), "a.bias": (4,), "b.weight": (2, 4)}
    initial, trained = (
        {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
        for _ in range(2)
    )
    masks = {
        name: torch.rand(shapes[name], generator=generator) > 0.3 for name in shapes if "w" in name
    }
    return initial, trained, masks


@pytest.mark.parametrize("name", CRITERIA)
def test_every_criterion_scores_every_prunable_weight_and_is_pure(name, snapshots):
    before = [{key: value.clone() for key, value in part.items()} for part in snapshots]
    first, again = CRITERIA[name](*snapshots, 7), CRITERIA[name](*snapshots, 7)
    masks = snapshots[2]
    assert first.keys() == masks.keys()
    for key, mask in masks.items():
        assert first[key].shape == mask.shape
        assert not first[key][mask].isnan().any()
        assert torch.equal(first[key], again[key])
    for part, copy in zip(snapshots, before, strict=True):
        assert all(torch.equal(part[key], copy[key]) for key in copy)


def test_magnitude_is_the_absolute_trained_value(snapshots):
    initial, trained, masks = snapshots
    trained["b.weight"] = torch.tensor([[-3.0, 1.0, 0.0, 2.0]] * 2)
    scores = magnitude(initial, trained, masks, 0)
    assert scores["b.weight"].tolist() == [[3.0, 1.0, 0.0, 2.0]] * 2


def test_random_depends_on_its_seed_alone(snapshots):
    initial, trained, masks = snapshots
    assert not torch.equal(random(*snapshots, 1)["a.weight"], random(*snapshots, 2)["a.weight"])
    assert torch.equal(
        random(initial, trained, masks, 1)["a.weight"],
        random(trained, initial, masks, 1)["a.weight"],
    )
