"""The LightCNNs against a second implementation, written from the tables of the paper."""

import json

import pytest
import torch
import torch.nn.functional as F

from models import Architecture, build_model, prunable_weights, weight_uses
from models.lightcnn import LIGHTCNNS
from pruning.masks import dense_masks, groups_of, plan_removals, prune
from tests.conftest import ROOT

# arXiv:1511.02683 for 128x128 images and 7 classes. Outputs count both halves of an MFM:
# layer                       kernel inputs outputs side  weights multiply-adds
NINE = """
features.0.filter                5x5     1   96  128     2400   39321600
pool
features.2.conv_a.filter         1x1    48   96   64     4608   18874368
features.2.conv.filter           3x3    48  192   64    82944  339738624
pool
features.4.conv_a.filter         1x1    96  192   32    18432   18874368
features.4.conv.filter           3x3    96  384   32   331776  339738624
pool
features.6.conv_a.filter         1x1   192  384   16    73728   18874368
features.6.conv.filter           3x3   192  256   16   442368  113246208
features.7.conv_a.filter         1x1   128  256   16    32768    8388608
features.7.conv.filter           3x3   128  256   16   294912   75497472
pool
fc1.filter                    linear  8192  512    1  4194304    4194304
fc2                           linear   256    7    1     1792       1792
"""
TRUNK = """
conv1.filter                     5x5     1   96  128     2400   39321600
pool
block1.0.conv1.filter            3x3    48   96   64    41472  169869312
block1.0.conv2.filter            3x3    48   96   64    41472  169869312
group1.conv_a.filter             1x1    48   96   64     4608   18874368
group1.conv.filter               3x3    48  192   64    82944  339738624
pool
block2.0.conv1.filter            3x3    96  192   32   165888  169869312
block2.0.conv2.filter            3x3    96  192   32   165888  169869312
block2.1.conv1.filter            3x3    96  192   32   165888  169869312
block2.1.conv2.filter            3x3    96  192   32   165888  169869312
group2.conv_a.filter             1x1    96  192   32    18432   18874368
group2.conv.filter               3x3    96  384   32   331776  339738624
pool
block3.0.conv1.filter            3x3   192  384   16   663552  169869312
block3.0.conv2.filter            3x3   192  384   16   663552  169869312
block3.1.conv1.filter            3x3   192  384   16   663552  169869312
block3.1.conv2.filter            3x3   192  384   16   663552  169869312
block3.2.conv1.filter            3x3   192  384   16   663552  169869312
block3.2.conv2.filter            3x3   192  384   16   663552  169869312
group3.conv_a.filter             1x1   192  384   16    73728   18874368
group3.conv.filter               3x3   192  256   16   442368  113246208
block4.0.conv1.filter            3x3   128  256   16   294912   75497472
block4.0.conv2.filter            3x3   128  256   16   294912   75497472
block4.1.conv1.filter            3x3   128  256   16   294912   75497472
block4.1.conv2.filter            3x3   128  256   16   294912   75497472
block4.2.conv1.filter            3x3   128  256   16   294912   75497472
block4.2.conv2.filter            3x3   128  256   16   294912   75497472
block4.3.conv1.filter            3x3   128  256   16   294912   75497472
block4.3.conv2.filter            3x3   128  256   16   294912   75497472
group4.conv_a.filter             1x1   128  256   16    32768    8388608
group4.conv.filter               3x3   128  256   16   294912   75497472
pool
"""
TWENTY_NINE = (
    TRUNK
    + """
fc.filter                     linear  8192  512    1  4194304    4194304
fc2                           linear   256    7    1     1792       1792
"""
)
TWENTY_NINE_V2 = (
    TRUNK
    + """
fc                            linear  8192  256    1  2097152    2097152
fc2                           linear   256    7    1     1792       1792
"""
)
TABLES = {"lightcnn_9": NINE, "lightcnn_29": TWENTY_NINE, "lightcnn_29_v2": TWENTY_NINE_V2}
TOTALS = {  # parameters, biases included; multiply-adds
    "lightcnn_9": (5_482_663, 976_750_336),
    "lightcnn_29": (12_575_079, 3_619_161_856),
    "lightcnn_29_v2": (10_477_664, 3_617_064_704),
}
FACE = (1, 128, 128)
SMALL = (1, 32, 32)
each_model = pytest.mark.parametrize("name", TABLES)


def layers(name):
    """(layer, kernel, inputs, outputs, side, weights, multiply-adds), without the pooling."""
    rows = [line.split() for line in TABLES[name].split("\n") if line and line != "pool"]
    return [(layer, kernel, *map(int, numbers)) for layer, kernel, *numbers in rows]


def meta(name, image_shape=FACE, classes=7):
    with torch.device("meta"):
        return build_model(name, image_shape, classes)


def drawn(name, image_shape=SMALL):
    model = build_model(name, image_shape, 7)
    state = Architecture(name, image_shape, 7).draw(0)
    for key, value in state.items():
        if key.endswith("bias"):
            value.normal_(generator=torch.Generator().manual_seed(len(key)))
    model.load_state_dict(state)
    return model.eval(), state


def test_there_is_a_table_for_every_lightcnn():
    assert list(TABLES) == [f"lightcnn_{sizes}" for sizes in LIGHTCNNS]


@each_model
def test_shapes_and_multiply_adds_of_layers_match_the_table(name):
    model = meta(name)
    uses = weight_uses(model, FACE)
    assert list(uses) == [f"{layer}.weight" for layer, *_ in layers(name)]
    for layer, kernel, inputs, outputs, side, weights, multiply_adds in layers(name):
        window = () if kernel == "linear" else tuple(map(int, kernel.split("x")))
        weight = model.get_parameter(f"{layer}.weight")
        assert weight.shape == (outputs, inputs, *window)
        assert weight.numel() == weights
        assert uses[f"{layer}.weight"] == side**2
        assert weights * side**2 == multiply_adds


@each_model
def test_total_parameters_and_multiply_adds_match_the_table(name):
    model = meta(name)
    parameters, multiply_adds = TOTALS[name]
    biases = sum(outputs for _, _, _, outputs, *_ in layers(name)) - 7 * (name == "lightcnn_29_v2")
    assert sum(weights for *_, weights, _ in layers(name)) + biases == parameters
    assert sum(value.numel() for value in model.parameters()) == parameters
    assert sum(last for *_, last in layers(name)) == multiply_adds
    counted = weight_uses(model, FACE)
    assert sum(model.get_parameter(key).numel() * uses for key, uses in counted.items()) == (
        multiply_adds
    )


def test_lightcnn_9_has_5482663_parameters_and_needs_977_million_multiply_adds():
    parameters, multiply_adds = TOTALS["lightcnn_9"]
    assert (parameters, round(multiply_adds / 1e6)) == (5_482_663, 977)


@pytest.mark.real_data
@each_model
def test_names_and_shapes_match_the_published_release(name):
    listing = ROOT.parent / "shared/data/lightcnn_parameters.json"
    if not listing.is_file():
        pytest.skip("the listing of the release is not on this machine")
    published = json.loads(listing.read_text())[name]
    state = meta(name, classes=published["fc2.weight"][0]).state_dict()
    assert {key: list(value.shape) for key, value in state.items()} == published
    assert list(state) == list(published)


def computed_from_the_table(name, state, images):
    """The logits, in plain operations on the tensors of `state`."""
    values, before = images, images
    for line in TABLES[name].strip().split("\n"):
        layer, *columns = line.split() or [""]
        if layer == "pool":
            n, channels, height, width = values.shape
            squares = values.reshape(n, channels, height // 2, 2, width // 2, 2)
            largest, mean = squares.amax((3, 5)), squares.mean((3, 5))
            values = largest + mean if name == "lightcnn_29_v2" else largest
        elif layer:
            weight, bias = state[f"{layer}.weight"], state.get(f"{layer}.bias")
            if layer.startswith("block") and ".conv1." in layer:
                before = values
            if columns[0] == "linear":
                values = F.linear(values.reshape(len(values), -1), weight, bias)
            else:
                values = F.conv2d(values, weight, bias, padding=int(columns[0][0]) // 2)
            if layer.endswith(".filter"):
                half = values.shape[1] // 2
                values = torch.stack((values[:, :half], values[:, half:])).amax(0)
            if layer.startswith("block") and ".conv2." in layer:
                values = values + before
    return values


@each_model
def test_the_network_computes_the_layers_of_the_table(name):
    model, state = drawn(name)
    images = torch.rand(3, *SMALL)
    with torch.no_grad():
        logits = model(images)
        assert torch.allclose(
            logits, computed_from_the_table(name, state, images), rtol=1e-4, atol=1e-4
        )
    assert logits.std() > 0.1


@pytest.mark.parametrize("image_shape", [(1, 1, 1), (3, 16, 33), (1, 17, 15)])
@each_model
def test_any_image_size_works_and_odd_sizes_round_up(name, image_shape):
    model = meta(name, image_shape)
    assert model(torch.zeros(2, *image_shape, device="meta")).shape == (2, 7)
    flat = model.get_parameter(f"{layers(name)[-2][0]}.weight").shape[1]
    assert flat == 128 * -(-image_shape[1] // 16) * -(-image_shape[2] // 16)


@pytest.mark.parametrize("name", ["lightcnn", "lightcnn_", "lightcnn_10", "lightcnn_29v2"])
def test_an_unknown_lightcnn_is_rejected(name):
    with pytest.raises(ValueError, match="one of lightcnn_9, lightcnn_29, lightcnn_29_v2, got"):
        build_model(name, FACE, 7)


@each_model
def test_the_network_exports_for_any_batch_size(name):
    model, _ = drawn(name)
    images = torch.rand(5, *SMALL)
    batch = torch.export.Dim("batch", min=1)
    exported = torch.export.export(model, (images[:2],), dynamic_shapes=({0: batch},)).module()
    assert torch.allclose(exported(images), model(images), atol=1e-5)


@pytest.mark.parametrize("scope", ["layer", "global"])
@each_model
def test_convolutions_and_linear_layers_are_pruned_at_the_same_rate(name, scope):
    model = meta(name, (1, 16, 16))
    names = prunable_weights(model)
    sizes = {key: model.get_parameter(key).numel() for key in names}
    groups = groups_of(names, scope, 0.2, None)
    (removals,) = plan_removals(sizes, groups, 0, 1)
    if scope == "layer":
        assert removals == {(key,): round(0.2 * size) for key, size in sizes.items()}
    else:
        assert removals == {names: round(0.2 * sum(sizes.values()))}


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_pruning_a_lightcnn_removes_exactly_the_planned_weights(scope):
    state = Architecture("lightcnn_9", (1, 16, 16), 7).draw(0)
    names = prunable_weights(meta("lightcnn_9", (1, 16, 16)))
    sizes = {key: state[key].numel() for key in names}
    plan = plan_removals(sizes, groups_of(names, scope, 0.5, None), 0.6, 0)
    masks = dense_masks(state, names)
    scores = {key: state[key].abs() for key in names}
    for removals in plan:
        masks = prune(scores, masks, removals)
    assert sum(int((~mask).sum()) for mask in masks.values()) == round(0.6 * sum(sizes.values()))
