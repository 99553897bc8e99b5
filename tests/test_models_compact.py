"""Compact networks: the same outputs from fewer units."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models import Architecture
from models.compact import compact, remove_dead
from models.serving import NetworkSpec
from pruning.masks import apply_masks, dense_masks
from pruning.units import cut, spread

LIGHTCNNS = ("lightcnn_9", "lightcnn_29", "lightcnn_29_v2")


def spec_of(architecture, **changes):
    names = tuple(map(str, range(architecture.classes)))
    return NetworkSpec(architecture.name, architecture.image_shape, names, 0.3, 0.7, **changes)


def drawn(architecture, seed):
    """Values of which none is zero: biases too decide what a constant is."""
    generator = torch.Generator().manual_seed(seed)
    state = architecture.draw(seed)
    return {
        name: torch.randn(value.shape, generator=generator) * 0.3 if value.ndim == 1 else value
        for name, value in state.items()
    }


def check(architecture, state, masks, tolerance=1e-5):
    """The compact network has the outputs of the masked one."""
    state = apply_masks(state, masks)
    small = compact(architecture, state, masks)
    inputs = None if small.inputs is None else tuple(small.inputs.tolist())
    images = torch.rand(3, *architecture.image_shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = spec_of(architecture).build(state)(images)
        got = spec_of(architecture, compact=True, inputs=inputs).build(small.state)(images)
    assert torch.allclose(
        got, expected, rtol=0, atol=tolerance * max(1, float(expected.abs().max()))
    )
    for name, mask in small.masks.items():
        assert mask.shape == small.state[name].shape
        assert not small.state[name][~mask].any()
    return small


@pytest.mark.parametrize("density", [0.02, 0.5])
def test_the_l2_norm_is_that_of_all_pixels_whatever_the_network_reads(density):
    architecture = Architecture("lenet_7_5", (1, 5, 5), 3)
    state, draw = drawn(architecture, 0), torch.Generator().manual_seed(0)
    masks = dense_masks(state, architecture.prunable)
    masks["fc1.weight"] = torch.rand(7, 25, generator=draw) < density
    small = compact(architecture, state, masks)
    assert (small.inputs is None) == (density == 0.5)
    inputs = None if small.inputs is None else tuple(small.inputs.tolist())
    spec = replace(spec_of(architecture), mean=0, std=1, l2=True)
    images = torch.rand(4, 1, 5, 5, generator=draw)
    images[3] = 0
    with torch.no_grad():
        expected = spec.build(apply_masks(state, masks))(images)
        found = replace(spec, compact=True, inputs=inputs).build(small.state)(images)
        norms = images.flatten(1).norm(dim=1)[:3].view(3, 1, 1, 1)
        plain = spec.build(apply_masks(state, masks)).network(images[:3] / norms)
    assert torch.allclose(found, expected, atol=1e-5)
    assert torch.allclose(expected[:3], plain, atol=1e-6)


@given(st.integers(0, 2**31), st.integers(0, 40), st.integers(0, 100), st.integers(0, 100))
def test_any_masks_of_a_lenet(seed, first, second, third):
    architecture = Architecture("lenet_7_5", (1, 3, 4), 3)
    state = drawn(architecture, seed)
    generator = torch.Generator().manual_seed(seed)
    shares = dict(zip(architecture.prunable, (first, second, third), strict=True))
    masks = {
        name: torch.rand(state[name].shape, generator=generator) * 100 < share
        for name, share in shares.items()
    }
    check(architecture, state, masks)


def test_every_unit_that_is_left_is_needed():
    """By hand: unit 0 has no inputs, 1 no readers, 2 is read by a unit that has none, 3 is used."""
    architecture = Architecture("lenet_4_2", (1, 1, 3), 2)
    state = drawn(architecture, 0)
    state["fc1.bias"] = torch.tensor([0.75, 0.1, 0.1, 0.1])
    masks = {
        "fc1.weight": torch.tensor([[0, 0, 0], [1, 1, 0], [1, 0, 1], [0, 1, 1]]).bool(),
        "fc2.weight": torch.tensor([[1, 0, 1, 0], [1, 0, 0, 1]]).bool(),
        "fc3.weight": torch.tensor([[0, 1], [0, 1]]).bool(),
    }
    small = check(architecture, state, masks)
    assert small.units == {"fc1": (4, 1), "fc2": (2, 1)}
    assert small.inputs is None  # picking two of three pixels would not pay
    bias = state["fc2.bias"][1] + 0.75 * state["fc2.weight"][1, 0]
    assert small.state["fc2.bias"].tolist() == pytest.approx([bias.item()])
    assert sum(mask.numel() for mask in small.masks.values()) == 3 + 1 + 2


def test_a_network_that_reads_few_pixels_gets_only_these():
    architecture = Architecture("lenet_3", (1, 2, 3), 2)
    state = drawn(architecture, 0)
    masks = dense_masks(state, architecture.prunable)
    masks["fc1.weight"] = masks["fc1.weight"] & torch.tensor([0, 1, 0, 0, 1, 1]).bool()
    small = check(architecture, state, masks)
    assert small.inputs.tolist() == [1, 4, 5]
    assert small.state["fc1.weight"].shape == (3, 3)


def test_a_layer_without_survivors_leaves_a_constant_network():
    architecture = Architecture("lenet_4_3", (1, 2, 2), 2)
    state = drawn(architecture, 5)
    for empty in architecture.prunable:
        masks = dense_masks(state, architecture.prunable)
        masks[empty] = torch.zeros_like(masks[empty])
        small = check(architecture, state, masks)
        assert all(after == 1 for _, after in small.units.values())


@pytest.mark.parametrize("name", LIGHTCNNS)
@pytest.mark.parametrize("share", [0.0005, 0.003])
def test_single_weights_of_a_lightcnn(name, share):
    """So few that many channels have no inputs or no readers."""
    architecture = Architecture(name, (1, 33, 40), 5)
    state = drawn(architecture, 2)
    generator = torch.Generator().manual_seed(2)
    masks = {
        weight: torch.rand(state[weight].shape, generator=generator) < share
        for weight in architecture.prunable[:-1]
    }
    masks[architecture.prunable[-1]] = torch.ones_like(state[architecture.prunable[-1]]).bool()
    small = check(architecture, state, masks)
    assert sum(after < before for before, after in small.units.values()) >= 3


@pytest.mark.parametrize("name", LIGHTCNNS)
def test_whole_units_of_a_lightcnn(name):
    architecture = Architecture(name, (1, 32, 32), 5)
    state, widths = drawn(architecture, 3), architecture.widths
    kept = {width.name: torch.arange(width.count) % 3 == 1 for width in widths}
    masks = spread(kept, dense_masks(state, architecture.prunable), widths)
    small = check(architecture, state, masks)
    assert small.units == {
        width.name: (width.count, int(kept[width.name].sum())) for width in widths
    }
    assert all(value.equal(small.state[key]) for key, value in cut(state, kept, widths).items())


def test_a_constant_channel_stays_where_a_padded_convolution_reads_it():
    """At the border the padding is zero, so its share is not the same everywhere."""
    architecture = Architecture("lightcnn_9", (1, 32, 32), 5)
    state, widths = drawn(architecture, 4), {width.name: width for width in architecture.widths}
    masks = dense_masks(state, architecture.prunable)
    padded, pointwise = "features.2.conv_a", "features.2.conv"  # read by 3x3, read by 1x1
    for name, channel in ((padded, 5), (pointwise, 6)):
        for part in widths[name].made[:1]:
            only = torch.arange(widths[name].count) == channel
            masks[part.tensor] = masks[part.tensor] & ~part.entries(only)[:, None, None, None]
    small = check(architecture, state, masks)
    assert small.units[padded] == (48, 48)
    assert small.units[pointwise] == (96, 95)
    state["features.2.conv_a.filter.bias"].zero_()  # a constant of zero is no border
    assert check(architecture, state, masks).units[padded] == (48, 47)


@given(st.integers(0, 2**31))
def test_removing_what_is_dead_keeps_shapes_and_outputs_and_revives_nothing(seed):
    architecture = Architecture("lenet_6_4", (1, 2, 3), 3)
    state, generator = drawn(architecture, seed), torch.Generator().manual_seed(seed)
    masks = {
        name: torch.rand(state[name].shape, generator=generator) < 0.3
        for name in architecture.prunable
    }
    before = {name: mask.clone() for name, mask in masks.items()}
    folded, fewer = remove_dead(architecture, state, masks)
    assert all(masks[name].equal(before[name]) for name in masks)
    assert all(not (fewer[name] & ~masks[name]).any() for name in masks)
    assert {name: value.shape for name, value in folded.items()} == {
        name: value.shape for name, value in state.items()
    }
    images = torch.rand(4, 1, 2, 3, generator=generator)
    with torch.no_grad():
        expected = spec_of(architecture).build(apply_masks(state, masks))(images)
        assert torch.allclose(spec_of(architecture).build(folded)(images), expected, atol=1e-5)
    for name, mask in fewer.items():  # what is left reaches from a pixel to an output
        assert not folded[name][~mask].any()
    assert not (fewer["fc1.weight"].any(1) & ~fewer["fc2.weight"].any(0)).any()
    assert not (fewer["fc2.weight"].any(0) & ~fewer["fc1.weight"].any(1)).any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fc1.weight": torch.zeros(2, 12)}, r"^fc1.bias has shape \[4\], expected \[2\]"),
        ({"fc2.weight": torch.zeros(5, 3)}, r"^fc2.weight has shape \[5, 3\], expected \[5, 4\]"),
        ({"fc1.weight": torch.zeros(())}, r"^fc1.weight has shape \[\]"),
        ({"fc1.weight": torch.zeros(0, 12), "fc1.bias": torch.zeros(0)}, r"^fc1.* has shape \[0"),
        ({"fc4.bias": torch.zeros(2)}, "fc4.bias"),
    ],
)
def test_values_that_do_not_fit_together_are_an_error(change, message):
    architecture = Architecture("lenet_9_7", (1, 3, 4), 3)
    shapes = {"fc1": (4, 12), "fc2": (5, 4), "fc3": (3, 5)}
    state = {f"{name}.weight": torch.zeros(shape) for name, shape in shapes.items()}
    state |= {f"{name}.bias": torch.zeros(shape[0]) for name, shape in shapes.items()}
    spec = spec_of(architecture, compact=True)
    assert spec.build(state)(torch.zeros(2, 1, 3, 4)).shape == (2, 3)
    with pytest.raises(ValueError, match=message):
        spec.build(state | change)


def test_pixels_that_images_do_not_have_are_an_error():
    architecture = Architecture("lenet_2", (1, 1, 3), 2)
    state = {"fc1.weight": torch.zeros(2, 1), "fc1.bias": torch.zeros(2)}
    state |= {"fc2.weight": torch.zeros(2, 2), "fc2.bias": torch.zeros(2)}
    for wrong in (-1, 3):
        with pytest.raises(ValueError, match="reads pixels"):
            spec_of(architecture, compact=True, inputs=(wrong,)).build(state)


def test_a_missing_tensor_is_an_error():
    spec = spec_of(Architecture("lenet_2", (1, 1, 3), 2), compact=True)
    with pytest.raises(ValueError, match=r"fc1.bias, fc1.weight, fc2.bias, fc2.weight is missing"):
        spec.build({})
