import re

import pytest
import torch

from experiments.comparison.schedule import trunks_of
from experiments.config.comparison import (
    DRAWN,
    CompareConfig,
    arms_of,
    label_of,
    seeds_of,
    trunk_of,
)
from experiments.config.parameters import STORED, parse, validated
from pruning.controls import CONTROLS
from pruning.criteria import CRITERIA, Evidence
from pruning.masks import dense_masks
from pruning.reinit import REINITS, Memory


def config(**values):
    return validated(CompareConfig, {"baselines": "none"} | values)


@pytest.mark.parametrize(
    ("text", "seeds"),
    [("1", (0,)), ("3", (0, 1, 2)), ("0,3,7", (0, 3, 7)), ("7,", (7,)), ("2,1", (2, 1))],
)
def test_seeds_are_a_number_or_a_list(text, seeds):
    assert seeds_of(text) == seeds
    assert config(seeds=text).seeds == text


INVALID = [
    ("seeds", "0", "seeds must be a number of seeds from 1 to 1000, or a list, got 0"),
    ("seeds", "x", "seeds must be a number of seeds, such as 5, or a list, such as 0,3,7"),
    ("seeds", "1,,2", "seeds must be a number of seeds, such as 5, or a list"),
    ("seeds", "1,1", "seeds must not contain a seed twice, got 1,1"),
    ("seeds", "-1", "seeds must be a number of seeds, such as 5"),
    ("seeds", "9" * 19 + ",", "seed must be less than"),
    ("reinits", "keep,lotery", "reinits must be one or more of keep, random, lottery"),
    ("reinits", "keep,keep", "reinits must not contain a name twice, got keep,keep"),
    ("reinits", "", "reinits must be one or more of"),
    ("criterion", "magnitude,x", "criterion must be one or more of magnitude, random"),
    ("workers", "0", "workers must be greater than 0, got 0"),
    ("shown_round", "0", "shown_round must be greater than or equal to 1, got 0"),
    ("rewind_epoch", "11", "rewind_epoch must be less than"),
    ("reinit", "keep", "there is no parameter reinit"),
    ("baselines", "none,unpruned", "baselines must be none or a list, got none,unpruned"),
    ("baselines", "small", "baselines must be one or more of none, random_mask"),
    ("draws", "0", "draws must be greater than or equal to 1, got 0"),
    ("retrain_lrs", "keep", "retrain_lrs must be METHOD=RATE, separated by commas"),
    ("retrain_lrs", "keep=0", "retrain_lrs must be METHOD=RATE"),
    ("retrain_lrs", "keep=inf", "retrain_lrs must be METHOD=RATE"),
    ("retrain_lrs", "keep=nan", "retrain_lrs must be METHOD=RATE"),
    ("retrain_lrs", "keep=1,keep=2", "retrain_lrs must be METHOD=RATE"),
    ("retrain_lrs", "sign=1", "retrain_lrs names sign, which is not one of the methods keep, ran"),
    ("rewind_epochs", "0,0", "rewind_epochs must not contain an epoch twice, got 0,0"),
    ("rewind_epochs", "-1", "rewind_epochs must be whole numbers of epochs"),
    ("rewind_epochs", "0,1", "rewind_epochs needs rewind or lr_rewind among reinits"),
]


@pytest.mark.parametrize(("name", "value", "message"), INVALID)
def test_an_invalid_parameter_is_rejected_up_front(name, value, message):
    also = {"reinits": "rewind", "epochs": 10} if name == "rewind_epoch" else {}
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        config(**also | {name: value})
    assert "\n" not in str(caught.value)


def test_a_trunk_that_cannot_be_trained_is_rejected():
    with pytest.raises(ValueError, match="rewind_epoch must be less than"):
        config(masks="shared", trunk="rewind", rewind_epoch=20, epochs=5)


@pytest.mark.parametrize(
    "values",
    [{"criterion": "magnitude,random"}, {"pruning": "one_shot"}, {"control": "none,inverted"}],
)
def test_shared_masks_come_from_one_trunk(values):
    with pytest.raises(ValueError, match="masks=shared"):
        config(masks="shared", **values)


def test_arms_are_all_combinations_in_the_given_order():
    arms = arms_of(config(reinits="lottery,keep", control="none,random_mask", seeds="2"))
    assert [(arm.label, arm.seed) for arm in arms] == [
        ("lottery", 0),
        ("lottery", 1),
        ("lottery random_mask", 0),
        ("lottery random_mask", 1),
        ("keep", 0),
        ("keep", 1),
        ("keep random_mask", 0),
        ("keep random_mask", 1),
    ]
    assert arms[2].method.model_dump() == {
        "reinit": "lottery",
        "criterion": "magnitude",
        "control": "random_mask",
        "pruning": "iterative",
    }
    assert arms[2].name == "lottery random_mask, seed 0"


def test_spaces_after_commas_are_allowed():
    assert config(reinits="keep, lottery") == config(reinits="keep,lottery")


def test_a_label_names_what_differs_between_methods_or_is_unusual():
    arms = arms_of(config(reinits="keep", criterion="snip", pruning="iterative,one_shot"))
    assert {arm.label for arm in arms} == {"keep snip iterative", "keep snip one_shot"}
    (only,) = {arm.label for arm in arms_of(config(reinits="keep", control="inverted", seeds="1"))}
    assert only == "keep inverted"
    (plain,) = {arm.label for arm in arms_of(config(reinits="keep", seeds="1"))}
    assert plain == "keep"


def test_the_label_of_a_method_alone_does_not_depend_on_what_a_comparison_varies():
    arms = arms_of(config(reinits="keep", criterion="magnitude,snip", seeds="1"))
    assert [arm.label for arm in arms] == ["keep magnitude", "keep snip"]
    assert [label_of(arm.method) for arm in arms] == ["keep", "keep snip"]


def test_the_trunk_may_be_an_arm_itself():
    both = config(reinits="random,lottery", seeds="1", masks="shared")
    assert trunks_of(both, arms_of(both))[0, None].name == "lottery, seed 0"
    apart = config(reinits="random", seeds="1", masks="shared", trunk="keep")
    assert trunks_of(apart, arms_of(apart))[0, None] == trunk_of(apart, 0)
    controls = config(reinits="lottery", control="shuffled_mask", seeds="1", masks="shared")
    assert trunks_of(controls, arms_of(controls))[0, None].label == "trunk (lottery)"


def test_all_of_the_main_parameters_can_be_given():
    asked = parse(CompareConfig, "compare", ["--lr", "0.1", "--model", "lenet_20", "--seeds", "2"])
    made = asked.config_of(next(arm for arm in arms_of(asked) if arm.name == "lottery, seed 1"))
    assert (made.lr, made.model, made.seed, made.reinit) == (0.1, "lenet_20", 1, "lottery")


def test_all_arms_have_twins_or_none_has():
    for twin in (False, True):
        config = validated(CompareConfig, {"twin": twin})
        assert {config.config_of(arm).twin for arm in arms_of(config)} == {twin}


def test_tasks_in_another_folder_find_the_same_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    moved = config(data_root="data", pretrained="a/b.pth").with_absolute_paths()
    assert (moved.data_root, moved.pretrained) == (f"{tmp_path}/data", f"{tmp_path}/a/b.pth")
    assert config().with_absolute_paths().pretrained == "none"


def methods(**values):
    """Label, method and own parameters of the first arm of each method."""
    arms = {arm.label: arm for arm in reversed(arms_of(config(**values)))}
    own = {label: arm.method.model_dump(exclude_defaults=True) for label, arm in arms.items()}
    return {label: own[label] | dict(arms[label].own) for label in reversed(arms)}


def test_the_three_baselines_are_added_unless_they_are_methods_already():
    plain = {"keep": {"reinit": "keep"}, "random": {"reinit": "random"}, "lottery": {}}
    baselines = {
        "random_mask": {"control": "random_mask"},
        "small_dense": {"reinit": "random", "control": "small_dense"},
        "unpruned": {"reinit": "keep", "control": "unpruned"},
    }
    assert methods(baselines="auto") == plain | baselines
    assert methods(baselines="unpruned") == plain | {"unpruned": baselines["unpruned"]}
    assert methods() == plain
    twice = methods(baselines="auto", reinits="lottery", control="none,random_mask")
    assert [*twice] == ["lottery", "lottery random_mask", "small_dense", "unpruned"]


def test_a_random_mask_is_retrained_as_the_ticket_or_else_as_the_first_method():
    assert methods(baselines="random_mask", reinits="keep,lottery")["random_mask"] == {
        "control": "random_mask"
    }
    found = methods(baselines="random_mask", reinits="sign,keep", criterion="snip,magnitude")
    assert found["random_mask"] == {
        "reinit": "sign",
        "criterion": "snip",
        "control": "random_mask",
    }
    swept = methods(baselines="random_mask", reinits="rewind,keep", rewind_epochs="0,2")
    assert swept["random_mask"] == {"reinit": "keep", "control": "random_mask"}
    alone = methods(baselines="auto", reinits="rewind", rewind_epochs="0", epochs=1)
    assert alone["random_mask"] == {"control": "random_mask"}  # rewinding to 1 would be an error


def test_of_the_baselines_only_a_random_mask_has_shared_masks_or_whole_units():
    every = ["keep", "random", "lottery", "random_mask"]
    assert [*methods(baselines="auto", masks="shared")] == every
    assert [*methods(baselines="auto", granularity="unit")] == every
    with pytest.raises(ValueError, match="small_dense"):
        config(baselines="small_dense", masks="shared")


def test_further_draws_share_the_dense_network_of_their_seed():
    arms = arms_of(config(reinits="keep,random", seeds="4,6", draws=3))
    assert [arm.label for arm in arms[::2]] == ["keep", "random", "random draw 2", "random draw 3"]
    assert [dict(arm.own).get("draw_seed") for arm in arms] == [
        *(None, None, None, None),
        *(1_000_004, 1_000_006, 2_000_004, 2_000_006),
    ]
    assert {arm.dense for arm in arms} == {(4, None), (6, None)}


def test_a_stored_comparison_is_read_whatever_the_rules_for_new_ones_are():
    old = {"reinits": "rewind", "epochs": 2, "rewind_epoch": 2}
    with pytest.raises(ValueError, match="rewind_epoch must be less than epochs"):
        config(**old)
    assert validated(CompareConfig, old, STORED).rewind_epoch == 2
    with pytest.raises(ValueError, match="epochs must be greater than 0"):
        validated(CompareConfig, {"epochs": 0}, STORED)


def test_with_shared_masks_a_random_criterion_draws_nothing():
    shared = {"masks": "shared", "criterion": "random", "draws": 2}
    assert [*methods(reinits="keep,lottery", **shared)] == ["keep random", "lottery random"]
    assert "random random draw 2" in methods(reinits="random", **shared)


def test_a_learning_rate_may_be_given_for_one_method():
    found = methods(baselines="small_dense", retrain_lrs="keep=0.01, small_dense=0.002")
    assert found["keep"] == {"reinit": "keep", "retrain_lr": 0.01}
    assert found["small_dense"]["retrain_lr"] == 0.002
    assert "retrain_lr" not in found["lottery"]
    asked = config(retrain_lrs="keep=0.01")
    assert [asked.config_of(arm).retrain_lr for arm in arms_of(asked)[::5]] == [0.01, None, None]


def test_each_epoch_to_rewind_to_is_a_method_with_a_dense_network_of_its_own():
    arms = arms_of(config(reinits="lottery,rewind", seeds="1", rewind_epochs="0,5", epochs=8))
    assert [(arm.label, arm.dense) for arm in arms] == [
        ("lottery", (0, None)),
        ("rewind epoch 0", (0, 0)),
        ("rewind epoch 5", (0, 5)),
    ]
    with pytest.raises(ValueError, match="rewind_epochs needs masks=own"):
        config(masks="shared", reinits="rewind", rewind_epochs="0,5")
    with pytest.raises(ValueError, match="rewind_epoch must be"):
        config(reinits="rewind", rewind_epochs="0,9", epochs=8)


WEIGHT = {"a.weight": torch.randn(40, 30, generator=torch.Generator().manual_seed(0))}
MASK = {"a.weight": torch.arange(1200).view(40, 30) % 2 == 0}


def _draw(seed, masks=None):
    return {"a.weight": torch.randn(40, 30, generator=torch.Generator().manual_seed(seed))}


def _restarted(name, seed):
    return REINITS[name].values(Memory(WEIGHT, WEIGHT, WEIGHT, MASK, _draw), seed)


def _scored(name, seed):
    evidence = Evidence(WEIGHT, WEIGHT, MASK, lambda state: state, lambda state: state)
    return CRITERIA[name].scores(evidence, seed)


def _masked(name, seed):
    return CONTROLS[name].masks(MASK, dense_masks(WEIGHT, MASK), seed)


DRAWING = [
    *((_restarted, name) for name in REINITS),
    *((_scored, name) for name in CRITERIA),
    *((_masked, name) for name in CONTROLS if name != "small_dense"),  # which draws its values
]


@pytest.mark.parametrize(
    ("made", "name"), DRAWING, ids=lambda value: getattr(value, "__name__", value)
)
def test_what_depends_on_the_draw_is_known(made, name):
    first, second = (made(name, seed)["a.weight"] for seed in (0, 1))
    assert torch.equal(first, second) == (name not in DRAWN)
