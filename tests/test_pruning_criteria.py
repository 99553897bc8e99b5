from dataclasses import replace

import pytest
import torch

from pruning.criteria import CRITERIA, Evidence
from pruning.masks import apply_masks

SHAPES = {"a.weight": (4, 3), "a.bias": (4,), "b.weight": (2, 4)}


def slope(masks, factor):
    """A gradient that is `factor` times the state, for masked states only."""

    def gradient(state):
        assert state.keys() == SHAPES.keys()
        assert not any(state[name][~mask].any() for name, mask in masks.items())
        return {name: factor * state[name] for name in masks}

    return gradient


@pytest.fixture
def evidence():
    generator = torch.Generator().manual_seed(0)
    start, trained = (
        {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
        for _ in range(2)
    )
    masks = {
        name: torch.rand(SHAPES[name], generator=generator) > 0.3
        for name in SHAPES
        if name.endswith("weight")
    }
    trained = apply_masks(trained, masks)
    return Evidence(start, trained, masks, slope(masks, -1), slope(masks, 2))


def backwards(tensors):
    return dict(reversed(tensors.items()))


def same(first, second):
    return first.keys() == second.keys() and all(
        torch.equal(first[name], second[name]) for name in first
    )


@pytest.mark.parametrize("name", CRITERIA)
def test_every_criterion_scores_every_prunable_weight(name, evidence):
    scores = CRITERIA[name].scores(evidence, 7)
    assert scores.keys() == evidence.masks.keys()
    for key, mask in evidence.masks.items():
        assert scores[key].shape == mask.shape
        assert scores[key][mask].isfinite().all()
        assert len(scores[key][mask].unique()) > 1


@pytest.mark.parametrize("name", CRITERIA)
def test_every_criterion_depends_on_its_arguments_alone_and_changes_none(name, evidence):
    parts = (evidence.start, evidence.trained, evidence.masks)
    copies = [{key: value.clone() for key, value in part.items()} for part in parts]
    reordered = replace(
        evidence,
        start=backwards(evidence.start),
        trained=backwards(evidence.trained),
        masks=backwards(evidence.masks),
    )
    first = CRITERIA[name].scores(evidence, 7)
    assert same(first, CRITERIA[name].scores(evidence, 7))
    assert same(first, CRITERIA[name].scores(reordered, 7))
    assert all(same(part, copy) for part, copy in zip(parts, copies, strict=True))


@pytest.mark.parametrize(
    ("name", "scores"),
    [
        ("magnitude", [3.0, 1.0, 0.5]),
        ("magnitude_increase", [2.0, -3.0, 0.25]),
        ("movement", [4.0, 5.0, 0.25]),
        ("large_init", [1.0, 4.0, 0.25]),
        ("gradient", [9.0, 1.0, 0.25]),  # |w * -w|
        ("snip", [1.0, 16.0, 0.0625]),
        ("synflow", [2.0, 32.0, 0.125]),  # |w * 2 w|
    ],
)
def test_each_criterion_by_hand(name, scores):
    masks = {"w": torch.tensor([True, True, True])}
    start = {"w": torch.tensor([1.0, 4.0, 0.25])}
    trained = {"w": torch.tensor([-3.0, -1.0, 0.5])}
    evidence = Evidence(
        start,
        trained,
        masks,
        loss_gradient=lambda state: {"w": -state["w"]},
        flow_gradient=lambda state: {"w": 2 * state["w"]},
    )
    assert CRITERIA[name].scores(evidence, 0)["w"].tolist() == scores


@pytest.mark.parametrize("name", ["snip", "synflow"])
def test_criteria_before_training_see_the_masks_but_not_the_training(name, evidence):
    untrained = replace(evidence, trained=evidence.start)
    first = CRITERIA[name].scores(evidence, 0)
    assert same(first, CRITERIA[name].scores(untrained, 0))
    assert not any(first[key][~mask].any() for key, mask in evidence.masks.items())


def test_random_depends_on_its_seed_and_the_shapes_alone(evidence):
    random = CRITERIA["random"].scores
    others = replace(evidence, start=evidence.trained, trained=evidence.start)
    assert same(random(evidence, 1), random(others, 1))
    assert not torch.equal(random(evidence, 1)["a.weight"], random(evidence, 2)["a.weight"])


def test_only_synflow_scores_repeatedly_within_a_round():
    assert {name for name, criterion in CRITERIA.items() if criterion.steps > 1} == {"synflow"}
    assert CRITERIA["synflow"].steps == 100
