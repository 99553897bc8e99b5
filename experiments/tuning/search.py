"""Search: the question that a study answers, its trials' configs, and what they cost.

Costs are counted in epochs of retraining, those of all rounds after the dense one, which
`budget_epochs` limits.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from experiments.config.experiment import Config, Resolved
from experiments.config.fields import Execution
from experiments.config.parameters import AUTO
from experiments.config.space import (
    Choices,
    Space,
    Value,
    default_space,
    format_rule,
    format_space,
    parse_space,
    widened,
)
from experiments.config.tune import TuneConfig, Tuning
from experiments.rounds.plan import plan_rounds
from experiments.tracking.fingerprint import SCHEME, code_digest, pretrained_digest, versions
from pruning.criteria import CRITERIA
from pruning.reinit import REINITS

STUDY_FIELDS = {"objective", "seeds_per_trial", "seed", "criterion", "pruning"}  # and the space


@dataclass(frozen=True)
class Cost:
    """The cost of a trial for one seed: rounds after the dense one, and their epochs."""

    rounds: int
    retraining: int


@dataclass(frozen=True)
class Search:
    """The search for one method, which has one study; workers get a copy."""

    config: TuneConfig
    method: str
    dataset: str  # never "auto"
    model: str
    image_shape: tuple[int, ...]
    classes: int
    digests: tuple[str, ...]  # of the data, for each of the trials' seeds

    @property
    def name(self) -> str:
        """The name of the study."""
        default = f"weight-loss/{self.dataset}/{self.model}"
        return f"{default if self.config.study == AUTO else self.config.study}/{self.method}"

    @property
    def objectives(self) -> tuple[str, ...]:
        """The results that trials maximize and, after the first, minimize."""
        single = self.config.objective == "accuracy"
        return ("valid_accuracy",) if single else ("valid_accuracy", "total_epochs")

    def config_of(self, params: Mapping[str, Value], seed: int | None = None) -> Config:
        """The config of one network of a trial, by default that of the first seed."""
        seed = self.config.seed if seed is None else seed
        return self.config.config_of(self.method, params, seed)

    def resolved(self, params: Mapping[str, Value], seed: int | None = None) -> Resolved:
        """The same with every "auto" resolved; raises as `Config.resolved`."""
        return self.config_of(params, seed).resolved(self.dataset)

    @cached_property
    def _asked_space(self) -> Space:
        space = parse_space(self.config.search, default_space(self.resolved({})))
        rewinds = REINITS[self.method].schedule == "rewound"
        return {name: rule for name, rule in space.items() if rewinds or name != "rewind_epoch"}

    @cached_property
    def baseline(self) -> dict[str, Value]:
        """The parameters of the first trial: the defaults, or what the command sets."""
        config, resolved = self.config_of({}), self.resolved({})
        values: dict[str, Value] = {}
        for name, rule in self._asked_space.items():
            is_auto = getattr(config, name) is None
            may_be_auto = isinstance(rule, Choices) and AUTO in rule.values
            values[name] = AUTO if is_auto and may_be_auto else getattr(resolved, name)
        return values

    @cached_property
    def space(self) -> Space:
        """The space that is searched; it contains the baseline."""
        return widened(self._asked_space, self.baseline)

    def ranges(self) -> dict[str, str]:
        """What is searched of each parameter, as you would type it."""
        return {name: format_rule(rule) for name, rule in self.space.items()}

    @cached_property
    def budget(self) -> int | None:
        """The most retraining epochs of a trial; None if they are not limited."""
        if self.config.objective != "accuracy":
            return None
        return self.config.budget_epochs or self.cost(self.baseline).retraining

    def cost(self, params: Mapping[str, Value]) -> Cost:
        """The cost of a trial; raises as `resolved` and `plan_rounds`."""
        config = self.resolved(params)
        rounds = len(plan_rounds(config, self))
        return Cost(rounds, rounds * config.retrain_epochs)

    def is_affordable(self, params: Mapping[str, Value]) -> bool:
        """Whether a trial is possible and within the budget."""
        try:
            cost = self.cost(params)
        except ValueError:  # such as rewind_epoch above epochs
            return False
        return self.budget is None or cost.retraining <= self.budget

    def settings(self) -> dict[str, Any]:
        """All that can change the results of a study; other settings need another study."""
        excluded = Tuning.model_fields.keys() - STUDY_FIELDS
        excluded |= Execution.model_fields.keys() | {"data_root", "dataset", "model", "pretrained"}
        resolved = self.resolved({})
        variants = [  # with `resolved`, they run the code of all trials
            resolved.model_copy(update={name: value} | self._follows(name, value))
            for name, rule in self.space.items()
            if isinstance(rule, Choices)
            for value in rule.values
            if value != AUTO
        ]
        asked = self.config.model_dump(exclude=set(excluded))
        values = {name: value for name, value in resolved.settings().items() if name in asked}
        fixed = {
            "scheme": SCHEME,  # of the digest of the code
            "reinit": self.method,
            "dataset": self.dataset,
            "model": self.model,
            "device": resolved.device,
            "precision": resolved.precision,
            "space": format_space(self.space),
            "budget": self.budget,
            "data": list(self.digests),
            "code": code_digest(resolved, *variants),
            "versions": versions(resolved),
            "pretrained": pretrained_digest(resolved),
        }
        # With values instead of "auto", which may mean something else in another version.
        return asked | values | self.baseline | fixed

    def _follows(self, name: str, value: Value) -> dict[str, Value]:
        """The values of "auto" that change with this one and choose code."""
        if name != "criterion" or self.config.scope is not None:
            return {}
        return {"scope": CRITERIA[str(value)].scope}
