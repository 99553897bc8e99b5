"""The sparse engine against autograd, and against the dense engine."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets import PIXELS, Images, Split, View, load_splits, split_images
from experiments.config.experiment import config_from
from experiments.rounds.rounds import RoundResult, prune_rounds
from experiments.training import kernels
from experiments.training.engine import ENGINES
from experiments.training.optimizers import OPTIMIZERS
from experiments.training.sparse import UPDATES, SparseEngine, _whole
from models import Architecture, linear_layers
from pruning.masks import apply_masks
from tests.test_training_loop import random_masks, recipe

LENET = Architecture("lenet_20_10", (1, 8, 8), 10)
BOTH = ("dense", "sparse")


@pytest.fixture(scope="module")
def data():
    return load_splits("digits", "nowhere", seed=0, train_limit=250)[0]


@pytest.fixture
def threads():
    """Sets the number of threads until the end of the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def trained_by(kind, architecture, data, plan, density=0.4, epochs=20):
    """State, sum of losses and evaluation after some epochs."""
    state = architecture.draw(0)
    engine = ENGINES[kind](architecture, "cpu", False)
    engine.start(state, random_masks(state, architecture, density), plan)
    loss = torch.zeros(())
    per_epoch = -(-len(data.train) // plan.batch_size)
    for seed in range(epochs):
        batches = engine.batches(data.train, plan.batch_size, seed)
        engine.train(batches, [plan.lr(0)] * per_epoch, loss)
    return engine.snapshot(), float(loss), engine.evaluate(data.valid)


def distance(one, other):
    """The largest distance of two tensors of a name, relative to the norm of the other's."""
    return max(
        float((one[name] - other[name]).norm() / other[name].norm().clamp(min=1e-12))
        for name in other
    )


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(
    hidden=st.lists(st.integers(1, 20), min_size=1, max_size=4),
    classes=st.integers(2, 12),
    side=st.integers(1, 6),
    density=st.floats(0, 1, allow_subnormal=False),
    images=st.integers(1, 150),
    smoothing=st.sampled_from([0.0, 0.1]),
    view=st.sampled_from([View(255, 0.3, 0.4), View(255, 0, 1), View(255, 0, 1, l2=True)]),
    seed=st.integers(0, 2**32 - 1),
)
def test_gradients_are_those_of_autograd(
    hidden, classes, side, density, images, smoothing, view, seed
):
    """Also with rows, columns and layers that are empty, with two to five layers, a black image."""
    name = "_".join(map(str, ["lenet", *hidden]))
    architecture = Architecture(name, (1, side, side), classes)
    draw = torch.Generator().manual_seed(seed)
    state = architecture.draw(seed)
    for layer in linear_layers(architecture.skeleton):
        state[f"{layer}.bias"].normal_(0, 0.1, generator=draw)
    masks = random_masks(state, architecture, density, seed)
    pixels = torch.randint(256, (images, 1, side, side), generator=draw, dtype=torch.uint8)
    pixels[-1] = 0
    labels = torch.randint(classes, (images,), generator=draw)
    split = Split(pixels, labels, view)

    engine = SparseEngine(architecture)
    plan = recipe(optimizer="sgd", batch_size=images, label_smoothing=smoothing)
    engine.start(state, masks, plan)
    loss = torch.zeros(())
    engine.train(engine.batches(split, images, 0), [0.0], loss)
    found = torch.from_numpy(
        np.concatenate([engine.buffers.weight_moments[0], engine.buffers.bias_moments[0]])
    )

    model = architecture.build().double()
    model.load_state_dict(apply_masks(state, masks))
    inputs = split.view.fixed(pixels).double()
    target = (1 - smoothing) * F.one_hot(labels, classes) + smoothing / classes

    def gradient(scalar):
        found = dict(zip(state, torch.autograd.grad(scalar, list(model.parameters())), strict=True))
        weights = [found[name][masks[name]] for name in architecture.prunable]
        return torch.cat([*weights, *(found[f"{layer}.bias"] for layer in engine.layers)])

    expected = F.cross_entropy(model(inputs), labels, label_smoothing=smoothing)
    assert float(loss) == pytest.approx(expected.item(), rel=1e-6, abs=1e-6)
    sizes = []  # of the terms, which may cancel: probability and target, and image by image
    for image in range(images):
        logits = model(inputs[image : image + 1])
        terms = (logits.softmax(1) + target[image]).detach()
        sizes.append(gradient((terms * logits).sum()).norm().item())
    assert (found - gradient(expected)).norm().item() <= 1e-6 * np.mean(sizes)


def test_optimizers_say_whether_they_have_a_kernel():
    assert [name for name, each in OPTIMIZERS.items() if each.has_kernel] == list(UPDATES)


@pytest.mark.parametrize("optimizer", UPDATES)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"weight_decay": 0.01},
        {"grad_clip": 0.5, "label_smoothing": 0.1},
        {"batch_size": 100},  # more than are computed at once
        {"batch_size": 7},
    ],
)
@pytest.mark.parametrize("density", [0.05, 0.5, 1.0])
def test_a_hundred_steps_are_those_of_the_dense_engine(optimizer, changes, density, data):
    momentum = 0.9 if optimizer == "sgd" else 0.0
    plan = recipe(optimizer=optimizer, lr=lambda progress: 1e-2, momentum=momentum, **changes)
    epochs = -(-100 * plan.batch_size // len(data.train))
    dense = trained_by("dense", LENET, data, plan, density, epochs)
    sparse = trained_by("sparse", LENET, data, plan, density, epochs)
    assert distance(sparse[0], dense[0]) < 1e-4
    assert sparse[1] == pytest.approx(dense[1], rel=1e-4)
    assert sparse[2][0] == pytest.approx(dense[2][0], rel=1e-4)
    assert sparse[2][1] == pytest.approx(dense[2][1], abs=1.5 / len(data.valid))


def test_the_number_of_threads_changes_nothing(data, threads):
    wide = Architecture("lenet_300_100", (1, 8, 8), 10)
    results = []
    for number in (1, 2, 3):
        threads(number)
        results.append(trained_by("sparse", wide, data, recipe(), density=0.9, epochs=3))
    for state, loss, evaluation in results[1:]:
        assert all(torch.equal(state[name], results[0][0][name]) for name in state)
        assert (loss, evaluation) == results[0][1:]


def plain_inputs(pixels, images, view):
    """Written out: `pixels` of `images`, [N, 1, height, width]."""
    values = images.double() / 255
    if pixels == "standardised":
        return ((values - view.mean) / view.std).float()
    if pixels == "l2":
        values /= values.square().sum((1, 2, 3), keepdim=True).sqrt().clamp(min=1e-9)
    return values.float()


@pytest.mark.parametrize("pixels", PIXELS)
@pytest.mark.parametrize("kind", ENGINES)
def test_every_engine_sees_the_pixels_that_are_asked_for(pixels, kind):
    """Training and evaluation, against PyTorch alone; one image is black."""
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(256, (90, 8, 8), generator=draw, dtype=torch.uint8)
    images[7] = 0
    parts = (images, torch.arange(90) % 10), (images[:20], torch.arange(20) % 10)
    splits = split_images("noise", Images("here", 255, *parts), 0.2, 0, 0, pixels)
    view, train = splits.train.view, splits.train
    state = LENET.draw(0)
    masks = random_masks(state, LENET, 0.4)
    engine = ENGINES[kind](LENET, "cpu", False)
    engine.start(state, masks, recipe(optimizer="sgd", batch_size=len(train)))
    assert not engine.snapshot()["fc1.bias"].any()
    for _ in range(3):
        batches = engine.batches(train, len(train), 0)
        engine.train(batches, [0.5], torch.zeros(()))

    model = LENET.build()
    model.load_state_dict(apply_masks(state, masks))
    for _ in range(3):
        logits = model(plain_inputs(pixels, train.images, view))
        gradients = torch.autograd.grad(
            F.cross_entropy(logits, train.labels), list(model.parameters())
        )
        with torch.no_grad():
            for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                parameter -= 0.5 * gradient
        model.load_state_dict(apply_masks(model.state_dict(), masks))
    assert distance(engine.snapshot(), model.state_dict()) < 1e-5
    test = splits.test
    with torch.no_grad():
        expected = F.cross_entropy(model(plain_inputs(pixels, test.images, view)), test.labels)
    assert engine.evaluate(test)[0] == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("pixels", PIXELS)
def test_both_engines_have_the_same_inputs_bit_for_bit(pixels):
    digits = load_splits("digits", "nowhere", 0, pixels=pixels)[0].valid
    digits.images[3] = 0
    values = np.zeros((64, kernels.LANES), np.float32)
    rows = np.arange(60)
    kernels._gather(_whole(digits), rows, np.arange(64), 0, 64, values)
    expected = digits.view.fixed(digits.images[:60]).flatten(1).numpy()
    assert np.array_equal(values[:, :60].T, expected)


@pytest.mark.parametrize("view", [View(255, 0.5, 0.25, crop=8), View(255, 0, 1, crop=8, l2=True)])
def test_crops_are_those_of_the_dense_engine(view):
    draw = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (90, 1, 12, 12), generator=draw, dtype=torch.uint8)
    split = Split(pixels, torch.arange(90) % 10, view)
    splits = replace(load_splits("digits", "nowhere", 0, 250)[0], train=split, valid=split)
    plan = recipe(batch_size=20)
    dense, sparse = (trained_by(kind, LENET, splits, plan) for kind in BOTH)
    assert distance(sparse[0], dense[0]) < 1e-5
    assert sparse[2][0] == pytest.approx(dense[2][0], rel=1e-5)


def test_pruned_weights_are_exactly_zero_and_a_state_survives_the_engine(data):
    state = LENET.draw(0)
    masks = random_masks(state, LENET, 0.3)
    engine = SparseEngine(LENET)
    engine.start(state, masks, recipe())
    expected = apply_masks(state, masks)
    found = engine.snapshot()
    assert list(found) == list(state)
    assert all(torch.equal(found[name], expected[name]) for name in state)
    other = {name: value + 1 for name, value in state.items()}
    engine.load(other)
    expected = apply_masks(other, masks)
    assert all(torch.equal(engine.snapshot()[name], expected[name]) for name in state)


@pytest.mark.parametrize("survivors", [0, 1])
def test_a_layer_may_have_one_survivor_or_none(survivors, data):
    state = LENET.draw(0)
    masks = random_masks(state, LENET, 0.5)
    for name in ("fc1.weight", "fc2.weight"):
        masks[name] = torch.zeros_like(masks[name])
        masks[name].view(-1)[:survivors] = True
    engine = SparseEngine(LENET)
    engine.start(state, masks, recipe())
    engine.train(engine.batches(data.train, 60, 0), [0.01] * 5, torch.zeros(()))
    after = engine.snapshot()
    assert all(not after[name][~mask].any() for name, mask in masks.items())
    assert not torch.equal(after["fc3.bias"], state["fc3.bias"])


def test_rounds_are_those_of_the_dense_engine(data):
    small = {"dataset": "digits", "model": "lenet_20_10", "epochs": 3, "retrain_epochs": 3}
    configs = [
        config_from(small | {"rounds": 4, "device": "cpu", "engine": kind}).resolved("digits")
        for kind in BOTH
    ]
    results = [
        [each for each in prune_rounds(config, data) if isinstance(each, RoundResult)]
        for config in configs
    ]
    for dense, sparse in zip(*results, strict=True):
        assert sparse.metrics["sparsity"] == dense.metrics["sparsity"]
        assert [each.metrics["sparse_engine"] for each in (dense, sparse)] == [0, 1]
        assert sparse.metrics["test_loss"] == pytest.approx(dense.metrics["test_loss"], rel=1e-2)
    middle = results[1][2].network
    rest = [
        each
        for each in prune_rounds(configs[1], data, after=middle)
        if isinstance(each, RoundResult)
    ]
    for again, before in zip(rest, results[1][3:], strict=True):
        assert again.metrics == before.metrics
        state = before.network.state
        assert all(torch.equal(again.network.state[name], state[name]) for name in state)


def test_what_it_cannot_train_is_an_error(monkeypatch):
    with pytest.raises(ValueError, match=r"needs a fully connected network .* got lightcnn_9"):
        ENGINES["sparse"](Architecture("lightcnn_9", (1, 128, 128), 3), "cpu", False)
    for device, bf16 in (("cuda", False), ("cpu", True)):
        with pytest.raises(ValueError, match="device=cpu and precision=float32"):
            ENGINES["sparse"](LENET, device, bf16)
    monkeypatch.setitem(OPTIMIZERS, "lion", replace(OPTIMIZERS["sgd"], has_kernel=False))
    state, plan = LENET.draw(0), replace(recipe(), optimizer="lion")
    with pytest.raises(ValueError, match="no kernel for optimizer=lion"):
        SparseEngine(LENET).start(state, random_masks(state, LENET, 0.5), plan)


def test_only_linear_layers_with_relu_between_them_are_fully_connected():
    nn = torch.nn
    assert linear_layers(LENET.skeleton) == ("fc1", "fc2", "fc3")
    assert linear_layers(nn.Sequential(nn.Flatten(), nn.Linear(3, 2))) == ("1",)
    for layers in (
        [nn.Linear(3, 2)],
        [nn.Flatten(), nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 2)],
        [nn.Flatten(), nn.Linear(3, 2), nn.ReLU()],
        [nn.Flatten(), nn.Linear(3, 2, bias=False)],
    ):
        assert linear_layers(nn.Sequential(*layers)) == ()
    assert linear_layers(nn.Linear(3, 2)) == ()
