import pytest
import torch

from pruning.controls import CONTROLS, Control, as_pruned, unchanged
from pruning.masks import drop_lowest

CHOOSING = [name for name, control in CONTROLS.items() if control.network == "pruned"]
SIZES = {"a": (10, 12), "b": (5, 2, 3, 3), "c": (4, 10)}


def within_of(pruned):
    return {name: torch.ones_like(mask) for name, mask in pruned.items()}


@pytest.fixture
def masks():
    """What a criterion left, within what was there before; layer c has lost everything."""
    generator = torch.Generator().manual_seed(0)
    within = {name: torch.rand(size, generator=generator) < 0.7 for name, size in SIZES.items()}
    pruned = {
        name: mask & (torch.rand(mask.shape, generator=generator) < 0.5)
        for name, mask in within.items()
    }
    pruned["c"] = torch.zeros_like(pruned["c"])
    return pruned, within


def same(first, second):
    return all(torch.equal(first[name], second[name]) for name in SIZES)


@pytest.mark.parametrize("name", CHOOSING)
def test_every_control_leaves_as_many_survivors_in_each_layer(name, masks):
    pruned, within = masks
    result = CONTROLS[name].masks(pruned, within, 7)
    assert list(result) == list(pruned)
    for key, mask in result.items():
        assert mask.dtype == torch.bool
        assert mask.shape == SIZES[key]
        assert mask.sum() == pruned[key].sum()


@pytest.mark.parametrize("name", CHOOSING)
def test_every_control_depends_on_its_arguments_alone_and_changes_none(name, masks):
    before = [{key: mask.clone() for key, mask in part.items()} for part in masks]
    turned = [dict(reversed(part.items())) for part in masks]
    first = CONTROLS[name].masks(*masks, 7)
    torch.manual_seed(1)  # no part of it
    assert same(first, CONTROLS[name].masks(*masks, 7))
    assert same(first, CONTROLS[name].masks(*turned, 7))
    assert all(same(part, copy) for part, copy in zip(masks, before, strict=True))


@pytest.mark.parametrize("name", CHOOSING)
def test_a_nested_control_revives_no_weight_and_another_does(name, masks):
    pruned, within = masks
    result = CONTROLS[name].masks(pruned, within, 7)
    revived = sum(int((result[key] & ~within[key]).sum()) for key in SIZES)
    assert (revived == 0) == CONTROLS[name].nested


@pytest.mark.parametrize("name", CHOOSING)
def test_every_control_keeps_the_layers_and_shapes_of_scores(name):
    scores = {"b": torch.tensor([[1.0, -2.0]]), "a": torch.tensor([0.5])}
    result = CONTROLS[name].scores(scores)
    assert {key: value.shape for key, value in result.items()} == {"b": (1, 2), "a": (1,)}
    assert scores["b"].tolist() == [[1.0, -2.0]]


def test_control_none_changes_nothing(masks):
    scores = {"w": torch.tensor([1.0, 2.0])}
    assert CONTROLS["none"].scores(scores)["w"].tolist() == [1.0, 2.0]
    assert same(CONTROLS["none"].masks(*masks, 7), masks[0])


def test_a_control_that_trains_another_network_spoils_no_choice():
    """It makes none, so it could not; `tests/test_rounds_controls.py` tests its networks."""
    others = {name: control for name, control in CONTROLS.items() if name not in CHOOSING}
    assert others == {
        "small_dense": Control(network="small"),
        "unpruned": Control(network="whole"),
    }
    assert Control().scores is unchanged
    assert Control().masks is as_pruned


def test_inverted_prunes_the_largest_first():
    scores = {"w": torch.tensor([3.0, 1.0, 2.0, 0.0])}
    mask = torch.ones(4, dtype=torch.bool)
    kept = drop_lowest(CONTROLS["inverted"].scores(scores)["w"], mask, 2)
    assert kept.tolist() == [False, True, False, True]


@pytest.mark.parametrize("name", ["shuffled_mask", "random_mask"])
def test_drawn_masks_depend_on_the_seed_and_differ_from_the_criterions(name, masks):
    first, second = (CONTROLS[name].masks(*masks, seed) for seed in (7, 8))
    for key in ("a", "b"):
        assert not torch.equal(first[key], second[key])
        assert not torch.equal(first[key], masks[0][key])


def test_shuffled_mask_uses_every_place_that_is_left_and_no_other():
    pruned = {"w": torch.tensor([True, False, False, False, False])}
    within = {"w": torch.tensor([True, False, True, True, False])}
    shuffle = CONTROLS["shuffled_mask"].masks
    places = {int(shuffle(pruned, within, seed)["w"].nonzero()) for seed in range(30)}
    assert places == {0, 2, 3}


def test_shuffled_mask_with_nothing_pruned_before_uses_the_whole_layer():
    pruned = {"w": torch.tensor([True, False, False, False])}
    shuffle = CONTROLS["shuffled_mask"].masks
    places = {int(shuffle(pruned, within_of(pruned), seed)["w"].nonzero()) for seed in range(30)}
    assert places == {0, 1, 2, 3}


@pytest.mark.parametrize("name", ["shuffled_mask", "random_mask"])
def test_nested_masks_stay_nested_under_one_seed(name, masks):
    smaller, larger = masks
    whole = within_of(larger)
    inner, outer = (CONTROLS[name].masks(part, whole, 7) for part in (smaller, larger))
    assert not any((inner[key] & ~outer[key]).any() for key in SIZES)


def test_shuffled_mask_refuses_survivors_out_of_place():
    pruned = {"w": torch.tensor([True, True])}
    with pytest.raises(AssertionError, match="w survives outside"):
        CONTROLS["shuffled_mask"].masks(pruned, {"w": torch.tensor([True, False])}, 0)
