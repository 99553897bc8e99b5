import pytest
import torch
from torch import nn

from models import MODELS, Architecture, build_model, prunable_weights, weight_uses
from models.serving import FromPixels, NetworkSpec


def test_lenet_300_100_has_the_papers_parameters():
    model = build_model("lenet_300_100", (1, 28, 28), 10)
    assert sum(value.numel() for value in model.parameters()) == 266_610
    weights = prunable_weights(model)
    assert weights == ("fc1.weight", "fc2.weight", "fc3.weight")
    assert sum(model.get_parameter(name).numel() for name in weights) == 266_200


def test_lenet_computes_its_layers_in_order():
    model = build_model("lenet_5_4", (1, 2, 3), 3)
    state = Architecture("lenet_5_4", (1, 2, 3), 3).draw(0)
    model.load_state_dict(state)
    images = torch.randn(7, 1, 2, 3)
    values = images.reshape(7, 6)
    for layer in ("fc1", "fc2"):
        values = (values @ state[f"{layer}.weight"].T + state[f"{layer}.bias"]).clamp(min=0)
    by_hand = values @ state["fc3.weight"].T + state["fc3.bias"]
    assert torch.allclose(model(images), by_hand, atol=1e-6)


@pytest.mark.parametrize(
    "name", ["lenet", "lenet_", "lenet_0", "lenet_10_", "lenet_-3", "lenet_3x"]
)
def test_invalid_layer_sizes_are_rejected(name):
    with pytest.raises(ValueError, match=r"layer sizes such as lenet_300_100, got"):
        build_model(name, (1, 28, 28), 10)


def test_an_unknown_family_is_rejected():
    with pytest.raises(ValueError, match="model must be one of") as caught:
        build_model("resnet_20", (1, 28, 28), 10)
    assert str(caught.value) == (
        "model must be one of lenet_<n>_<n>... (such as lenet_300_100), "
        "lightcnn_9, lightcnn_29, lightcnn_29_v2, got resnet_20"
    )


EXAMPLES = {"lenet": "lenet_16", "lightcnn": "lightcnn_9"}  # one name for each family


@pytest.mark.parametrize("family", MODELS)
def test_every_model_maps_images_to_logits_and_is_determined_by_its_seed(family):
    name, shape = EXAMPLES[family], (1, 8, 8)
    model = build_model(name, shape, 10)
    assert model(torch.zeros(3, *shape)).shape == (3, 10)
    weights = prunable_weights(model)
    assert set(weight_uses(model, shape)) == set(weights)
    first, again, other = (Architecture(name, shape, 10).draw(seed) for seed in (1, 1, 2))
    assert first.keys() == model.state_dict().keys()
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert all(not torch.equal(first[key], other[key]) for key in weights)


def test_initial_values_are_gaussian_glorot_with_zero_biases():
    state = Architecture("lenet_300_100", (1, 28, 28), 10).draw(3)
    weight = state["fc1.weight"]
    expected = (2 / (784 + 300)) ** 0.5
    assert weight.std().item() == pytest.approx(expected, rel=0.01)
    assert (weight.abs() > 3 * expected).float().mean().item() == pytest.approx(0.0027, rel=0.2)
    assert not state["fc1.bias"].any()


def test_drawing_leaves_the_global_generator_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    Architecture("lenet_20", (1, 8, 8), 10).draw(1)
    assert torch.equal(torch.rand(3), expected)


def test_weight_uses_counts_positions_of_convolutions():
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1),
        nn.MaxPool2d(2),
        nn.Conv2d(2, 4, 3),
        nn.Flatten(),
        nn.Linear(16, 3),
    )
    uses = weight_uses(model, (1, 8, 8))
    assert uses == {"0.weight": 64, "2.weight": 4, "4.weight": 1}


def test_a_layer_that_is_never_called_is_an_error():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    model[0].extra = nn.Linear(4, 2)
    with pytest.raises(ValueError, match=r"never calls the layer of 0\.extra\.weight"):
        weight_uses(model, (1, 2, 2))


def test_from_pixels_standardises():
    served = FromPixels(nn.Identity(), mean=0.5, std=0.25)
    assert served(torch.tensor([0.0, 0.5, 1.0])).tolist() == [-2.0, 0.0, 2.0]


def test_from_pixels_divides_by_the_norm_of_all_pixels_that_the_network_sees():
    image = torch.full((2, 1, 4, 4), 0.7)
    image[0, 0, 1:3, 1:3] = torch.tensor([[0.3, 0.0], [0.0, 0.4]])
    image[1, 0, 1:3, 1:3] = 0
    whole = FromPixels(nn.Flatten(), 0, 1, crop=2, l2=True)
    assert torch.allclose(whole(image), torch.tensor([[0.6, 0, 0, 0.8], [0, 0, 0, 0]]))
    some = FromPixels(nn.Identity(), 0, 1, crop=2, inputs=torch.tensor([3, 1]), l2=True)
    assert torch.allclose(some(image), torch.tensor([[0.8, 0], [0, 0]]))


def test_pixels_are_divided_by_a_norm_or_standardised_not_both():
    spec = NetworkSpec("lenet_2", (1, 1, 2), ("a", "b"), mean=0.5, std=1, l2=True)
    with pytest.raises(ValueError, match="divided by a norm have mean 0 and std 1"):
        spec.build(spec.architecture.draw(0))
