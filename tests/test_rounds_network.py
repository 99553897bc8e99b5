"""Networks: evaluating and comparing them; the numbers are worked out by hand."""

import pytest
import torch

from datasets import Split, View
from experiments.rounds.data import few_tests_warning
from experiments.rounds.network import Network, compare, evaluate, jaccard, open_network
from models.serving import NetworkSpec
from pruning.checkpoint import Checkpoint, load_checkpoint

NAMES = ("dark", "left", "right")
SPEC = NetworkSpec("lenet_2", (1, 1, 2), NAMES, mean=0.5, std=0.5)


def network(output, mask=None, **metadata):
    """Two pixels, scaled to [-1, 1], become two units; the logits are linear in the units."""
    weights = torch.eye(2)
    masks = {"fc1.weight": weights.bool(), "fc2.weight": torch.ones(3, 2, dtype=torch.bool)}
    state = {
        "fc1.weight": weights,
        "fc1.bias": torch.zeros(2),
        "fc2.weight": torch.tensor(output),
        "fc2.bias": torch.tensor([0.5, 0.0, 0.0]),
    }
    masks |= mask or {}
    return Network(SPEC.build(state), masks, SPEC, {"round": 1} | metadata)


def split(pixels, labels):
    """Pixels from 0 to 4."""
    images = torch.tensor(pixels, dtype=torch.uint8).view(-1, 1, 1, 2)
    return Split(images, torch.tensor(labels), View(white=4, mean=0.1, std=7.0))


SIDES = [[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]
MIRRORED = [[0.0, 0.0], [0.0, 1.0], [1.0, 0.0]]
IMAGES = split([[0, 0], [4, 0], [0, 4], [4, 0]], [0, 1, 2, 2])


def test_a_network_takes_pixels_and_scales_them_itself():
    """The split's own scale, which another training set may have given it, is not used."""
    logits = network(SIDES).module(torch.tensor([[[[1.0, 0.0]]], [[[0.0, 0.0]]]]))
    assert logits.tolist() == [[0.5, 1.0, 0.0], [0.5, 0.0, 0.0]]


def test_accuracy_and_loss_are_exact():
    score = evaluate(network(SIDES), IMAGES)
    assert score.predicted.tolist() == [0, 1, 2, 1]
    assert score.correct.tolist() == [True, True, True, False]
    assert score.accuracy == 0.75
    rows = torch.tensor([[0.5, 0, 0], [0.5, 1, 0], [0.5, 0, 1], [0.5, 1, 0]])
    expected = -rows.log_softmax(1)[range(4), [0, 1, 2, 2]].mean()
    assert score.loss == pytest.approx(float(expected))


def test_two_networks_are_compared_image_by_image():
    half = {"fc1.weight": torch.tensor([[True, False], [False, False]])}
    found = compare(network(SIDES), network(MIRRORED, half), IMAGES)
    assert found.first.accuracy == 0.75
    assert found.second.accuracy == 0.5
    assert found.accuracy == -0.25
    assert (found.only_first, found.only_second) == (2, 1)
    assert found.p_value == 1.0  # two of three discordant pairs
    assert found.disagree.tolist() == [1, 2, 3]
    assert found.mask_overlap == {"fc1.weight": 0.5, "fc2.weight": 1.0}


def test_mcnemars_test_is_exact():
    images = split([[4, 0]] * 6, [1] * 6)
    found = compare(network(MIRRORED), network(SIDES), images)
    assert (found.only_first, found.only_second) == (0, 6)
    assert found.p_value == pytest.approx(2 / 2**6)
    same = compare(network(SIDES), network(SIDES), images)
    assert (same.p_value, same.disagree.tolist()) == (1.0, [])


def test_overlap_is_the_jaccard_index():
    one = torch.tensor([True, True, True, False])
    other = torch.tensor([False, True, True, True])
    assert jaccard(one, other) == 0.5
    assert jaccard(one & False, other & False) == 1.0


def test_networks_for_other_images_or_classes_are_rejected():
    other = Split(torch.zeros(2, 1, 8, 8, dtype=torch.uint8), torch.zeros(2), IMAGES.view)
    with pytest.raises(ValueError, match=r"images of shape \(1, 1, 2\), .* got \(1, 8, 8\)$"):
        evaluate(network(SIDES), other)
    spec = NetworkSpec("lenet_2", (1, 1, 2), ("a", "b", "c"), 0.5, 0.5)
    renamed = Network(network(SIDES).module, {}, spec, {})
    with pytest.raises(ValueError, match="must have the same classes"):
        compare(network(SIDES), renamed, IMAGES)


def test_a_saved_network_opens_as_the_same(tmp_path):
    described = {"network": {**vars(SPEC)}, "metrics": {"sparsity": 0.25}}
    before = network(SIDES, **described)
    before.save(tmp_path / "x.safetensors")
    after = open_network(load_checkpoint(tmp_path / "x.safetensors"), "x")
    assert after.class_names == NAMES
    assert (after.round, after.metrics) == (1, {"sparsity": 0.25})
    pixels = torch.rand(5, 1, 1, 2)
    assert torch.equal(after.module(pixels), before.module(pixels))
    assert not after.module.training


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"round": 1}, r"^x does not say how to build .* lack 'network'.*older version"),
        ({"network": {"model": "lenet_2"}, "round": 1}, "^x has unusable metadata: network.image"),
        *(
            ({"round": 1, "network": vars(SPEC) | changes}, f"^x does not fit its model {message}")
            for changes, message in [
                ({"model": "lenet_3"}, "lenet_3: "),
                ({"image_shape": (1, 2_000, 2_000), "model": f"lenet_{10**15}"}, "lenet_10*: "),
                ({"inputs": (0, 1)}, "lenet_2: only a compact fully connected network can have"),
                ({"crop": 2}, "lenet_2: a crop of 2 is larger than its images"),
                ({"model": "resnet"}, "resnet: model must be one of "),
            ]
        ),
        *(
            ({"round": 1, "network": vars(SPEC)} | changes, f"^x has unusable metadata: {message}")
            for changes, message in [
                ({"round": -1}, "round: "),
                ({"round": [1]}, "round: "),
                ({"metrics": 1}, "metrics: "),
                ({"metrics": {"valid_accuracy": []}}, "metrics.valid_accuracy: "),
                ({"data": {"images": {"test": "many"}}}, "data.images.test: "),
                ({"config": []}, "config: "),
                ({"metrics": {"valid_accuracy": "high"}}, "metrics.valid_accuracy: "),
                *(
                    ({"network": vars(SPEC) | {name: value}}, f"network.{name}")
                    for name, value in [
                        ("image_shape", (1, 2)),
                        ("image_shape", (1, 0, 2)),
                        ("image_shape", (1, 10**9, 10**9)),
                        ("image_shape", (1, 14_000, 14_000)),
                        ("class_names", ("a" * 2000,)),
                        ("class_names", ()),
                        ("std", 0.0),
                        ("mean", float("nan")),
                        ("crop", -1),
                        ("model", "lenet" + "_1" * 1000),
                    ]
                ),
            ]
        ),
    ],
)
def test_a_checkpoint_that_is_no_working_network_is_one_clear_line(metadata, message):
    state = network(SIDES).module.network.state_dict()
    with pytest.raises(ValueError, match=message) as caught:
        open_network(Checkpoint(state, {}, metadata), "x")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "masks", "message"),
    [
        ({"fc1.bias": torch.zeros(2).double()}, {}, "fc1.bias is torch.float64, expected torch.fl"),
        ({"fc1.bias": torch.zeros(3)}, {}, "size mismatch for fc1.bias"),
        ({"fc9.bias": torch.zeros(3)}, {}, "Unexpected key"),
        (
            {},
            {"fc1.weight": torch.ones(2, 3).bool()},
            r"it has no weights fc1.weight of",
        ),
        ({}, {"fc9.weight": torch.ones(2).bool()}, "it has no weights fc9.weight"),
    ],
)
def test_values_and_masks_must_be_those_of_the_model(changes, masks, message):
    state = network(SIDES).module.network.state_dict() | changes
    metadata = {"round": 1, "network": vars(SPEC)}
    with pytest.raises(
        ValueError, match=f"^x does not fit its model lenet_2: .*{message}"
    ) as error:
        open_network(Checkpoint(state, masks, metadata), "x")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("images", "each", "bound"), [(1, 100, 5), (7, 14, 65), (10, 10, 74), (29, 3, 90)]
)
def test_few_test_images_are_a_warning(images, each, bound):
    """The rule of three: without an error, (bound / 100) ** images is 5%."""
    (line,) = few_tests_warning(images)
    assert line.startswith(f"WARNING: {images} test image")
    assert f"each is {each} percentage points" in line
    assert f"as low as {bound}%" in line
    assert pytest.approx((bound / 100) ** images, rel=0.1) == 0.05


def test_enough_test_images_are_no_warning():
    assert few_tests_warning(30) == []
    assert few_tests_warning(0) == []  # a search has none
