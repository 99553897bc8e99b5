"""Rounds that prune whole units: neurons of a LeNet, channels of a LightCNN."""

from itertools import pairwise

import pytest
import torch

from datasets import Images, split_images
from experiments.config.experiment import config_from
from experiments.rounds.plan import left_after, plan_rounds, prices_of
from experiments.rounds.rounds import BaseRun
from models import MODELS, Architecture
from models.lenet import lenet
from pruning.controls import CONTROLS
from pruning.criteria import CRITERIA
from pruning.masks import SCOPES, dense_masks
from pruning.reinit import REINITS
from pruning.units import TARGETS, cost, cut, spread, units_of
from tests.rounds import run

LENET = {"model": "lenet_30_20", "epochs": 2, "retrain_epochs": 1, "rounds": 3}


def config(**changes):
    given = LENET | {"granularity": "unit", "device": "cpu"} | changes
    return config_from(given).resolved("digits")


def architecture_of(settings, data):
    return Architecture(settings.model, data.image_shape, data.classes)


def check_masks(settings, data, results):
    """Whole units survive, as many as the plan has room for; returns them for each round."""
    architecture = architecture_of(settings, data)
    prices, plan = prices_of(settings, architecture), plan_rounds(settings, data)
    assert len(results) == len(plan) + 1
    found = []
    for number, result in enumerate(results):
        masks, widths = result.network.masks, architecture.widths
        kept = units_of(masks, widths)
        whole = spread(kept, dense_masks(masks, masks), widths)
        assert all(whole[name].equal(mask) for name, mask in masks.items())
        assert all(units.any() for units in kept.values())
        state = result.network.state
        assert not any(state[name][~mask].any() for name, mask in masks.items())
        if number:
            (goal,) = left_after(plan[:number], architecture.sizes, prices).values()
            most = max(
                cost(dense_masks(masks, masks), prices)
                - cost(
                    spread(kept | {width.name: first}, dense_masks(masks, masks), widths), prices
                )
                for width in widths
                for first in [torch.arange(width.count) > 0]
            )
            assert goal - most < cost(masks, prices) <= goal
        found.append(kept)
    return found


ARMS = [{"reinit": reinit} for reinit in REINITS if reinit != "random_scaled"]
ARMS += [{"criterion": criterion} for criterion in CRITERIA]
CHOOSING = [name for name, control in CONTROLS.items() if control.network == "pruned"]
ARMS += [{"control": control} for control in CHOOSING]
ARMS += [{"pruning": "one_shot"}, {"pruning": "one_shot", "criterion": "synflow"}]


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("arm", ARMS, ids=lambda arm: "-".join(arm.values()))
def test_every_arm_prunes_whole_units_down_to_the_plan(arm, scope, data):
    settings = config(scope=scope, **arm)
    kept = check_masks(settings, data, run(settings, data))
    if arm.get("control") != "random_mask" and "pruning" not in arm:
        for before, after in pairwise(kept):
            assert not any((after[name] & ~before[name]).any() for name in after)


@pytest.mark.parametrize("target", TARGETS)
def test_the_target_counts_weights_or_multiply_adds(target, data):
    settings = config(rounds=0, target_sparsity=0.8, target=target, epochs=1)
    last = run(settings, data)[-1].metrics
    pruned = last["sparsity"] if target == "weights" else 1 - 1 / last["theoretical_speedup"]
    assert 0.8 <= pruned < 0.85


def test_a_lightcnn_loses_channels_of_all_stages():
    draw = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (24, 1, 20, 20), generator=draw, dtype=torch.uint8)
    labels = torch.arange(24) % 3
    raw = Images("noise", 255, (pixels[:, 0], labels), (pixels[:6, 0], labels[:6]))
    faces = split_images("noise", raw, 0.2, 0, 0)
    settings = config_from(
        {"model": "lightcnn_29_v2", "epochs": 1, "retrain_epochs": 1, "rounds": 2}
        | {"granularity": "unit", "target": "macs", "prune_rate": 0.5, "device": "cpu"}
    ).resolved("faces")
    assert settings.engine == "compact"
    results = run(settings, faces)
    kept = check_masks(settings, faces, results)
    assert all(not units.all() for units in kept[-1].values())
    assert 4 <= results[-1].metrics["theoretical_speedup"] < 4.1


def test_layers_lose_about_the_same_share_of_their_units(data):
    settings = config(model="lenet_200_100_50", epochs=1, rounds=0, target_sparsity=0.75)
    kept = check_masks(settings, data, run(settings, data))[-1]
    shares = [float(units.float().mean()) for units in kept.values()]
    assert max(shares) - min(shares) <= 0.03


def test_the_same_units_survive_after_a_resume(data):
    settings = config(criterion="gradient", reinit="rewind")
    results = run(settings, data)
    again = run(settings, data, after=results[1].network)
    for one, other in zip(results[2:], again, strict=True):
        assert one.metrics == other.metrics
        for name, value in one.network.state.items():
            assert value.equal(other.network.state[name])


@pytest.mark.parametrize("control", [name for name in CHOOSING if name != "inverted"])
def test_shared_masks_keep_whole_units_under_each_control(control, data):
    base = run(config(), data)
    settings = config(masks="shared", branch_of="1" * 32, control=control, reinit="random")
    shared = run(settings, data, base=BaseRun(base[0], lambda number: base[number].network))
    widths = architecture_of(settings, data).widths
    for one, other in zip(base, shared, strict=True):
        theirs, ours = (units_of(each.network.masks, widths) for each in (one, other))
        assert [units.sum() for units in ours.values()] == [
            units.sum() for units in theirs.values()
        ]
        whole = spread(ours, dense_masks(one.network.masks, one.network.masks), widths)
        assert all(whole[name].equal(mask) for name, mask in other.network.masks.items())
    same = all(ours[name].equal(units) for name, units in theirs.items())
    assert same == (control == "none")


def test_magnitude_prunes_the_neuron_with_the_smallest_weights(data):
    settings = config(epochs=1, rounds=1, prune_rate=0.03)  # one neuron of fc1
    dense, pruned = run(settings, data)
    widths = architecture_of(settings, data).widths
    kept = units_of(pruned.network.masks, widths)
    state, sums = dense.network.state, {}
    for number, name in ((1, "fc1"), (2, "fc2")):
        made, read = state[f"fc{number}.weight"].abs(), state[f"fc{number + 1}.weight"].abs()
        sums[name] = made.sum(1) + read.sum(0)
    gone = [
        (name, units.logical_not().nonzero().item())
        for name, units in kept.items()
        if not units.all()
    ]
    assert gone == [("fc1", int(sums["fc1"].argmin()))]


def test_a_target_that_no_network_has_is_an_error(data):
    with pytest.raises(ValueError, match=r"at most 97\.2% of the weights of lenet_30_20 can be"):
        plan_rounds(config(rounds=0, target_sparsity=0.99), data)


def test_a_model_that_does_not_state_its_units_is_an_error(data, monkeypatch):
    monkeypatch.setitem(MODELS, "mlp", lenet)
    with pytest.raises(
        ValueError, match=r"needs a model that states its units \(lenet, lightcnn\)"
    ):
        plan_rounds(config(model="mlp_30_20"), data)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"target": "macs"}, "target=macs needs granularity=unit"),
        ({"granularity": "unit", "output_prune_rate": 0.1}, "output_prune_rate is for granularity"),
        (
            {"granularity": "unit", "reinit": "random_scaled"},
            "reinit=random_scaled is for granularity=weight: where whole units are pruned",
        ),
        (
            {"granularity": "units"},
            "granularity must be one of weight, unit, got units .did you mean unit",
        ),
    ],
)
def test_parameters_that_contradict_each_other(given, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        config_from(given)


@pytest.mark.parametrize("name", ["lenet_300_100", "lightcnn_9"])
def test_random_values_have_the_variance_of_the_smaller_network(name):
    architecture = Architecture(name, (1, 32, 32), 10)
    dense = architecture.draw(3)
    full = {
        weight: torch.ones_like(dense[weight], dtype=torch.bool) for weight in architecture.prunable
    }
    half = {width.name: torch.arange(width.count) % 2 == 0 for width in architecture.widths}
    masks = spread(half, full, architecture.widths)
    drawn = architecture.draw(3, masks)
    small = cut(drawn, half, architecture.widths)
    for weight in architecture.prunable:
        outputs, inputs = small[weight].shape[:2]
        positions = small[weight][0, 0].numel()
        glorot = (2 / ((outputs + inputs) * positions)) ** 0.5
        if small[weight].numel() > 2000:
            assert small[weight].std().item() == pytest.approx(glorot, rel=0.1)
    assert architecture.draw(3, full)[weight].equal(dense[weight])
