from math import log

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from datasets import Split, View
from experiments.training import gradients
from experiments.training.gradients import flow_gradient, loss_gradient
from models import Architecture, build_model, prunable_weights
from pruning.criteria import CRITERIA, Evidence
from pruning.masks import apply_masks, dense_masks

PLAIN = View(white=1, mean=0, std=1)


def split_of(count, side, view=PLAIN, classes=10):
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(256, (count, 1, side, side), generator=generator, dtype=torch.uint8)
    return Split(images, torch.randint(classes, (count,), generator=generator), view)


def network(name, side, density=1.0):
    """A model with values of its own, a state, and masks of the given density."""
    model = build_model(name, (1, side, side), 10)
    state = Architecture(name, (1, side, side), 10).draw(0)
    generator = torch.Generator().manual_seed(1)
    masks = {
        key: torch.rand(mask.shape, generator=generator) < density
        for key, mask in dense_masks(state, prunable_weights(model)).items()
    }
    return model, state, masks


@pytest.mark.parametrize("pixels", [1, 64 * 7, 10**6])
def test_loss_gradient_is_that_of_all_images_at_once_however_they_are_batched(monkeypatch, pixels):
    monkeypatch.setattr(gradients, "GRADIENT_PIXELS", pixels)
    model, state, _ = network("lenet_6_5", 8)
    split = split_of(20, 8, View(white=255, mean=0.5, std=0.3))
    found = loss_gradient(model, split, state)

    model.load_state_dict(state)
    images = (split.images.float() / 255 - 0.5) / 0.3
    F.cross_entropy(model(images), split.labels).backward()
    assert tuple(found) == prunable_weights(model)
    for name, value in found.items():
        expected = model.get_parameter(name).grad
        assert value.dtype == expected.dtype
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-7)


class TwoWeights(nn.Module):
    """Two logits: the one pixel times each weight."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(1, 2, bias=False)

    def forward(self, images):
        return self.fc(images.flatten(1))


@pytest.fixture
def white_pixels():
    """Two images of one white pixel, both of the first class."""
    return Split(torch.ones(2, 1, 1, 1, dtype=torch.uint8), torch.tensor([0, 0]), PLAIN)


def test_loss_gradient_by_hand(white_pixels):
    state = {"fc.weight": torch.tensor([[log(3)], [0.0]])}  # probabilities 3/4 and 1/4
    found = loss_gradient(TwoWeights(), white_pixels, state)["fc.weight"]
    assert found.flatten().tolist() == pytest.approx([-0.25, 0.25])


@pytest.mark.parametrize(
    ("mask", "scores"),
    [
        ([True, True], [0.25 * log(6), 0.25 * log(2)]),
        ([True, False], [log(6) / 7, 0.0]),  # probabilities 6/7 and 1/7
    ],
)
def test_snip_by_hand(white_pixels, mask, scores):
    initial = {"fc.weight": torch.tensor([[log(6)], [log(2)]])}  # probabilities 3/4 and 1/4
    evidence = Evidence(
        initial,
        trained={"fc.weight": torch.zeros(2, 1)},
        masks={"fc.weight": torch.tensor(mask)[:, None]},
        loss_gradient=lambda state: loss_gradient(TwoWeights(), white_pixels, state),
        flow_gradient=lambda state: {},
    )
    found = CRITERIA["snip"].scores(evidence, 0)["fc.weight"]
    assert found.flatten().tolist() == pytest.approx(scores)


def test_flow_gradient_by_hand():
    model = build_model("lenet_2", (1, 1, 2), 1)
    state = {
        "fc1.weight": torch.tensor([[1.0, -2.0], [3.0, 0.0]]),
        "fc1.bias": torch.tensor([0.0, -1.0]),
        "fc2.weight": torch.tensor([[-1.0, 2.0]]),
        "fc2.bias": torch.tensor([5.0]),
    }
    found = flow_gradient(model, (1, 1, 2), state)
    assert found["fc1.weight"].tolist() == [[1.0, 1.0], [2.0, 2.0]]
    assert found["fc2.weight"].tolist() == [[3.0, 4.0]]  # what the hidden neurons hold, bias too


@pytest.mark.parametrize("density", [1.0, 0.4])
@pytest.mark.parametrize(("name", "side"), [("lenet_12_9_7", 8), ("lightcnn_9", 16)])
def test_synflow_gives_every_layer_the_same_sum(name, side, density):
    """Tanaka et al. 2020, theorem 1: without biases, each layer's scores add up to the flow."""
    model, initial, masks = network(name, side, density)
    evidence = Evidence(
        initial,
        initial,
        masks,
        loss_gradient=lambda state: {},
        flow_gradient=lambda state: flow_gradient(model, (1, side, side), state),
    )
    scores = CRITERIA["synflow"].scores(evidence, 0)
    model.double().load_state_dict(
        {key: value.abs() for key, value in apply_masks(initial, masks).items()}
    )
    flow = float(model.eval()(torch.ones(1, 1, side, side, dtype=torch.float64)).detach().sum())
    assert flow > 0
    assert [float(value.sum()) for value in scores.values()] == pytest.approx([flow] * len(masks))


@pytest.mark.parametrize("name", ["lightcnn_9", "lightcnn_29_v2"])
def test_flow_gradient_is_finite_for_a_deep_network(name):
    """Beyond float32 for lightcnn_29_v2, which is why it stays in float64."""
    model = build_model(name, (1, 128, 128), 7)
    state = Architecture(name, (1, 128, 128), 7).draw(0)
    found = flow_gradient(model, (1, 128, 128), state)
    assert tuple(found) == prunable_weights(model)
    for key, value in found.items():
        assert value.dtype == torch.float64
        assert value.shape == state[key].shape
        assert value.isfinite().all()
        assert value.min() >= 0
    largest = max(float(value.max()) for value in found.values())
    assert (largest > torch.finfo(torch.float32).max) == (name == "lightcnn_29_v2")


@pytest.mark.parametrize("kind", ["loss", "flow"])
def test_gradients_leave_model_and_state_as_they_were(kind):
    model, state, masks = network("lightcnn_9", 16)
    model.train()
    model.features.eval()  # a mode of its own
    modes = [layer.training for layer in model.modules()]
    before = {key: value.clone() for key, value in model.state_dict().items()}
    copies = {key: value.clone() for key, value in state.items()}

    def compute():
        if kind == "flow":
            return flow_gradient(model, (1, 16, 16), state)
        return loss_gradient(model, split_of(4, 16), state)

    first, again = compute(), compute()  # dropout, left on, would tell them apart
    for key in masks:
        assert torch.equal(first[key], again[key])
        assert not first[key].requires_grad
    assert [layer.training for layer in model.modules()] == modes
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(value.dtype == torch.float32 for value in model.state_dict().values())
    assert all(value.grad is None for value in model.parameters())
    assert all(torch.equal(value, copies[key]) for key, value in state.items())
    assert not any(value.requires_grad for value in state.values())


def test_a_pruned_weight_has_a_gradient_too():
    model, state, masks = network("lenet_6_5", 8, density=0.5)
    found = loss_gradient(model, split_of(20, 8), apply_masks(state, masks))
    assert found["fc3.weight"][~masks["fc3.weight"]].any()


def test_a_gradient_that_is_not_finite_is_refused(white_pixels):
    state = {"fc.weight": torch.tensor([[float("nan")], [0.0]])}
    with pytest.raises(ValueError, match=r"training loss is not finite in fc\.weight"):
        loss_gradient(TwoWeights(), white_pixels, state)
    model = build_model("lenet_1_1", (1, 1, 1), 1)
    huge = {
        key: torch.full_like(value, 1e200, dtype=torch.float64)
        for key, value in model.state_dict().items()
    }
    with pytest.raises(ValueError, match=r"flow is not finite in fc1\.weight"):
        flow_gradient(model, (1, 1, 1), huge)


def test_a_state_with_a_tensor_missing_is_refused(white_pixels):
    model = build_model("lenet_2", (1, 1, 1), 2)
    state = {key: value for key, value in model.state_dict().items() if key != "fc1.bias"}
    with pytest.raises(RuntimeError, match=r"fc1\.bias"):
        loss_gradient(model, white_pixels, state)
