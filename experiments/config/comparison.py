"""Comparison: the parameters of `compare`, and the arms that they describe.

An arm is one method with one seed. The methods are all combinations of the values of `reinits`,
`criterion`, `control` and `pruning`; all arms share the other parameters.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Annotated

from pydantic import AfterValidator, Field, model_validator

from experiments.config import parameters
from experiments.config.experiment import MASKS, Config, config_from, unmet
from experiments.config.fields import (
    PRUNINGS,
    Common,
    Execution,
    Instability,
    Method,
    run_id,
)
from experiments.config.parameters import (
    AUTO,
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


@dataclass(frozen=True)
class Arm:
    """One experiment of a comparison: a method with a seed."""

    label: str  # of its method
    method: Method
    seed: int

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
        description="how much lower than the dense network's a matching network's validation "
        "accuracy may be, as a share of the images",
    )


class CompareConfig(Instability, Common, Execution, Arms):
    """All parameters of a comparison."""

    @model_validator(mode="after")
    def _check_together(self) -> "CompareConfig":
        if self.masks == "shared" and ("," in self.criterion or self.pruning != "iterative"):
            raise ValueError(
                "masks=shared retrains the masks of one trunk: it needs one criterion and "
                f"pruning=iterative, got criterion={self.criterion}, pruning={self.pruning}"
            )
        arms = arms_of(self)  # invalid combinations are rejected now
        for method in {arm.label: arm.method for arm in arms}.values():
            self.config_of(method, arms[0].seed)
        for seed in seeds_of(self.seeds):
            self.config_of(arms[0].method, seed)
        if self.masks == "shared":
            self.config_of(trunk_of(self, arms[0].seed).method, arms[0].seed)
        return self

    def config_of(self, method: Method, seed: int, **more: str) -> Config:
        """The config of one arm; `more` is the rest of its parameters, such as `branch_of`."""
        shared = {*Common.model_fields, *Instability.model_fields, "masks"}
        values = self.model_dump(include=shared) | method.model_dump()
        if self.masks == "shared":  # until the trunk has run
            values["branch_of"] = "0" * 32
        return config_from(values | {"seed": seed} | more)


def arms_of(config: CompareConfig) -> list[Arm]:
    """All arms: methods in the order of the parameters, and the seeds of each.

    A control that needs, say, reinit=random has arms with that one only, if it is among the values.
    """
    values = [
        getattr(config, name).split(",") for name in ("reinits", "criterion", "control", "pruning")
    ]
    varied = [len(choices) > 1 for choices in values]
    chosen = [dict(zip(Method.model_fields, each, strict=True)) for each in product(*values)]
    possible = [each for each in chosen if not unmet(each["control"], each)]
    met = {each["control"] for each in possible}
    arms = []
    for each in chosen:
        if each not in possible and each["control"] in met:
            continue
        method = validated(Method, each)
        label = label_of(method, varied)
        arms += [Arm(label, method, seed) for seed in seeds_of(config.seeds)]
    return arms


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
