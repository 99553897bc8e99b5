"""Twins: the same training with another order of the images, and the line between two networks."""

from math import isclose, sqrt

import pytest
import torch
from torch import nn

from datasets import Images, split_images
from experiments.config.experiment import config_from
from experiments.rounds.metrics import METRICS
from experiments.rounds.rounds import recipe_of
from experiments.rounds.twin import barrier, between, distance
from experiments.training.engine import ENGINES
from experiments.training.loop import derive_seed, train
from models import MODELS, Architecture
from tests.rounds import config, run, same
from tests.test_rounds_rounds import as_base
from tests.test_training_loop import finish

NAMES = {name for name in METRICS if "twin" in name or "barrier" in name}


def without_twin(result):
    return {name: value for name, value in result.metrics.items() if name not in NAMES}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("reinit", ["keep", "random", "rewind"])
def test_a_twin_changes_nothing_else(engine, reinit, data):
    settings = {"engine": engine, "reinit": reinit, "criterion": "random", "eval_every": 2}
    alone, twins = (run(config(twin=twin, **settings), data) for twin in (False, True))
    for one, other in zip(alone, twins, strict=True):
        assert same(one.network.state, other.network.state)
        assert same(one.network.masks, other.network.masks)
        assert repr(one.metrics) == repr(without_twin(other))
        assert other.metrics.keys() - one.metrics.keys() == NAMES
        assert one.evaluations == other.evaluations
        assert torch.equal(one.correct, other.correct)
        assert other.metrics["twin_distance"] > 0


def test_a_twin_changes_nothing_else_of_a_lightcnn():
    """Whose dropout takes random numbers from PyTorch's global generator."""
    pixels = torch.randint(256, (40, 20, 20), generator=torch.Generator().manual_seed(0))
    images, labels = pixels.byte(), torch.arange(40) % 2
    raw = Images("noise", 255, (images[:30], labels[:30]), (images[30:], labels[30:]), crop=16)
    noise = split_images("noise", raw, 0.2, 0, 0, True)
    asked = {"model": "lightcnn_9", "epochs": 1, "retrain_epochs": 1, "rounds": 1, "device": "cpu"}
    alone, twins = (
        run(config_from(asked | {"twin": twin}).resolved("faces"), noise) for twin in (False, True)
    )
    for one, other in zip(alone, twins, strict=True):
        assert same(one.network.state, other.network.state)
        assert repr(one.metrics) == repr(without_twin(other))


@pytest.mark.parametrize("number", [0, 2])
def test_the_barrier_is_that_of_the_line_to_the_same_training_in_another_order(number, data):
    settings = config(twin=True, engine="dense", eval_every=2)
    result = run(settings, data)[number]
    network, architecture = result.network, Architecture("lenet_30_20", (1, 8, 8), 10)
    engine = ENGINES["dense"](architecture, "cpu", False)
    seed, recipe = derive_seed(0, number, "training", "twin"), recipe_of(settings, number)
    training = train(engine, network.initial, network.masks, data, recipe, seed)
    twin = finish(training)[1].state
    model, errors = architecture.build(), {"train": [], "valid": [], "test": []}
    for point in range(11):
        model.load_state_dict(
            {
                name: value + (twin[name] - value) * point / 10
                for name, value in network.state.items()
            }
        )
        for name, found in errors.items():
            split = getattr(data, name)
            wrong = model(split.view.fixed(split.images)).argmax(1) != split.labels
            found.append(int(wrong.sum()) / len(split))
    for name, found in errors.items():
        by_hand = max(found) - (found[0] + found[-1]) / 2
        assert isclose(result.metrics[f"{name}_barrier"], by_hand, abs_tol=1e-12)
        assert result.metrics[f"{name}_barrier"] > 0
    for name in ("valid", "test"):
        assert isclose(result.metrics[f"{name}_accuracy"], 1 - errors[name][0])
        assert isclose(result.metrics[f"twin_{name}_accuracy"], 1 - errors[name][-1])
    squares = sum(float(((twin[name] - value) ** 2).sum()) for name, value in network.state.items())
    assert result.metrics["twin_distance"] == pytest.approx(sqrt(squares), rel=1e-5)


def test_the_barrier_is_the_largest_error_minus_the_mean_of_the_ends():
    assert isclose(barrier([0.9, 0.5, 0.6, 0.8]), 0.35)
    assert isclose(barrier([0.9, 0.95, 0.8]), 0.05)  # half of the distance between the ends
    assert barrier([0.9, 1.0, 0.9]) == 0


def test_the_ends_of_a_line_are_the_two_networks_and_pruned_weights_stay_zero():
    one = {"a": torch.tensor([0.1, 0.0, -0.7]), "b": torch.tensor([1e-8])}
    other = {"a": torch.tensor([0.3, 0.0, 0.9]), "b": torch.tensor([3e7])}
    assert same(between(one, other, 0.0), one)
    assert same(between(one, other, 1.0), other)
    assert between(one, other, 0.3)["a"][1] == 0
    assert between(one, other, 0.5)["a"].tolist() == pytest.approx([0.2, 0, 0.1])
    assert isclose(distance(one, {"a": one["a"] + 2, "b": one["b"] - 2}), 4, rel_tol=1e-6)


def test_networks_that_do_not_move_are_their_own_twins(data):
    dense, *later = run(config(twin=True, retrain_lr=1e-300), data)
    assert dense.metrics["twin_distance"] > 0
    for result in later:
        metrics = result.metrics
        assert metrics["twin_distance"] == metrics["train_barrier"] == metrics["test_barrier"] == 0
        assert metrics["twin_test_accuracy"] == metrics["test_accuracy"]


def test_continuing_or_branching_gives_the_same_twins(data):
    settings = config(twin=True, reinit="random")
    whole, base = run(settings, data), run(config(twin=True), data)
    for cut in range(3):
        rest = run(settings, data, after=whole[cut].network)
        assert [repr(each.metrics) for each in whole[cut + 1 :]] == [repr(r.metrics) for r in rest]
    branched = run(settings, data, base=as_base(base))
    assert [repr(each.metrics) for each in whole] == [repr(r.metrics) for r in branched]


def test_a_search_would_get_no_test_metrics(data):
    (result, _) = run(config(twin=True, rounds=1), data.without_test())
    assert result.metrics.keys() & NAMES == NAMES - {"test_barrier", "twin_test_accuracy"}


def test_a_model_with_running_statistics_has_no_twins(monkeypatch):
    def norm(sizes, image_shape, classes):
        pixels = image_shape[1] * image_shape[2]
        return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(pixels), nn.Linear(pixels, classes))

    monkeypatch.setitem(MODELS, "norm", norm)
    assert not config(model="norm_1").twin
    with pytest.raises(ValueError, match=r"^twin=true .* without running statistics .* got norm_1"):
        config(model="norm_1", twin=True)
