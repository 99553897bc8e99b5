"""Tune: the parameters of a search, `python -m experiments tune`."""

from collections.abc import Mapping
from typing import Annotated

from pydantic import Field, model_validator

from experiments.config.experiment import Config, config_from
from experiments.config.fields import NONE, PRUNINGS, Common, Execution, Method
from experiments.config.parameters import (
    AUTO,
    Parameters,
    Positive,
    Share,
    UnknownNameError,
    one_of,
    or_auto,
    readable,
)
from experiments.config.space import Value, parse_space
from pruning.criteria import CRITERIA
from pruning.reinit import REINITS

ALL = ("keep", "random", "lottery")  # the methods that this project compares
OBJECTIVES = ("pareto", "accuracy")
FRESH = 1000  # added to a seed to get one that no trial uses


def methods_of(text: str) -> tuple[str, ...]:
    """The reinit methods of a list such as "keep,lottery", or of "all".

    Raises:
        ValueError: If a method is unknown or listed twice.
    """
    names = ALL if text == "all" else tuple(name.strip() for name in text.split(","))
    rule = f"must be all, or a list of different methods of {', '.join(REINITS)}"
    if unknown := [name for name in names if name not in REINITS]:
        raise UnknownNameError(rule, unknown[0], ("all", *REINITS))
    if len(set(names)) < len(names):
        raise ValueError(rule)
    return names


class Tuning(Parameters):
    """The parameters of a search that a single experiment does not have."""

    reinit: Annotated[str, readable(methods_of)] = Field(
        "lottery",
        description=f"one method, a list, or all ({', '.join(ALL)}); each gets its own study",
    )
    trials: Positive = Field(
        50,
        description="trials per study, including those of earlier commands; the first is the "
        "default",
    )
    objective: Annotated[str, one_of(*OBJECTIVES)] = Field(
        "pareto",
        description="pareto: validation accuracy against training epochs; accuracy: the best "
        "accuracy within budget_epochs",
    )
    search: Annotated[str, readable(parse_space)] = Field(
        NONE,
        description="ranges that are added to the default ones or replace them, such as "
        "lr=0.0001..0.01:log,criterion=magnitude/snip, or a YAML file",
    )
    budget_epochs: Annotated[Positive | None, or_auto] = Field(
        None,
        description="objective=accuracy: maximum retraining epochs of a trial, over all rounds; "
        "auto is what the first trial takes",
    )
    tolerance: Share = Field(
        0.005,
        description="objective=pareto: recommend the cheapest trial whose accuracy is within this "
        "distance of the best",
    )
    seeds_per_trial: Annotated[Positive, Field(le=FRESH)] = Field(
        1, description="number of seeds that each trial is averaged over"
    )
    confirm_seeds: Annotated[int, Field(ge=0, le=FRESH)] = Field(
        3,
        description="number of fresh seeds with which the setting found and the default are "
        "retrained and tested",
    )
    seed: Annotated[int, Field(ge=0, lt=2**62)] = Field(
        0, description="first seed of each trial, and seed of the search itself"
    )
    criterion: Annotated[str, one_of(*CRITERIA)] = Field(
        "magnitude", description=Method.model_fields["criterion"].description
    )
    pruning: Annotated[str, one_of(*PRUNINGS)] = Field(
        "iterative", description=Method.model_fields["pruning"].description
    )
    study: str = Field(
        AUTO,
        min_length=1,
        max_length=300,
        description="prefix of the study names; auto is weight-loss/DATASET/MODEL",
    )
    storage: str = Field(
        "sqlite:///optuna.db",
        min_length=1,
        description="Optuna's database, such as postgresql+psycopg://user@host/optuna",
    )
    patience: Annotated[float, Field(ge=0)] = Field(
        300.0, description="seconds to wait for a storage or tracking server that does not answer"
    )


class TuneConfig(Common, Execution, Tuning):
    """All parameters of a search."""

    rounds: int = Field(0, description="must stay 0, since all trials reach target_sparsity")

    @model_validator(mode="after")
    def _check_together(self) -> "TuneConfig":
        if self.rounds:
            raise ValueError(
                "rounds cannot be set in a search, whose trials all reach target_sparsity, got "
                f"rounds={self.rounds}"
            )
        if self.budget_epochs and self.objective != "accuracy":
            raise ValueError("budget_epochs requires objective=accuracy")
        rewinds = any(REINITS[name].schedule == "rewound" for name in methods_of(self.reinit))
        space = parse_space(self.search)
        if "rewind_epoch" in space and not rewinds:
            raise ValueError(
                f"search: rewind_epoch has no effect with reinit={self.reinit}, only with rewind "
                "and lr_rewind"
            )
        if "momentum" in space and "optimizer" not in space and self.optimizer != "sgd":
            raise ValueError("search: momentum requires optimizer=sgd")
        for method in methods_of(self.reinit):
            self.config_of(method, {}, self.seed)
        return self

    def config_of(self, method: str, params: Mapping[str, Value], seed: int) -> Config:
        """The config of one network of a trial."""
        fixed = self.model_dump(include=set(Common.model_fields) | {"criterion", "pruning"})
        return config_from(fixed | dict(params) | {"reinit": method, "seed": seed})

    def seeds(self) -> range:
        """The seeds of every trial."""
        return range(self.seed, self.seed + self.seeds_per_trial)

    def fresh_seeds(self) -> range:
        """The seeds that the recommended trial and the default are retrained with."""
        return range(self.seed + FRESH, self.seed + FRESH + self.confirm_seeds)
