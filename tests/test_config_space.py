"""Search spaces: every way to write one, and an error of one line for every invalid one."""

import re

import pytest

from experiments.config.experiment import config_from
from experiments.config.parameters import validated
from experiments.config.space import (
    DEFAULT,
    Choices,
    Range,
    contains,
    default_space,
    edge_of,
    extended,
    format_rule,
    format_space,
    joint,
    parse_space,
    widened,
)
from experiments.config.tune import TuneConfig

FORMS = [
    ("none", {}),
    ("prune_rate=0.1..0.3", {"prune_rate": Range(0.1, 0.3)}),
    ("prune_rate=.2/.5", {"prune_rate": Choices((0.2, 0.5))}),
    ("retrain_epochs=1/2/5", {"retrain_epochs": Choices((1, 2, 5))}),
    ("lr=0.0001..0.01:log", {"lr": Range(0.0001, 0.01, log=True)}),
    ("lr=1e-4..1:log", {"lr": Range(0.0001, 1.0, log=True)}),
    (
        " rewind_epoch = 0..5 , criterion = magnitude/snip ",
        {"rewind_epoch": Range(0, 5), "criterion": Choices(("magnitude", "snip"))},
    ),
    ("lr=auto/0.1", {"lr": Choices(("auto", 0.1))}),
    ("warmup_epochs=0..5", {"warmup_epochs": Range(0.0, 5.0)}),
    ("optimizer=sgd", {"optimizer": Choices(("sgd",))}),
    ("batch_size=20..1000000", {"batch_size": Range(20, 1_000_000)}),
    ("lr=0.12345678..0.3", {"lr": Range(0.12345678, 0.3)}),
]


@pytest.mark.parametrize(("text", "found"), FORMS)
def test_a_list_extends_and_overrides_the_default_space(text, found):
    assert parse_space(text) == {**DEFAULT, **found}
    assert validated(TuneConfig, {"search": text, "reinit": "rewind"}).search == text


def test_the_default_space_is_the_documented_one():
    assert format_space(DEFAULT) == "prune_rate=0.05..0.6:log,retrain_epochs=1..20:log"


@pytest.mark.parametrize(
    ("asked", "more"),
    [
        ({"reinit": "lottery"}, ""),
        ({"reinit": "rewind"}, ""),
        ({"reinit": "keep"}, ",retrain_lr=1.2e-05..0.0012:log"),
        ({"reinit": "keep", "lr": 0.1}, ",retrain_lr=0.001..0.1:log"),
        ({"reinit": "keep", "model": "lightcnn_9"}, ",retrain_lr=3.33e-05..0.00333:log"),
    ],
)
def test_only_fine_tuning_searches_its_learning_rate(asked, more):
    space = default_space(config_from(asked).resolved("digits"))
    assert format_space(space) == f"{format_space(DEFAULT)}{more}"


EDGES = [
    ("retrain_epochs", Range(1, 20, log=True), 20, "largest", "1..40:log"),
    ("retrain_epochs", Range(1, 20, log=True), 18, "", ""),
    ("retrain_epochs", Range(1, 20, log=True), 1, "smallest", None),  # the least there is
    ("retrain_epochs", Range(4, 20, log=True), 4, "smallest", "2..20:log"),
    ("retrain_epochs", Range(2, 10), 10, "largest", "2..14"),
    ("prune_rate", Range(0.05, 0.6, log=True), 0.58, "largest", "0.05..0.8:log"),
    ("prune_rate", Range(0.05, 0.6, log=True), 0.051, "smallest", "0.025..0.6:log"),
    ("prune_rate", Range(0.05, 0.6), 0.06, "smallest", "0.025..0.6"),
    ("prune_rate", Range(0.05, 0.6), 0.55, "", ""),
    ("rewind_epoch", Range(0, 5), 0, "smallest", None),
    ("criterion", Choices(("magnitude", "snip")), "snip", "", ""),
    ("lr", Range(0.1, 0.1), 0.1, "", ""),
]


@pytest.mark.parametrize(("name", "rule", "value", "end", "wider"), EDGES)
def test_a_value_at_an_edge_is_found_and_its_range_can_be_widened(name, rule, value, end, wider):
    assert edge_of(rule, value) == end
    if end:
        longer = extended(name, rule, end)
        assert (longer and format_rule(longer)) == wider
    if wider:
        assert parse_space(f"{name}={wider}")[name] == longer
        assert contains({name: longer}, {name: rule})


def test_a_space_contains_only_narrower_ones_of_the_same_parameters_and_scales():
    space = parse_space("lr=0.001..0.1:log,criterion=snip/random")
    assert contains(space, space)
    assert contains(space, parse_space("lr=0.002..0.1:log,criterion=snip/random"))
    assert not contains(space, DEFAULT)
    assert not contains(DEFAULT, space)
    for other in ("lr=0.001..0.2:log", "lr=0.001..0.1", "lr=0.001/0.1"):
        assert not contains(space, parse_space(f"{other},criterion=snip/random"))
    assert not contains(space, parse_space("lr=0.001..0.1:log,criterion=snip"))


@pytest.mark.parametrize(("text", "_found"), FORMS[1:])
def test_parsing_a_formatted_space_gives_the_same_space(text, _found):
    space = parse_space(text)
    assert parse_space(format_space(space)) == space


@pytest.mark.parametrize(
    ("text", "whole"),
    [("rewind_epoch=0..5", True), ("retrain_epochs=2..3", True), ("warmup_epochs=0..5", False)],
)
def test_a_range_holds_integers_exactly_if_the_parameter_is_one(text, whole):
    name = text.partition("=")[0]
    assert parse_space(text)[name].is_integer == whole


YAML = """
lr: {low: 0.0001, high: 1e-2, log: true}
rewind_epoch: {low: 0, high: 5}
criterion: [magnitude, snip]
retrain_epochs: [2, 4]
"""


@pytest.mark.parametrize("suffix", ["yaml", "yml"])
def test_a_yaml_file_says_the_same_as_a_list(suffix, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / f"space.{suffix}").write_text(YAML)
    text = "lr=0.0001..0.01:log,rewind_epoch=0..5,criterion=magnitude/snip,retrain_epochs=2/4"
    assert parse_space(f"space.{suffix}") == parse_space(text)


FORM = "search must be name=low..high, name=low..high:log or name=one/another"
INVALID = [
    ("lr", f"{FORM}, separated by commas, got lr"),
    ("lr=", f"{FORM}, separated by commas, got lr="),
    ("=3", f"{FORM}, separated by commas, got =3"),
    ("lr=0.1..0.2,", f"{FORM}, separated by commas, got "),
    ("lr=0.1..0.2,lr=0.3/0.4", "search: lr is given twice"),
    ("lr=1..2..3", "search: lr must be a valid number"),
    ("lr=0.1//0.2", "search: lr must be a valid number"),
    ("lr=1..2:ln", "search: only :log may follow the range of lr, got ln"),
    ("lr=2..1", "search: the low end of lr must be below its high end, got 2..1"),
    ("lr=1..1", "search: the low end of lr must be below its high end, got 1..1"),
    ("lr=0..1", "search: lr must be greater than 0, got 0"),
    ("lr=nan..1", "search: lr must be a finite number, got nan"),
    ("lr=auto..1", "search: the bounds of lr must be numbers, got auto..1"),
    ("prune_rate=0.2..1", "search: prune_rate must be less than 1, got 1"),
    ("rewind_epoch=0.5..2", "search: rewind_epoch must be a valid integer"),
    ("rewind_epoch=0..5:log", "search: rewind_epoch must be above 0 on a log scale, got 0..5"),
    ("criterion=a..b", "search: criterion is not a number: write criterion=one/another"),
    ("criterion=magnitude/x", "search: criterion must be one of magnitude, random, "),
    ("criterion=snip/snip", "search: criterion lists a value twice"),
    ("seed=0..4", "search: seed cannot be searched; these can: criterion, pruning, "),
    ("target_sparsity=0.5..0.9", "search: target_sparsity cannot be searched"),
    ("twin=true/false", "search: twin cannot be searched"),
    ("prun_rate=0.1..0.2", "search: prun_rate cannot be searched"),
]


@pytest.mark.parametrize(("text", "message"), INVALID)
def test_an_invalid_list_is_an_error_of_one_line(text, message):
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        parse_space(text)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}") as caught:
        validated(TuneConfig, {"search": text})
    assert "\n" not in str(caught.value)


INVALID_FILES = [
    ("[1", "search: space.yaml is not valid YAML: while parsing a flow sequence"),
    ("\x00", "search: space.yaml is not valid YAML: "),
    ("- lr", "search: space.yaml must map parameters to their ranges"),
    ("", "search: space.yaml must map parameters to their ranges"),
    ("lr: 3", "search: lr in space.yaml must be a list of values, or a mapping with low, high and"),
    ("lr: []", "search: lr in space.yaml must be a list of values"),
    ("lr: {low: 1}", "search: lr in space.yaml must be a list of values"),
    ("lr: {low: 1, high: 2, step: 3}", "search: lr in space.yaml must be a list of values"),
    ("lr: {low: 1, high: 2, log: 1}", "search: lr: log must be true or false, got 1"),
    ("lr: {low: [1], high: 2}", "search: lr must be a valid number, got [1]"),
    ("criterion: [magnitude, 1]", "search: criterion must be a valid string, got 1"),
    ("1: {low: 1, high: 2}", "search: 1 cannot be searched"),
]


@pytest.mark.parametrize(("content", "message"), INVALID_FILES)
def test_an_invalid_file_is_an_error_of_one_line(content, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "space.yaml").write_text(content)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}") as caught:
        validated(TuneConfig, {"search": "space.yaml"})
    assert "\n" not in str(caught.value)


def test_a_missing_file_or_one_that_is_not_text_is_an_error(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "space.yaml").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(ValueError, match=r"search: space\.yaml is not valid YAML: "):
        parse_space("space.yaml")
    with pytest.raises(OSError, match=r"'nowhere\.yaml'"):
        parse_space("nowhere.yaml")


def test_a_space_is_widened_just_enough_to_contain_the_baseline():
    space = {
        "prune_rate": Range(0.3, 0.6),
        "retrain_epochs": Range(1, 20, log=True),
        "lr": Range(0.001, 0.01, log=True),
        "criterion": Choices(("snip", "random")),
        "optimizer": Choices(("adam", "sgd")),
    }
    values = {"prune_rate": 0.2, "retrain_epochs": 40, "lr": 0.01}
    wider = widened(space, values | {"criterion": "magnitude", "optimizer": "sgd"})
    assert wider == {
        "prune_rate": Range(0.2, 0.6),
        "retrain_epochs": Range(1, 40, log=True),
        "lr": Range(0.001, 0.01, log=True),
        "criterion": Choices(("magnitude", "snip", "random")),
        "optimizer": Choices(("adam", "sgd")),
    }
    assert wider["retrain_epochs"].is_integer


def test_a_joint_space_contains_every_space():
    one = {"lr": Range(0.01, 0.1, log=True), "criterion": Choices(("magnitude", "snip"))}
    two = {"lr": Range(0.001, 0.02, log=True), "criterion": Choices(("snip", "random"))}
    both = joint([one, two, {"rewind_epoch": Range(0, 5)}])
    assert list(both) == ["lr", "criterion", "rewind_epoch"]
    assert both["lr"] == Range(0.001, 0.1, log=True)
    assert set(both["criterion"].values) == {"magnitude", "snip", "random"}
    assert both["rewind_epoch"] == Range(0, 5)
    assert both["rewind_epoch"].is_integer
