"""Search: what is asked for, what a trial of it is, and what it costs.

Costs are counted in epochs of training. `retraining` is what `budget_epochs` limits: the epochs of
all rounds after the dense one; `total` adds the dense network's own.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from experiments.config.experiment import Config, Resolved
from experiments.config.parameters import AUTO
from experiments.config.space import Choices, Space, Value, containing, in_words, parse_space
from experiments.config.tune import TuneConfig, Tuning
from experiments.rounds.plan import plan_rounds
from experiments.tracking.environment import release
from experiments.tracking.fingerprint import VERSIONS, code_digest, pretrained_digest

STUDY_FIELDS = {"objective", "seeds_per_trial", "seed", "criterion", "pruning"}  # and the space


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
        rounds = len(plan_rounds(config, self))
        return Cost(rounds, rounds * config.retrain_epochs, config.epochs)

    def affordable(self, params: Mapping[str, Value]) -> bool:
        """Whether a trial is possible and within the budget."""
        try:
            cost = self.cost(params)
        except ValueError:  # such as rewind_epoch above epochs
            return False
        return self.budget is None or cost.retraining <= self.budget

    def _variants(self, resolved: Resolved) -> list[Resolved]:
        """Configs that together run the code of all trials."""
        searched = {name: rule for name, rule in self.space.items() if isinstance(rule, Choices)}
        return [resolved] + [
            resolved.model_copy(update={name: value})
            for name, rule in searched.items()
            for value in rule.values
            if value != AUTO
        ]

    def settings(self) -> dict[str, Any]:
        """What decides what a study finds; a study whose settings are others is another study."""
        elsewhere = Tuning.model_fields.keys() - STUDY_FIELDS
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
            "code": code_digest(*self._variants(resolved)),
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
