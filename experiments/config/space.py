"""Space: which parameters a search varies, and over which values.

Written on a command line as `lr=0.0001..0.01:log,batch_size=20..120,criterion=magnitude/snip`, or
in a YAML file as:

    lr: {low: 0.0001, high: 0.01, log: true}
    batch_size: {low: 20, high: 120}
    criterion: [magnitude, snip]
"""

import math
import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Any, get_args

import yaml

from experiments.config.experiment import Config, Resolved
from experiments.config.fields import Seeds
from experiments.config.parameters import AUTO, validated
from experiments.config.recipes import defaults_for
from experiments.processes.terminal import did_you_mean
from pruning.files import read_whole
from pruning.reinit import REINITS

Value = float | int | str
SUFFIXES = (".yaml", ".yml")
FORM = "name=low..high, name=low..high:log or name=one/another"

# These either make trials incomparable or do not change their results.
NOT_SEARCHED = {
    *("reinit", "control", "dataset", "model", "pretrained"),
    *("target", "target_sparsity", "rounds"),
    *("pixels", "train_limit", "eval_every", "precision", "engine", "device", "data_root"),
    "twin",
    *Seeds.model_fields,
    *("branch_of", "masks", "resume"),
}


@dataclass(frozen=True)
class Range:
    """All numbers from `low` to `high`, both included; only integers if both are `int`."""

    low: float
    high: float
    log: bool = False  # whether it is sampled on a log scale

    @property
    def is_integer(self) -> bool:
        """Whether it holds integers only."""
        return isinstance(self.low, int) and isinstance(self.high, int)


@dataclass(frozen=True)
class Choices:
    """A finite set of values."""

    values: tuple[Value, ...]


Space = Mapping[str, Range | Choices]

DEFAULT: Space = {
    "prune_rate": Range(0.05, 0.6, log=True),
    "retrain_epochs": Range(1, 20, log=True),
}
MOST_BYTES = 1 << 16  # of a file with ranges
MOST_DEPTH = 3  # of its lists and mappings
EDGE = 0.02  # share of a range that counts as its edge
RETRAIN_LR = (1 / 30, 10 / 3)  # times its default; searched for methods that continue to train


def default_space(config: Resolved) -> Space:
    """What a search with this method varies by default.

    Methods that keep the trained weights fine-tune at a constant rate, which decides how well.
    """
    if REINITS[config.reinit].schedule != "constant":
        return DEFAULT
    default = config.lr * defaults_for(config.model).fine_tune_share
    low, high = (float(f"{default * share:.3g}") for share in RETRAIN_LR)
    return {**DEFAULT, "retrain_lr": Range(low, high, log=True)}


def parse_space(text: str, default: Space = DEFAULT) -> Space:
    """`default`, extended and overridden by `text`: a list as above, a YAML file, or "none".

    Raises:
        ValueError: If `text` cannot be read, a parameter cannot be searched, or a value is invalid.
    """
    if text == "none":
        return default
    if text.endswith(SUFFIXES):
        return {**default, **_from_file(Path(text))}
    found: dict[str, Range | Choices] = {}
    for item in text.split(","):
        name, equals, rule = (part.strip() for part in item.partition("="))
        if not name or not equals or not rule:
            raise ValueError(f"search must be {FORM}, separated by commas, got {item.strip()}")
        if name in found:
            raise ValueError(f"search: {name} is given twice")
        found[name] = _from_text(name, rule)
    return {**default, **found}


def _from_text(name: str, rule: str) -> Range | Choices:
    low, dots, high = rule.partition("..")
    if not dots:
        return _choices(name, rule.split("/"))
    high, colon, how = high.partition(":")
    if colon and how != "log":
        raise ValueError(f"search: only :log may follow the range of {name}, got {how}")
    return _range(name, low, high, bool(colon))


def _from_file(path: Path) -> Space:
    try:
        content = read_whole(path, MOST_BYTES)
    except ValueError as error:
        raise ValueError(f"search: {error}") from None
    try:
        text = content.decode()
        _check_events(yaml.parse(text))
        found = yaml.safe_load(text)
    except Exception as error:  # PyYAML raises many types, such as for a value that misfits its tag
        why = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"search: {path} is not valid YAML: {why}") from None
    if not isinstance(found, dict):
        raise ValueError(f"search: {path} must map parameters to their ranges")
    space: dict[str, Range | Choices] = {}
    for name, rule in found.items():
        if isinstance(rule, list) and rule:
            space[str(name)] = _choices(str(name), rule)
        elif isinstance(rule, dict) and {"low", "high"} <= rule.keys() <= {"low", "high", "log"}:
            log = rule.get("log", False)
            if not isinstance(log, bool):
                raise ValueError(
                    f"search: {name}: log must be true or false, got {reprlib.repr(log)}"
                )
            space[str(name)] = _range(str(name), rule["low"], rule["high"], log)
        else:
            raise ValueError(
                f"search: {name} in {path} must be a list of values, or a mapping with low, high "
                f"and optionally log, got {reprlib.repr(rule)}"
            )
    return space


def _check_events(events: Iterable[yaml.Event]) -> None:
    """Check that a document is small when it is expanded, and quick to read."""
    depth = 0
    for event in events:
        if isinstance(event, yaml.AliasEvent):
            raise ValueError("aliases are not supported")  # a few lines of them need gigabytes
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > MOST_DEPTH:
            raise ValueError("it is nested too deeply")


def _range(name: str, low: object, high: object, log: bool) -> Range:
    if not _allows(_annotation(name), int, float):
        raise ValueError(f"search: {name} is not a number: write {name}=one/another")
    first, last = _value(name, low), _value(name, high)
    if isinstance(first, str) or isinstance(last, str):
        raise ValueError(f"search: the bounds of {name} must be numbers, got {low}..{high}")
    if _allows(_annotation(name), float):
        first, last = float(first), float(last)
    if not first < last:
        raise ValueError(
            f"search: the low end of {name} must be below its high end, got {low}..{high}"
        )
    if log and first <= 0:
        raise ValueError(f"search: {name} must be above 0 on a log scale, got {low}..{high}")
    return Range(first, last, log)


def _choices(name: str, values: list[Any]) -> Choices:
    found = tuple(_value(name, value) for value in values)
    if len(set(found)) < len(found):
        raise ValueError(f"search: {name} lists a value twice")
    return Choices(found)


def _value(name: str, text: object) -> Value:
    """A value of a parameter, validated and converted as in its config."""
    _annotation(name)  # rejects parameters that cannot be searched
    try:
        value = getattr(validated(Config, {name: text}), name)
    except ValueError as error:
        raise ValueError(f"search: {error}") from None
    return AUTO if value is None else value


def _annotation(name: str) -> Any:
    if name not in Config.model_fields or name in NOT_SEARCHED:
        known = [key for key in Config.model_fields if key not in NOT_SEARCHED]
        hint = did_you_mean(name, known)
        raise ValueError(f"search: {name} cannot be searched{hint}; these can: {', '.join(known)}")
    return Config.model_fields[name].annotation


def _allows(annotation: Any, *kinds: type) -> bool:
    return annotation in kinds or any(_allows(inner, *kinds) for inner in get_args(annotation))


def widened(space: Space, values: Mapping[str, Value]) -> Space:
    """The space, widened where necessary to contain `values`."""
    return {name: _widened(rule, values[name]) for name, rule in space.items()}


def _widened(rule: Range | Choices, value: Value) -> Range | Choices:
    if isinstance(rule, Choices):
        return rule if value in rule.values else Choices((value, *rule.values))
    assert not isinstance(value, str)
    return replace(rule, low=min(rule.low, value), high=max(rule.high, value))


def joint(spaces: Iterable[Space]) -> Space:
    """All parameters of the spaces, each with a rule that contains all of theirs."""
    found: dict[str, Range | Choices] = {}
    for space in spaces:
        for name, rule in space.items():
            ends = rule.values if isinstance(rule, Choices) else (rule.low, rule.high)
            found[name] = reduce(_widened, ends, found.get(name, rule))
    return found


def contains(outer: Space, inner: Space) -> bool:
    """Whether `outer` has the same parameters as `inner`, on the same scales and no narrower."""
    return outer.keys() == inner.keys() and all(
        _contains(outer[name], rule) for name, rule in inner.items()
    )


def _contains(outer: Range | Choices, inner: Range | Choices) -> bool:
    if isinstance(outer, Choices) or isinstance(inner, Choices):
        return outer == inner
    same = (outer.log, outer.is_integer) == (inner.log, inner.is_integer)
    return same and outer.low <= inner.low and inner.high <= outer.high


def edge_of(rule: Range | Choices, value: Value) -> str:
    """Which end of its range a value lies at: "smallest", "largest" or "" for neither.

    At an end means within `EDGE` of the range, on its scale.
    """
    if isinstance(rule, Choices) or rule.low == rule.high:
        return ""
    low, high, here = (math.log(x) if rule.log else x for x in (rule.low, rule.high, float(value)))
    share = (here - low) / (high - low)
    return "smallest" if share <= EDGE else "largest" if share >= 1 - EDGE else ""


def extended(name: str, rule: Range, end: str) -> Range | None:
    """The range, longer at the end that `edge_of` names; None if the parameter ends there."""
    half = (rule.high - rule.low) / 2
    if end == "smallest":
        new = (rule.low / 2 if rule.log else rule.low - half, rule.low / 2)
    else:
        new = (2 * rule.high if rule.log else rule.high + half, (1 + rule.high) / 2)
    for bound in new:  # the second is for parameters that must be above 0, or below 1
        text = f"{int(bound) if rule.is_integer else float(f'{bound:.3g}')}"
        low, high = (text, rule.high) if end == "smallest" else (rule.low, text)
        try:
            found = _range(name, low, high, rule.log)
        except ValueError:
            continue
        if found != rule and _contains(found, rule):
            return found
    return None


def format_space(space: Space) -> str:
    """The space as you would type it; the inverse of `parse_space`."""
    return ",".join(f"{name}={format_rule(rule)}" for name, rule in space.items())


def format_rule(rule: Range | Choices) -> str:
    """What may be searched for one parameter, as you would type it."""
    if isinstance(rule, Choices):
        return "/".join(map(str, rule.values))
    low, high = (str(bound).removesuffix(".0") for bound in (rule.low, rule.high))
    return f"{low}..{high}{':log' if rule.log else ''}"
