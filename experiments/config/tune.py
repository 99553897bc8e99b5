"""TODO."""

from collections.abc import Mapping
from typing import Annotated

from pydantic import AfterValidator, Field, model_validator

from experiments.config.experiment import Config, config_from
from experiments.config.fields import NONE, PRUNINGS, Common
from experiments.config.parameters import AUTO, Parameters, Positive, Share, one_of, or_auto
from experiments.config.space import Value, parse_space
from pruning.criteria import CRITERIA
from pruning.reinit import REINITS

ALL = ("keep", "random", "lottery")  # the three that the project compares


OBJECTIVES = ("pareto", "accuracy")


EXECUTORS = ("processes", "ray")


FRESH = 1000  # what is added to a seed for one that no trial has seen


def _methods(text: str) -> str:
    methods_of(text)
    return text


def methods_of(text: str) -> tuple[str, ...]:
    """The reinit methods of a list such as "keep,lottery", or of "all".

    Raises:
        ValueError: If it names something else, or something twice.
    """
    names = ALL if text == "all" else tuple(name.strip() for name in text.split(","))
    if not set(names) <= set(REINITS) or len(set(names)) < len(names):
        raise ValueError(f"must be all, or one or several of {', '.join(REINITS)}")
    return names


def _space(text: str) -> str:
    parse_space(text)
    return text


class Tuning(Parameters):
    """What is searched, and how."""

    reinit: Annotated[str, AfterValidator(_methods)] = Field(
        "lottery",
        description=f"a method, a list, or all, which is {', '.join(ALL)}; a study for each",
    )
    trials: Positive = Field(
        50, description="of each study, those of earlier commands counted; the first is the default"
    )
    objective: Annotated[str, one_of(*OBJECTIVES)] = Field(
        "pareto",
        description="pareto: validation accuracy against epochs of training; accuracy: it alone, "
        "within budget_epochs",
    )
    search: Annotated[str, AfterValidator(_space)] = Field(
        NONE,
        description="further ranges, such as lr=0.0001..0.01:log,criterion=magnitude/snip, or a "
        "YAML file of them",
    )
    budget_epochs: Annotated[Positive | None, or_auto] = Field(
        None,
        description="for objective=accuracy: epochs of all retraining rounds together; auto is "
        "what prune_rate and retrain_epochs take",
    )
    tolerance: Share = Field(
        0.005, description="for objective=pareto: the cheapest within so much of the best is chosen"
    )
    seeds_per_trial: Positive = Field(1, description="a trial's accuracy is the mean over so many")
    confirm_seeds: Annotated[int, Field(ge=0, le=FRESH)] = Field(
        3, description="what is chosen is trained anew with so many fresh seeds, and then tested"
    )
    seed: Annotated[int, Field(ge=0, lt=2**62)] = Field(
        0, description="the first of a trial's seeds, and of the search itself"
    )
    criterion: Annotated[str, one_of(*CRITERIA)] = Field(
        "magnitude",
        description=f"how weights are scored; the lowest are pruned first: {', '.join(CRITERIA)}",
    )
    pruning: Annotated[str, one_of(*PRUNINGS)] = Field(
        "iterative",
        description="iterative: prune the last round's network; one_shot: always the dense one",
    )
    study: str = Field(
        AUTO,
        min_length=1,
        max_length=300,
        description="name that each study's begins with; auto is weight-loss/ data set / model",
    )
    storage: str = Field(
        "sqlite:///optuna.db",
        min_length=1,
        description="where Optuna keeps the studies, such as postgresql+psycopg://user@host/optuna",
    )
    workers: Annotated[Positive | None, or_auto] = Field(
        None, description="trials at a time; auto is one a core, one on a GPU, or Ray's CPUs"
    )
    executor: Annotated[str, one_of(*EXECUTORS)] = Field(
        "processes", description="where trials are done: processes of this machine, or ray"
    )
    ray_address: str = Field(
        AUTO, min_length=1, description="for executor=ray: of the cluster; auto is the one here"
    )
    patience: Annotated[float, Field(ge=0)] = Field(
        300.0, description="seconds to wait for a storage or tracking server that does not answer"
    )


class TuneConfig(Common, Tuning):
    """A search as it is asked for."""

    @model_validator(mode="after")
    def _sound_together(self) -> "TuneConfig":
        if self.rounds:
            raise ValueError(
                "a search asks how to reach target_sparsity, so rounds cannot be given, got "
                f"rounds={self.rounds}"
            )
        if self.budget_epochs and self.objective != "accuracy":
            raise ValueError("budget_epochs is for objective=accuracy")
        rewinds = any(REINITS[name].schedule == "rewound" for name in methods_of(self.reinit))
        if "rewind_epoch" in parse_space(self.search) and not rewinds:
            raise ValueError(
                f"search: rewind_epoch has no part in reinit={self.reinit}, only in rewind and "
                "lr_rewind"
            )
        for method in methods_of(self.reinit):
            self.config_of(method, {}, self.seed)
        return self

    def config_of(self, method: str, params: Mapping[str, Value], seed: int) -> Config:
        """The config of one network of a trial."""
        fixed = self.model_dump(include=set(Common.model_fields) | {"criterion", "pruning"})
        return config_from(fixed | dict(params) | {"reinit": method, "seed": seed})

    def seeds(self) -> range:
        """Those of every trial."""
        return range(self.seed, self.seed + self.seeds_per_trial)

    def fresh_seeds(self) -> range:
        """Those that what is chosen is trained anew with."""
        return range(self.seed + FRESH, self.seed + FRESH + self.confirm_seeds)
