"""Searches: costs counted by hand, budgets, names, and which settings define a study."""

import re
from dataclasses import replace

import pytest

from experiments.config.parameters import validated
from experiments.config.recipes import RECIPES
from experiments.config.space import Choices, Range
from experiments.config.tune import TuneConfig, methods_of
from tests.searching import search_of


def test_all_means_the_three_methods_of_the_project():
    assert methods_of("all") == ("keep", "random", "lottery")
    assert methods_of("keep, sign") == ("keep", "sign")


COSTS = [  # rounds until 10% of the weights remain, overshooting by at most 1/20 of a round
    (0.2, 10, 11),  # 0.8^10 = 10.7%
    (0.5, 3, 4),  # 0.5^3 = 12.5%, 0.5^4 = 6.3%
    (0.6, 1, 3),  # 0.4^2 = 16%, 0.4^3 = 6.4%
    (0.9, 7, 1),
    (0.05, 1, 45),  # 0.95^44 = 10.5%
]


@pytest.mark.parametrize(("rate", "epochs", "rounds"), COSTS)
def test_a_trial_costs_the_retraining_of_its_rounds(rate, epochs, rounds):
    cost = search_of(epochs=4).cost({"prune_rate": rate, "retrain_epochs": epochs})
    assert (cost.rounds, cost.retraining) == (rounds, rounds * epochs)


def test_a_prune_rate_that_is_too_small_is_an_error():
    search = search_of(model="lenet_3")
    with pytest.raises(ValueError, match="prune_rate is too small: round 1 would remove no weight"):
        search.cost({"prune_rate": 0.001, "retrain_epochs": 1})


def test_the_budget_defaults_to_the_cost_of_the_baseline():
    assert search_of().budget is None
    assert search_of(objective="accuracy").budget == 110
    usual = search_of(objective="accuracy", prune_rate=0.5, retrain_epochs=3)
    assert usual.budget == 12
    assert search_of(objective="accuracy", budget_epochs=40).budget == 40


def test_a_trial_may_cost_exactly_the_budget_but_no_more():
    search = search_of(objective="accuracy", budget_epochs=12)
    assert search.is_affordable({"prune_rate": 0.5, "retrain_epochs": 3})
    assert not search.is_affordable({"prune_rate": 0.5, "retrain_epochs": 4})
    assert search.is_affordable({"prune_rate": 0.6, "retrain_epochs": 4})
    assert search_of().is_affordable({"prune_rate": 0.05, "retrain_epochs": 20})


def test_the_baseline_has_the_defaults_or_what_the_command_sets():
    assert search_of().baseline == {"prune_rate": 0.2, "retrain_epochs": 10}
    changed = search_of(prune_rate=0.7, retrain_epochs=25, lr=0.5, search="lr=0.001..0.01:log")
    assert changed.baseline == {"prune_rate": 0.7, "retrain_epochs": 25, "lr": 0.5}
    assert changed.space == {
        "prune_rate": Range(0.05, 0.7, log=True),
        "retrain_epochs": Range(1, 25, log=True),
        "lr": Range(0.001, 0.5, log=True),
    }


def test_the_baseline_is_auto_where_the_choices_include_auto():
    search = search_of(search="lr=auto/0.1,criterion=snip/random,optimizer=adam/sgd")
    assert search.baseline["lr"] == "auto"
    assert search.baseline["optimizer"] == "adam"
    assert search.space["criterion"] == Choices(("magnitude", "snip", "random"))
    assert search_of(search="lr=auto/0.1", lr=0.2).space["lr"] == Choices((0.2, "auto", 0.1))


def test_only_methods_that_rewind_search_the_rewind_epoch():
    asked = {"reinit": "keep,rewind", "search": "rewind_epoch=0..5,lr=0.001..0.01"}
    assert search_of("rewind", **asked).space["rewind_epoch"] == Range(0, 5)
    keep = search_of("keep", **asked)
    assert "lr" in keep.space
    assert "rewind_epoch" not in keep.space | keep.baseline


def test_a_study_is_named_after_data_model_and_method():
    assert search_of("keep").name == "weight-loss/digits/lenet_300_100/keep"
    assert search_of("keep", study="mine", model="lenet_20").name == "mine/keep"


def test_each_trial_has_the_scope_of_its_criterion_and_the_code_of_both_counts():
    search = search_of(search="criterion=magnitude/snip")
    assert search.resolved(search.baseline).scope == "layer"
    assert search.resolved(search.baseline | {"criterion": "snip"}).scope == "global"
    layers = search_of(search="criterion=magnitude/snip", scope="layer")
    assert layers.resolved(search.baseline | {"criterion": "snip"}).scope == "layer"
    assert search.settings()["code"] != layers.settings()["code"]


DIFFERENT = [
    {"objective": "accuracy"},
    {"objective": "accuracy", "budget_epochs": 40},
    {"seeds_per_trial": 2},
    {"seed": 1},
    {"criterion": "snip"},
    {"pruning": "one_shot"},
    {"search": "lr=0.001..0.01"},
    {"search": "prune_rate=0.1..0.6"},
    {"target_sparsity": 0.8},
    {"epochs": 3},
    {"retrain_epochs": 3},
    {"prune_rate": 0.3},
    {"model": "lenet_20"},
    {"optimizer": "sgd"},
    {"train_limit": 100},
]
SAME = [
    {"trials": 3},
    {"workers": 7},
    {"storage": "sqlite:///x.db"},
    {"data_root": "elsewhere"},
    {"patience": 3},
    {"confirm_seeds": 9},
    {"tolerance": 0.1},
    {"reinit": "all"},
    {"executor": "ray", "ray_address": "127.0.0.1:6379"},
]


@pytest.mark.parametrize("asked", DIFFERENT, ids=str)
def test_parameters_that_can_change_results_change_the_settings(asked):
    assert search_of(**asked).settings() != search_of().settings()


@pytest.mark.parametrize("asked", SAME, ids=str)
def test_other_parameters_do_not_change_the_settings(asked):
    assert search_of(**asked).settings() == search_of().settings()


def test_settings_include_the_method_and_the_data():
    settings = search_of("keep").settings()
    assert settings != search_of("lottery").settings()
    assert settings["reinit"] == "keep"
    assert settings["data"] == ["digest"]


def test_another_default_of_a_recipe_changes_the_settings(monkeypatch):
    fixed, before = search_of("keep", retrain_lr=0.0003), search_of("keep").settings()
    kept = fixed.settings()
    changed = replace(RECIPES["lenet"], fine_tune_share=0.5)
    monkeypatch.setitem(RECIPES, "lenet", changed)
    assert search_of("keep").settings() != before
    longer = replace(RECIPES["lenet"], epochs=11)
    monkeypatch.setitem(RECIPES, "lenet", longer)
    assert search_of("keep", retrain_lr=0.0003).settings() != kept


def test_a_momentum_that_no_trial_would_use_is_rejected():
    with pytest.raises(ValueError, match="search: momentum requires optimizer=sgd"):
        search_of(search="momentum=0..0.9")
    for asked in ({"optimizer": "sgd"}, {"search": "momentum=0..0.9,optimizer=sgd/adam"}):
        assert "momentum" in search_of(**({"search": "momentum=0..0.9"} | asked)).space


def test_no_trial_uses_a_fresh_seed():
    config = validated(TuneConfig, {"seed": 5, "seeds_per_trial": 3, "confirm_seeds": 2})
    assert list(config.seeds()) == [5, 6, 7]
    assert list(config.fresh_seeds()) == [1005, 1006]


INVALID = [
    (
        {"reinit": "lotery"},
        "reinit must be all, or a list of different methods of keep, random, lottery",
    ),
    ({"reinit": "keep,keep"}, "reinit must be all, or a list of different methods of "),
    ({"trials": 0}, "trials must be greater than 0, got 0"),
    ({"objective": "speed"}, "objective must be one of pareto, accuracy, got speed"),
    (
        {"rounds": 3},
        "rounds cannot be set in a search, whose trials all reach target_sparsity, got rounds=3",
    ),
    ({"budget_epochs": 3}, "budget_epochs requires objective=accuracy"),
    ({"budget_epochs": 0}, "budget_epochs must be greater than 0, got 0"),
    ({"confirm_seeds": 1001}, "confirm_seeds must be less than or equal to 1000, got 1001"),
    ({"executor": "slurm"}, "executor must be one of processes, ray, inline, got slurm"),
    ({"workers": 0}, "workers must be greater than 0, got 0"),
    ({"patience": -1}, "patience must be greater than or equal to 0, got -1"),
    (
        {"reinit": "keep,rewind", "epochs": 2, "rewind_epoch": 3},
        "rewind_epoch must be less than epochs (2), after which nothing is left to train, got 3",
    ),
]


@pytest.mark.parametrize(("asked", "message"), INVALID, ids=str)
def test_an_invalid_parameter_is_an_error_of_one_line(asked, message):
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        validated(TuneConfig, asked)
    assert "\n" not in str(caught.value)
