import re

import pytest

from experiments.comparison.schedule import trunks_of
from experiments.config.comparison import CompareConfig, arms_of, label_of, seeds_of, trunk_of
from experiments.config.parameters import parse, validated


def config(**values):
    return validated(CompareConfig, values)


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
]


@pytest.mark.parametrize(("name", "value", "message"), INVALID)
def test_an_invalid_parameter_is_rejected_up_front(name, value, message):
    also = {"reinits": "rewind", "epochs": 10} if name == "rewind_epoch" else {}
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        config(**also, **{name: value})
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
    assert trunks_of(both, arms_of(both))[0].name == "lottery, seed 0"
    apart = config(reinits="random", seeds="1", masks="shared", trunk="keep")
    assert trunks_of(apart, arms_of(apart))[0] == trunk_of(apart, 0)
    controls = config(reinits="lottery", control="shuffled_mask", seeds="1", masks="shared")
    assert trunks_of(controls, arms_of(controls))[0].label == "trunk (lottery)"


def test_all_of_the_main_parameters_can_be_given():
    asked = parse(CompareConfig, "compare", ["--lr", "0.1", "--model", "lenet_20", "--seeds", "2"])
    arm = arms_of(asked)[-1]
    made = asked.config_of(arm.method, arm.seed)
    assert (made.lr, made.model, made.seed, made.reinit) == (0.1, "lenet_20", 1, "lottery")


def test_all_arms_have_twins_or_none_has():
    for twin in (False, True):
        config = validated(CompareConfig, {"twin": twin})
        assert {config.config_of(a.method, a.seed).twin for a in arms_of(config)} == {twin}


def test_tasks_in_another_folder_find_the_same_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    moved = config(data_root="data", pretrained="a/b.pth").with_absolute_paths()
    assert (moved.data_root, moved.pretrained) == (f"{tmp_path}/data", f"{tmp_path}/a/b.pth")
    assert config().with_absolute_paths().pretrained == "none"
