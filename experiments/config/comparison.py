"""Comparison: the parameters of `compare`, and the arms that they describe.

An arm is one method with one seed. The methods are all combinations of the values of `reinits`,
`criterion`, `control` and `pruning`, and the baselines; all arms share the other parameters, except
those that sweep one (`draws`, `rewind_epochs`) or set it for one method (`retrain_lrs`).
"""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Annotated, Any

from pydantic import AfterValidator, Field, ValidationInfo, model_validator

from experiments.config import parameters
from experiments.config.experiment import MASKS, Config, config_from, unmet
from experiments.config.fields import (
    NONE,
    PRUNINGS,
    Common,
    Execution,
    Instability,
    Method,
    run_id,
)
from experiments.config.parameters import (
    AUTO,
    STORED,
    Parameters,
    one_of,
    or_auto,
    readable,
    some_of,
    validated,
)
from pruning.controls import CONTROLS
from pruning.criteria import CRITERIA
from pruning.masks import MOST_ROUNDS
from pruning.reinit import REINITS

MOST_SEEDS = 1000
MARGIN = 0.002  # a fifth of a point
MOST_DRAWS = 20
EPOCH = " epoch "  # in the label of a method, before the epoch to which it rewinds
DRAW = " draw "  # in the label of a further draw, before its number
DRAW_STEP = 10**6  # between the seeds of two random draws
# What reviewers ask for first, each control with the way in which it is retrained.
BASELINES = {"random_mask": "lottery", "small_dense": "random", "unpruned": "keep"}
# Methods whose result depends on `draw_seed`.
DRAWN = {"random", "random_scaled", "shuffle", "shuffled_mask", "random_mask", "small_dense"}
Own = tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class Arm:
    """One experiment of a comparison: a method with a seed."""

    label: str  # of its method
    method: Method
    seed: int
    own: Own = ()  # parameters in which it differs from the rest of the comparison

    @property
    def dense(self) -> tuple[object, ...]:
        """Arms in which this is equal have the same dense network."""
        return self.seed, dict(self.own).get("rewind_epoch")

    @property
    def name(self) -> str:
        """Such as `lottery, seed 3`."""
        return f"{self.label}, seed {self.seed}"


def seeds_of(text: str) -> tuple[int, ...]:
    """The seeds of a number, such as "5", or of a list, such as "0,3,7" or "7,".

    Raises:
        ValueError: If it is neither, or contains a seed twice.
    """
    rule = 'must be a number of seeds, such as 5, or a list, such as 0,3,7 ("7," for one seed)'
    words = text.removesuffix(",").split(",")
    if not all(word.isascii() and word.isdecimal() and len(word) < 20 for word in words):
        raise ValueError(rule)
    numbers = [int(word) for word in words]
    if "," in text:
        if len(set(numbers)) < len(numbers):
            raise ValueError("must not contain a seed twice")
        return tuple(numbers)
    if not 0 < numbers[0] <= MOST_SEEDS:
        raise ValueError(f"must be a number of seeds from 1 to {MOST_SEEDS}, or a list")
    return tuple(range(numbers[0]))


def _epochs_of(text: str) -> tuple[int, ...]:
    words = text.split(",")
    if not all(word.isascii() and word.isdecimal() and len(word) < 10 for word in words):
        raise ValueError("must be whole numbers of epochs, separated by commas, such as 0,1,5")
    if len(set(map(int, words))) < len(words):
        raise ValueError("must not contain an epoch twice")
    return tuple(map(int, words))


def _rates_of(text: str) -> dict[str, float]:
    """Learning rates by method: the items of "keep=0.0003,small_dense=0.001"."""
    rates: dict[str, float] = {}
    for item in [] if text == NONE else text.split(","):
        name, equals, rate = (part.strip() for part in item.partition("="))
        try:
            rates[name], good = float(rate), bool(name and equals) and name not in rates
        except ValueError:
            good = False
        if not good or not 0 < rates[name] < math.inf:
            raise ValueError("must be METHOD=RATE, separated by commas, such as keep=0.0003")
    return rates


class Arms(Parameters):
    """What a comparison compares."""

    reinits: Annotated[str, some_of(*REINITS)] = Field(
        "keep,random,lottery", description=f"reinit methods to compare: {', '.join(REINITS)}"
    )
    seeds: Annotated[str, readable(seeds_of)] = Field(
        "5", description="number of seeds (5 means 0-4), or a list such as 0,3,7"
    )
    criterion: Annotated[str, some_of(*CRITERIA)] = Field(
        "magnitude",
        description=f"which weights are pruned first, one or more of {', '.join(CRITERIA)}",
    )
    control: Annotated[str, some_of(*CONTROLS)] = Field(
        "none",
        description="controls that spoil the choice of weights or train another network, one or "
        f"more of {', '.join(CONTROLS)}",
    )
    pruning: Annotated[str, some_of(*PRUNINGS)] = Field(
        "iterative", description=f"{' or '.join(PRUNINGS)}, or both"
    )
    baselines: Annotated[str | None, some_of(NONE, *BASELINES), or_auto] = Field(
        None,
        description=f"controls that are added, one or more of {', '.join(BASELINES)}, or none; "
        "auto is all three, or with masks=shared or granularity=unit random_mask only",
    )
    draws: Annotated[int, Field(ge=1, le=MOST_DRAWS)] = Field(
        1,
        description="random draws per seed of each method that draws values or masks; they share "
        "its dense network",
    )
    retrain_lrs: Annotated[str, readable(_rates_of)] = Field(
        NONE,
        description="retraining learning rates of individual methods, such as "
        "keep=0.0003,small_dense=0.001",
    )
    rewind_epochs: Annotated[str, readable(lambda text: text == NONE or _epochs_of(text))] = Field(
        NONE,
        description="for rewind and lr_rewind: epochs to rewind to, such as 0,1,5, each a method "
        "of its own; none is rewind_epoch alone",
    )
    masks: Annotated[str, one_of(*MASKS)] = Field(
        "own",
        description="own: each method finds its own masks; shared: all retrain those of the trunk",
    )
    trunk: Annotated[str, one_of(*REINITS)] = Field(
        "lottery", description="for masks=shared: the reinit method that finds the masks"
    )
    shown_round: Annotated[int | None, Field(ge=1, le=MOST_ROUNDS), or_auto] = Field(
        None, description="round whose epochs and masks are shown; auto is the last"
    )
    margin: Annotated[float, Field(gt=0, lt=1)] = Field(
        MARGIN,
        description="how far a matching network's validation accuracy may be below the dense "
        "network's: 0.002 is 0.2 points",
    )


class CompareConfig(Instability, Common, Execution, Arms):
    """All parameters of a comparison."""

    @model_validator(mode="after")
    def _check_together(self, info: ValidationInfo) -> "CompareConfig":
        if info.context == STORED:  # it has run, whatever the rules are now
            return self
        if self.masks == "shared" and ("," in self.criterion or self.pruning != "iterative"):
            raise ValueError(
                "masks=shared retrains the masks of one trunk: it needs one criterion and "
                f"pruning=iterative, got criterion={self.criterion}, pruning={self.pruning}"
            )
        if self.rewind_epochs != NONE and self.masks == "shared":
            raise ValueError(
                "rewind_epochs needs masks=own, because each epoch would need a trunk of its own"
            )
        if self.baselines and NONE in self.baselines.split(",") and self.baselines != NONE:
            raise ValueError(f"baselines must be none or a list, got {self.baselines}")
        arms = arms_of(self)  # invalid combinations are rejected now
        for arm in {arm.label: arm for arm in arms}.values():
            self.config_of(arm)
        for arm in {arm.seed: arm for arm in arms}.values():
            self.config_of(arm)
        if self.masks == "shared":
            self.config_of(trunk_of(self, arms[0].seed))
        return self

    def config_of(self, arm: Arm, **more: str) -> Config:
        """The config of one arm; `more` is the rest of its parameters, such as `branch_of`."""
        shared = {*Common.model_fields, *Instability.model_fields, "masks"}
        values = self.model_dump(include=shared) | arm.method.model_dump()
        if self.masks == "shared":  # until the trunk has run
            values["branch_of"] = "0" * 32
        return config_from(values | {"seed": arm.seed} | dict(arm.own) | more)


def arms_of(config: CompareConfig) -> list[Arm]:
    """All arms: methods in the order of the parameters, then baselines, and the seeds of each.

    Raises:
        ValueError: If `retrain_lrs` or `rewind_epochs` is not for any of the methods.
    """
    methods = dict(_methods(config))
    for label, method in _baselines(config).items():
        if method not in (known for known, _ in methods.values()):
            methods[label] = (method, ())
    rates = _rates_of(config.retrain_lrs)
    if unknown := [name for name in rates if name not in methods]:
        raise ValueError(
            f"retrain_lrs names {unknown[0]}, which is not one of the methods {', '.join(methods)}"
        )
    arms = []
    for label, (method, own) in methods.items():
        if label in rates:
            own = (*own, ("retrain_lr", rates[label]))
        arms += [Arm(label, method, seed, own) for seed in seeds_of(config.seeds)]
        kinds = method.model_dump(exclude={"criterion"} if config.masks == "shared" else set())
        if DRAWN & {*kinds.values()}:  # with shared masks, no criterion draws anything
            arms += _further_draws(config, arms[-len(seeds_of(config.seeds)) :])
    return arms


def _methods(config: CompareConfig) -> Iterator[tuple[str, tuple[Method, Own]]]:
    """All combinations, and where they rewind one for each epoch to rewind to, by label.

    A control that needs, say, reinit=random has methods with that one only, if it is among the
    values.
    """
    values = [
        getattr(config, name).split(",") for name in ("reinits", "criterion", "control", "pruning")
    ]
    varied = [len(choices) > 1 for choices in values]
    chosen = [dict(zip(Method.model_fields, each, strict=True)) for each in product(*values)]
    possible = [each for each in chosen if not unmet(each["control"], each)]
    met = {each["control"] for each in possible}
    epochs = () if config.rewind_epochs == NONE else _epochs_of(config.rewind_epochs)
    if epochs and not any(REINITS[name].schedule == "rewound" for name in values[0]):
        raise ValueError("rewind_epochs needs rewind or lr_rewind among reinits")
    for each in chosen:
        if each not in possible and each["control"] in met:
            continue
        method = validated(Method, each)
        label = label_of(method, varied)
        if REINITS[method.reinit].schedule == "rewound" and epochs:
            for epoch in epochs:
                yield f"{label}{EPOCH}{epoch}", (method, (("rewind_epoch", epoch),))
        else:
            yield label, (method, ())


def _baselines(config: CompareConfig) -> dict[str, Method]:
    """The controls that are added to the methods, by label."""
    limited = config.masks == "shared" or config.granularity == "unit"
    auto = ("random_mask",) if limited else tuple(BASELINES)
    names = auto if config.baselines is None else config.baselines.split(",")
    reinits = config.reinits.split(",")
    first = {"criterion": config.criterion.split(",")[0], "pruning": config.pruning.split(",")[0]}
    methods = {}
    for name in names:
        if name != NONE:
            values = {"reinit": BASELINES[name], "control": name}
            if name == "random_mask":
                # The ticket, or else the first method that does not rewind, which may sweep epochs.
                usable = [each for each in reinits if REINITS[each].schedule != "rewound"]
                in_reinits = BASELINES[name] in reinits or not usable
                values |= first | ({} if in_reinits else {"reinit": usable[0]})
            methods[name] = validated(Method, values)
    return methods


def is_further_draw(label: str) -> bool:
    """Whether a method is another random draw of one of the same comparison."""
    return base_of(label) != label


def epoch_of(label: str) -> str:
    """The epoch to which a method rewinds, if its label names one, or ""."""
    found = re.search(rf"{EPOCH}(\d+)", label)
    return found[1] if found else ""


def base_of(label: str) -> str:
    """The label of the first draw of a method."""
    return re.sub(rf"{DRAW}\d+$", "", label)


def _further_draws(config: CompareConfig, arms: Sequence[Arm]) -> list[Arm]:
    """The same arms with other random draws, which share their dense networks."""
    return [
        replace(
            arm,
            label=f"{arm.label}{DRAW}{number}",
            own=(*arm.own, ("draw_seed", arm.seed + DRAW_STEP * (number - 1))),
        )
        for number in range(2, config.draws + 1)
        for arm in arms
    ]


def label_of(method: Method, varied: Sequence[bool] = (False,) * 4) -> str:
    """A short name: the reinit method, then the fields that are `varied` or not the default."""
    words = [
        word
        for (name, word), differs in zip(method.model_dump().items(), varied, strict=True)
        if name == "reinit" or differs or word != Method.model_fields[name].default
    ]
    return " ".join(word for word in words if word != "none")


def trunk_of(config: CompareConfig, seed: int) -> Arm:
    """The arm whose masks are shared."""
    method = validated(Method, {"reinit": config.trunk, "criterion": config.criterion})
    return Arm(f"trunk ({config.trunk})", method, seed)


class ReportConfig(Parameters):
    """All parameters of `report`."""

    run: Annotated[str, AfterValidator(run_id)] = Field(description="id of a comparison's run")
    out: parameters.Path = Field(
        AUTO, description="output folder; auto is reports/ and the run's id"
    )
