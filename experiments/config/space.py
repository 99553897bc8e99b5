"""Space: which parameters are searched, and between which bounds?

Written on a command line as `lr=0.0001..0.01:log,batch_size=20..120,criterion=magnitude/snip`, or
in a YAML file as

    lr: {low: 0.0001, high: 0.01, log: true}
    batch_size: {low: 20, high: 120}
    criterion: [magnitude, snip]
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

import yaml

from experiments.config.experiment import Config
from experiments.config.parameters import AUTO, validated

Value = float | int | str
SUFFIXES = (".yaml", ".yml")
FORM = "name=low..high, name=low..high:log or name=one/another"

# What makes trials differ in more than how well they do, or does not change them at all.
NOT_SEARCHED = {
    *("reinit", "control", "dataset", "model", "pretrained", "target_sparsity", "rounds"),
    *("train_limit", "eval_every", "precision", "device", "data_root"),
    *("seed", "branch_of", "masks", "resume"),
}


@dataclass(frozen=True)
class Range:
    """All numbers from `low` to `high`, both included; whole ones only if both are `int`."""

    low: float
    high: float
    log: bool = False  # as many between 1 and 10 as between 10 and 100

    @property
    def whole(self) -> bool:
        """Whether only whole numbers are in it."""
        return isinstance(self.low, int) and isinstance(self.high, int)


@dataclass(frozen=True)
class Choices:
    """These values and no others."""

    values: tuple[Value, ...]


Space = Mapping[str, Range | Choices]

DEFAULT: Space = {
    "prune_rate": Range(0.05, 0.6),
    "retrain_epochs": Range(1, 20, log=True),
}


def parse_space(text: str) -> Space:
    """`DEFAULT`, with what `text` adds or replaces: a list as above, a YAML file, or "none".

    Raises:
        ValueError: If it cannot be read, or names what is no parameter to search, or a value that
            the parameter cannot have.
    """
    if text == "none":
        return DEFAULT
    if text.endswith(SUFFIXES):
        return {**DEFAULT, **_from_file(Path(text))}
    found: dict[str, Range | Choices] = {}
    for item in text.split(","):
        name, equals, rule = (part.strip() for part in item.partition("="))
        if not name or not equals or not rule:
            raise ValueError(f"search must be {FORM}, with commas between them, got {item.strip()}")
        if name in found:
            raise ValueError(f"search: {name} is named twice")
        found[name] = _from_text(name, rule)
    return {**DEFAULT, **found}


def _from_text(name: str, rule: str) -> Range | Choices:
    low, dots, high = rule.partition("..")
    if not dots:
        return _choices(name, rule.split("/"))
    high, colon, how = high.partition(":")
    if colon and how != "log":
        raise ValueError(f"search: what follows the range of {name} must be log, got {how}")
    return _range(name, low, high, bool(colon))


def _from_file(path: Path) -> Space:
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"search: {path} is no YAML: {' '.join(str(error).split())}") from None
    if not isinstance(found, dict):
        raise ValueError(f"search: {path} must hold a mapping from parameters to their ranges")
    space: dict[str, Range | Choices] = {}
    for name, rule in found.items():
        if isinstance(rule, list) and rule:
            space[str(name)] = _choices(str(name), rule)
        elif isinstance(rule, dict) and {"low", "high"} <= rule.keys() <= {"low", "high", "log"}:
            log = rule.get("log", False)
            if not isinstance(log, bool):
                raise ValueError(f"search: log of {name} must be true or false, got {log}")
            space[str(name)] = _range(str(name), rule["low"], rule["high"], log)
        else:
            raise ValueError(
                f"search: {name} in {path} must be a list of values, or have low, high and "
                f"perhaps log, got {rule}"
            )
    return space


def _range(name: str, low: object, high: object, log: bool) -> Range:
    if not _mentions(_annotation(name), int, float):
        raise ValueError(f"search: {name} is no number, write {name}=one/another")
    first, last = _value(name, low), _value(name, high)
    if isinstance(first, str) or isinstance(last, str):
        raise ValueError(f"search: the bounds of {name} must be numbers, got {low}..{high}")
    if _mentions(_annotation(name), float):
        first, last = float(first), float(last)
    if not first < last:
        raise ValueError(f"search: {name} must have a low below its high, got {low}..{high}")
    if log and first <= 0:
        raise ValueError(f"search: {name} with log must be above 0, got {low}..{high}")
    return Range(first, last, log)


def _choices(name: str, values: list[Any]) -> Choices:
    found = tuple(_value(name, value) for value in values)
    if len(set(found)) < len(found):
        raise ValueError(f"search: a value of {name} is named twice")
    return Choices(found)


def _value(name: str, text: object) -> Value:
    """The value of a parameter as its config has it; checked."""
    _annotation(name)  # tells of what is no parameter to search
    try:
        value = getattr(validated(Config, {name: text}), name)
    except ValueError as error:
        raise ValueError(f"search: {error}") from None
    return AUTO if value is None else value


def _annotation(name: str) -> Any:
    if name not in Config.model_fields or name in NOT_SEARCHED:
        known = ", ".join(key for key in Config.model_fields if key not in NOT_SEARCHED)
        raise ValueError(f"search: {name} is no parameter to search; these are: {known}")
    return Config.model_fields[name].annotation


def _mentions(annotation: Any, *kinds: type) -> bool:
    return annotation in kinds or any(map(partial(_has, kinds), get_args(annotation)))


def _has(kinds: tuple[type, ...], annotation: Any) -> bool:
    return _mentions(annotation, *kinds)


def containing(space: Space, values: Mapping[str, Value]) -> Space:
    """The space, widened where it must be for `values` to lie in it."""
    return {name: _containing(rule, values[name]) for name, rule in space.items()}


def _containing(rule: Range | Choices, value: Value) -> Range | Choices:
    if isinstance(rule, Choices):
        return rule if value in rule.values else Choices((value, *rule.values))
    assert not isinstance(value, str)
    return replace(rule, low=min(rule.low, value), high=max(rule.high, value))


def in_words(space: Space) -> str:
    """The space as one would write it."""
    return ",".join(f"{name}={_in_words(rule)}" for name, rule in space.items())


def _in_words(rule: Range | Choices) -> str:
    if isinstance(rule, Choices):
        return "/".join(map(str, rule.values))
    return f"{rule.low:g}..{rule.high:g}{':log' if rule.log else ''}"
