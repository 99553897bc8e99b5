"""Units: which weights belong together, derived from the networks, and how they are pruned."""

import pytest
import torch

from models import Architecture, prunable_weights
from pruning.masks import SCOPES, dense_masks
from pruning.units import (
    Part,
    Width,
    cost,
    cut,
    live_units,
    narrowed,
    paste,
    prune_units,
    smallest_cost,
    spread,
    units_of,
)

NAMES = ("lenet_6_5_4", "lightcnn_9", "lightcnn_29", "lightcnn_29_v2")


def outputs_of(model, image_shape):
    """The shape of each layer's output for one image."""
    shapes = {}

    def remember(name):
        def hook(layer, inputs, output):
            shapes[name] = output.shape[1:]

        return hook

    for name in prunable_weights(model):
        layer = name.removesuffix(".weight")
        model.get_submodule(layer).register_forward_hook(remember(layer))
    model.eval()(torch.zeros(1, *image_shape))
    return shapes


def replaced(shape, changed, seen, name):
    """A layer that returns ones, whatever it reads, but 2 in output i of image i if `changed`."""

    def forward(values):
        seen[name] = values.flatten(2).sum(2) if values.ndim > 2 else values
        result = torch.ones(len(values), *shape)
        if changed:
            result[range(shape[0]), range(shape[0])] = 2
        return result

    return forward


def couplings(model, image_shape):
    """For each output of each layer, the inputs of layers that change when only it changes.

    What a layer returns does not depend on what it reads, so a change reaches exactly those that
    read it, through whatever the model does between its layers.
    """
    shapes = outputs_of(model, image_shape)
    for changed, (outputs, *_) in shapes.items():
        seen = {}
        for name, shape in shapes.items():
            layer = model.get_submodule(name)
            layer.forward = replaced(shape, name == changed, seen, name)
        model(torch.zeros(outputs + 1, *image_shape))  # in the last image nothing is changed
        for name, values in seen.items():
            for output, place in (values[:-1] != values[-1]).nonzero().tolist():
                yield (changed, output), (name, place)


def components(pairs):
    """Outputs and inputs of layers that are connected, as sets."""
    unit_of = {}
    for output, place in pairs:
        merged = set().union(*(unit_of.get(end, {end}) for end in ((0, output), (1, place))))
        unit_of |= dict.fromkeys(merged, merged)
    return {frozenset(unit) for unit in unit_of.values()}


def stated(widths, prunable):
    for width in widths:
        for unit in range(width.count):
            kept = torch.arange(width.count) == unit
            yield frozenset(
                (side, (part.tensor.removesuffix(".weight"), place))
                for side, parts in enumerate((width.made, width.read))
                for part in parts
                if part.tensor in prunable
                for place in part.entries(kept).nonzero().squeeze(1).tolist()
            )


@pytest.mark.parametrize("name", NAMES)
def test_the_stated_units_are_those_of_the_network(name):
    architecture = Architecture(name, (1, 17, 17), 3)
    with torch.no_grad():
        pairs = list(couplings(architecture.build(), architecture.image_shape))
    known = list(stated(architecture.widths, architecture.prunable))
    assert set(known) == components(pairs)
    assert len(known) == len(set(known)) == sum(width.count for width in architecture.widths)


LENET = Architecture("lenet_6_5_4", (1, 3, 3), 3)
LIGHTCNN = Architecture("lightcnn_29", (1, 17, 17), 3)
ONE = dict.fromkeys(LENET.sizes, 1)


def dense(architecture):
    return dense_masks(architecture.draw(0), architecture.prunable)


def some_units(architecture, share=0.5, seed=0):
    """Masks without about half of the units."""
    draw = torch.Generator().manual_seed(seed)
    kept = {
        width.name: torch.rand(width.count, generator=draw) < share for width in architecture.widths
    }
    return kept, spread(kept, dense(architecture), architecture.widths)


@pytest.mark.parametrize("name", NAMES)
def test_a_unit_is_pruned_with_all_that_makes_and_reads_it(name):
    architecture = Architecture(name, (1, 17, 17), 3)
    kept, masks = some_units(architecture)
    found = units_of(masks, architecture.widths)
    assert all(found[name].equal(units) for name, units in kept.items())
    assert all(
        spread(found, dense(architecture), architecture.widths)[name].equal(mask)
        for name, mask in masks.items()
    )


def test_the_neurons_of_a_lenet_by_hand():
    kept = {
        "fc1": torch.tensor([True, False, True, True, True, True]),
        "fc2": torch.tensor([True, True, True, True, False]),
        "fc3": torch.tensor([False, True, True, True]),
    }
    masks = spread(kept, dense(LENET), LENET.widths)
    assert masks["fc1.weight"].all(1).tolist() == kept["fc1"].tolist()
    assert not masks["fc1.weight"][1].any()
    assert masks["fc2.weight"].equal(kept["fc2"][:, None] & kept["fc1"])
    assert masks["fc3.weight"].equal(kept["fc3"][:, None] & kept["fc2"])
    assert masks["fc4.weight"].equal(kept["fc3"].expand(3, -1))


def test_a_unit_that_only_dead_units_read_is_dead():
    masks = dense(LENET)
    masks["fc4.weight"][:, 1] = False  # nothing reads unit 1 of fc3
    masks["fc3.weight"][[0, 2, 3], 2] = False  # and only that one reads unit 2 of fc2
    live = live_units(masks, LENET.widths)
    assert units_of(masks, LENET.widths)["fc2"].all()
    assert live["fc1"].all()
    assert live["fc2"].tolist() == [True, True, False, True, True]
    assert live["fc3"].tolist() == [True, False, True, True]


@pytest.mark.parametrize("architecture", [LENET, LIGHTCNN], ids=lambda each: each.name)
def test_what_is_cut_out_can_be_pasted_back(architecture):
    kept, masks = some_units(architecture)
    state = architecture.draw(1)
    small = cut(state, kept, architecture.widths)
    assert sum(value.numel() for value in cut(masks, kept, architecture.widths).values()) == cost(
        masks, dict.fromkeys(masks, 1)
    )
    whole = {name: torch.full_like(value, 7) for name, value in state.items()}
    pasted = paste(small, whole, kept, architecture.widths)
    for name, value in state.items():
        changed = pasted[name] != 7
        assert pasted[name][changed].equal(value[changed])
        if name in masks:
            assert changed.equal(masks[name])
    assert all((value == 7).all() for value in whole.values())


def scores_of(architecture, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return {
        name: torch.rand(mask.shape, generator=draw) for name, mask in dense(architecture).items()
    }


def test_a_narrowed_network_is_the_smallest_of_its_shape_with_enough_weights():
    """Two hidden layers of 4 and 2 units, between 3 inputs and 2 outputs: 12 + 8 + 4 weights."""
    masks = {
        name: torch.ones(shape, dtype=torch.bool)
        for name, shape in {"a": (4, 3), "b": (2, 4), "c": (2, 2)}.items()
    }
    widths = [
        Width("a", 4, made=(Part("a", 0),), read=(Part("b", 1),)),
        Width("b", 2, made=(Part("b", 0),), read=(Part("c", 1),)),
    ]
    sizes = {1: (1, 1), 6: (1, 1), 7: (2, 1), 10: (2, 1), 11: (3, 2), 19: (3, 2), 20: (4, 2)}
    for weights, (first, second) in (sizes | {24: (4, 2)}).items():
        small = narrowed(masks, widths, weights)
        a, b = torch.arange(4) < first, torch.arange(2) < second
        assert small["a"].equal(a[:, None].expand(4, 3))
        assert small["b"].equal(b[:, None] & a)
        assert small["c"].equal(b.expand(2, 2))


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("share", [0.9, 0.5, 0.2])
def test_as_few_units_are_pruned_as_the_limit_needs(scope, share):
    for architecture in (LENET, Architecture("lightcnn_9", (1, 17, 17), 3)):
        scores, masks, widths = scores_of(architecture), dense(architecture), architecture.widths
        groups = SCOPES[scope](tuple(width.name for width in widths))
        limit = int(share * cost(masks, architecture.uses))
        pruned = prune_units(scores, masks, widths, groups, architecture.uses, limit)
        assert cost(pruned, architecture.uses) <= limit
        kept = units_of(pruned, widths)
        assert all(units.any() for units in kept.values())
        # With any one of the pruned units more, the survivors would cost too much, or the same.
        again = prune_units(scores, pruned, widths, groups, architecture.uses, limit)
        assert all(again[name].equal(mask) for name, mask in pruned.items())
        whole = spread(kept, masks, widths)
        assert all(whole[name].equal(mask) for name, mask in pruned.items())


def test_the_lowest_units_go_first_each_group_at_the_same_pace():
    masks, widths = dense(LENET), LENET.widths
    scores = {name: torch.ones(mask.shape) for name, mask in masks.items()}
    for layer, unit, score in [("fc1", 2, 0.1), ("fc1", 4, 0.2), ("fc2", 3, 0.3), ("fc3", 0, 0.4)]:
        scores[f"{layer}.weight"][unit] = score
    everything = cost(masks, ONE)

    def left(groups, limit):
        kept = units_of(prune_units(scores, masks, widths, groups, ONE, limit), widths)
        return {name: (~units).nonzero().squeeze(1).tolist() for name, units in kept.items()}

    apart, together = [("fc1",), ("fc2",), ("fc3",)], [("fc1", "fc2", "fc3")]
    assert left(apart, everything) == {"fc1": [], "fc2": [], "fc3": []}
    assert left(apart, everything - 1) == {"fc1": [2], "fc2": [], "fc3": []}
    assert left(apart, everything - 15) == {"fc1": [2], "fc2": [3], "fc3": []}
    assert left(apart, everything - 24) == {"fc1": [2], "fc2": [3], "fc3": [0]}
    assert left(together, everything - 15) == {"fc1": [2, 4], "fc2": [], "fc3": []}


def test_a_unit_competes_by_its_score_for_each_thing_it_costs():
    """The neurons of the first layer have the highest scores, but cost most where `dear`."""
    masks, widths = dense(LENET), LENET.widths
    scores = {name: torch.ones(mask.shape) for name, mask in masks.items()}
    scores["fc1.weight"] *= 2
    dear = ONE | {"fc1.weight": 3}
    for prices, first in ((ONE, "fc2"), (dear, "fc1")):
        limit = cost(masks, prices) - 1
        pruned = prune_units(scores, masks, widths, [("fc1", "fc2", "fc3")], prices, limit)
        kept = units_of(pruned, widths)
        assert [name for name, units in kept.items() if not units.all()] == [first]


def test_one_unit_of_each_layer_stays():
    masks, widths, groups = dense(LENET), LENET.widths, [("fc1", "fc2", "fc3")]
    least = smallest_cost(LENET.sizes, ONE, widths)
    assert least == 9 + 1 + 1 + 3
    pruned = prune_units(scores_of(LENET), masks, widths, groups, ONE, least)
    assert cost(pruned, ONE) == least
    with pytest.raises(ValueError, match="one unit in each layer costs 14, more than 13"):
        prune_units(scores_of(LENET), masks, widths, groups, ONE, least - 1)


def test_a_score_that_is_nan_is_an_error():
    scores = scores_of(LENET)
    scores["fc2.weight"][0, 0] = float("nan")
    with pytest.raises(ValueError, match="must not be NaN"):
        prune_units(scores, dense(LENET), LENET.widths, [("fc1",)], ONE, 10)


def test_the_smallest_network_has_one_unit_of_each_width():
    for name in NAMES:
        architecture = Architecture(name, (1, 17, 17), 3)
        kept = {width.name: torch.arange(width.count) == 0 for width in architecture.widths}
        masks = spread(kept, dense(architecture), architecture.widths)
        for prices in (architecture.uses, dict.fromkeys(masks, 1)):
            least = smallest_cost(architecture.sizes, prices, architecture.widths)
            assert least == cost(masks, prices)
