"""Controls that train another network than the pruned one: a small dense one, or the whole."""

from fractions import Fraction
from itertools import pairwise
from math import ceil

import pytest
import torch

from experiments.config.comparison import CompareConfig, arms_of
from experiments.config.experiment import config_from
from experiments.config.parameters import validated
from experiments.rounds.plan import left_after, plan_rounds, prices_of
from experiments.training.loop import derive_seed
from models import MODELS, Architecture
from models.lenet import lenet
from pruning.masks import apply_masks
from pruning.reinit import REINITS
from pruning.units import units_of
from tests import rounds
from tests.rounds import run, same


def weights_of(first, second):
    return 64 * first + first * second + second * 10


TOTAL = weights_of(30, 20)


def config(**changes):
    return rounds.config(**{"epochs": 2, "retrain_epochs": 1} | changes)


SMALL = {"control": "small_dense", "reinit": "random"}


def planned(settings, data):
    architecture = Architecture(settings.model, data.image_shape, data.classes)
    plan, prices = plan_rounds(settings, data), prices_of(settings, architecture)
    return [
        sum(left_after(plan[:number], architecture.sizes, prices).values())
        for number in range(1, len(plan) + 1)
    ]


def test_a_small_dense_network_has_the_first_units_and_barely_more_weights_than_planned(data):
    settings = config(**SMALL, rounds=8, epochs=1)
    dense, *later = run(settings, data)
    widths = Architecture("lenet_30_20", (1, 8, 8), 10).widths
    shares = sorted({Fraction(kept, n) for n in (30, 20) for kept in range(1, n + 1)})
    counts = [(ceil(30 * share), ceil(20 * share)) for share in shares]
    assert dense.metrics["remaining_weights"] == TOTAL
    for result, goal in zip(later, planned(settings, data), strict=True):
        enough = (each for each in counts if weights_of(*each) >= goal)
        first, second = next(enough)
        kept = units_of(result.network.masks, widths)
        assert kept["fc1"].equal(torch.arange(30) < first)
        assert kept["fc2"].equal(torch.arange(20) < second)
        assert result.metrics["remaining_weights"] == weights_of(first, second) >= goal
        assert result.metrics["sparsity"] == 1 - weights_of(first, second) / TOTAL
    for before, after in pairwise([dense, *later]):
        for name, mask in after.network.masks.items():
            assert not (mask & ~before.network.masks[name]).any()


def test_a_small_dense_network_starts_from_new_values_with_its_own_variance(data):
    results = run(config(**SMALL, retrain_lr=1e-300), data)
    for number, result in enumerate(results[1:], 1):
        masks = result.network.masks
        drawn = Architecture("lenet_30_20", (1, 8, 8), 10).draw(
            derive_seed(0, number, "reinit"), masks
        )
        assert same(result.network.state, apply_masks(drawn, masks))


def test_at_least_one_unit_of_each_layer_stays(data):
    settings = config(**SMALL, rounds=1, prune_rate=0.99)
    last = run(settings, data)[-1].metrics
    assert last["remaining_weights"] == weights_of(1, 1) > planned(settings, data)[-1]


@pytest.mark.parametrize("arm", [SMALL, {"control": "unpruned", "reinit": "keep"}], ids=str)
def test_continuing_from_any_round_changes_nothing(arm, data):
    settings = config(**arm)
    whole = run(settings, data)
    for cut in range(3):
        for straight, continued in zip(
            whole[cut + 1 :], run(settings, data, whole[cut].network), strict=True
        ):
            assert straight.metrics == continued.metrics
            assert same(straight.network.state, continued.network.state)


@pytest.mark.parametrize("granularity", ["weight", "unit"])
@pytest.mark.parametrize("pruning", ["iterative", "one_shot"])
@pytest.mark.parametrize("reinit", REINITS)
def test_an_unpruned_network_keeps_every_weight(reinit, pruning, granularity, data):
    if (reinit, granularity) == ("random_scaled", "unit"):
        return  # an error
    given = {"reinit": reinit, "pruning": pruning, "granularity": granularity}
    results = run(config(control="unpruned", **given), data)
    assert [result.metrics["sparsity"] for result in results] == [0] * 4
    assert [result.network.round for result in results] == [0, 1, 2, 3]


def test_an_unpruned_network_is_trained_on_from_where_it_was(data):
    results = run(config(control="unpruned", reinit="keep"), data)
    still = run(config(control="unpruned", reinit="keep", retrain_lr=1e-300), data)
    assert all(same(each.network.state, still[0].network.state) for each in still)
    for before, after in pairwise(results):
        assert same(after.network.before, before.network.state)
        assert not same(after.network.state, before.network.state)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"control": "small_dense", "reinit": "keep", "pruning": "one_shot"},
            "control=small_dense replaces the pruned network with another one: it needs "
            "reinit=random, pruning=iterative, got reinit=keep, pruning=one_shot",
        ),
        (SMALL | {"reinit": "random_scaled"}, "needs reinit=random, got reinit=random_scaled"),
        (SMALL | {"criterion": "snip"}, "needs criterion=magnitude, got criterion=snip"),
        (SMALL | {"granularity": "unit"}, "needs granularity=weight, got granularity=unit"),
        (SMALL | {"masks": "shared", "branch_of": "0" * 32}, "needs masks=own, got masks=shared"),
        ({"control": "unpruned", "criterion": "snip"}, "needs criterion=magnitude, got"),
        (
            {"control": "unpruned", "masks": "shared", "branch_of": "0" * 32},
            "needs masks=own, got masks=shared",
        ),
    ],
)
def test_what_a_control_needs_is_an_error_in_one_line(given, message):
    with pytest.raises(ValueError, match=message) as caught:
        config_from(given)
    assert "\n" not in str(caught.value)


def test_a_model_that_does_not_state_its_units_has_no_small_network(data, monkeypatch):
    monkeypatch.setitem(MODELS, "mlp", lenet)
    with pytest.raises(ValueError, match=r"control=small_dense needs a model that states its unit"):
        plan_rounds(config(**SMALL, model="mlp_30_20"), data)


def test_a_comparison_has_the_control_with_the_method_that_it_needs_only():
    def labels(**changes):
        asked = {"seeds": "1", "reinits": "keep,random,lottery", "baselines": "none"} | changes
        return [arm.label for arm in arms_of(validated(CompareConfig, asked))]

    assert labels(control="none,small_dense,unpruned") == [
        *("keep", "keep unpruned", "random", "random small_dense", "random unpruned"),
        *("lottery", "lottery unpruned"),
    ]
    with pytest.raises(ValueError, match="needs reinit=random, got reinit=keep"):
        labels(reinits="keep,lottery", control="none,small_dense")
