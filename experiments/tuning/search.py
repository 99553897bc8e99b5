"""Search: what is asked for, what a trial of it is, and what it costs.

Costs are counted in epochs of training. `retraining` is what `budget_epochs` limits: the epochs of
all rounds after the dense one; `total` adds the dense network's own.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any

from pydantic import AfterValidator, Field, model_validator

from experiments.config import Config, Resolved, config_from
from experiments.environment import release
from experiments.fields import NONE, PRUNINGS, Common
from experiments.fingerprint import VERSIONS, code_digest, pretrained_digest
from experiments.parameters import AUTO, Parameters, Positive, Share, one_of, or_auto
from experiments.removals import plan
from experiments.tuning.space import Choices, Space, Value, containing, in_words, parse_space
from pruning.criteria import CRITERIA
from pruning.reinit import REINITS

ALL = ("keep", "random", "lottery")  # the three that the project compares
OBJECTIVES = ("pareto", "accuracy")
EXECUTORS = ("processes", "ray")
DECIDING = {"objective", "seeds_per_trial", "seed", "criterion", "pruning"}  # and the space
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
        "magnitude", description=f"which weights go first: {', '.join(CRITERIA)}"
    )
    pruning: Annotated[str, one_of(*PRUNINGS)] = Field(
        "iterative", description="iterative: prunes the last round's network; one_shot: the dense"
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


@dataclass(frozen=True)
class Search:
    """The search for one method, which is one study; goes to workers as it is."""

    config: TuneConfig
    method: str
    dataset: str  # what "auto" came to
    model: str
    image_shape: tuple[int, ...]
    classes: int
    digests: tuple[str, ...]  # of the data, for each of the trials' seeds

    @property
    def name(self) -> str:
        """Of the study."""
        default = f"weight-loss/{self.dataset}/{self.model}"
        return f"{default if self.config.study == AUTO else self.config.study}/{self.method}"

    def config_of(self, params: Mapping[str, Value], seed: int | None = None) -> Config:
        """The config of one network of a trial; that of its first seed, unless one is given."""
        seed = self.config.seed if seed is None else seed
        return self.config.config_of(self.method, params, seed)

    def resolved(self, params: Mapping[str, Value], seed: int | None = None) -> Resolved:
        """The same with nothing "auto" in it; raises as `Config.resolved`."""
        return self.config_of(params, seed).resolved(self.dataset)

    @cached_property
    def baseline(self) -> dict[str, Value]:
        """The first trial: what is done by default, or as `prune_rate` and others say."""
        resolved = self.resolved({})
        said = self.config_of({})
        values: dict[str, Value] = {}
        for name, rule in parse_space(self.config.search).items():
            left_open = getattr(said, name) is None
            takes_auto = isinstance(rule, Choices) and AUTO in rule.values
            values[name] = AUTO if left_open and takes_auto else getattr(resolved, name)
        return values

    @cached_property
    def space(self) -> Space:
        """What is searched; the baseline is in it."""
        return containing(parse_space(self.config.search), self.baseline)

    @cached_property
    def budget(self) -> int | None:
        """Most epochs of retraining, if they are limited."""
        if self.config.objective != "accuracy":
            return None
        return self.config.budget_epochs or self.cost(self.baseline).retraining

    def cost(self, params: Mapping[str, Value]) -> "Cost":
        """What a trial takes; raises as `resolved` and `plan`."""
        config = self.resolved(params)
        rounds = len(plan(config, self))
        return Cost(rounds, rounds * config.retrain_epochs, config.epochs)

    def affordable(self, params: Mapping[str, Value]) -> bool:
        """Whether a trial is possible and within the budget."""
        try:
            cost = self.cost(params)
        except ValueError:  # such as rewind_epoch above epochs
            return False
        return self.budget is None or cost.retraining <= self.budget

    def settings(self) -> dict[str, Any]:
        """What decides what a study finds; a study whose settings are others is another study."""
        elsewhere = Tuning.model_fields.keys() - DECIDING
        elsewhere |= {"data_root", "dataset", "model", "pretrained"}
        resolved = self.resolved({})
        return self.config.model_dump(exclude=set(elsewhere)) | {
            "reinit": self.method,
            "dataset": self.dataset,
            "model": self.model,
            "device": resolved.device,
            "precision": resolved.precision,
            "space": in_words(self.space),
            "budget": self.budget,
            "data": list(self.digests),
            "code": code_digest(),
            "versions": [release(name) for name in VERSIONS],
            "pretrained": pretrained_digest(resolved),
        }


@dataclass(frozen=True)
class Cost:
    """What a trial takes, of one seed: rounds after the dense one, and epochs."""

    rounds: int
    retraining: int
    dense: int

    @property
    def total(self) -> int:
        """Epochs of the dense network and of all rounds."""
        return self.dense + self.retraining
