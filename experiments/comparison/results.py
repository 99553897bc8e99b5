"""Results: everything that a report shows of one comparison, as plain data without MLflow."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pandas as pd

from experiments.comparison import statistics
from pruning.masks import Masks


@dataclass(frozen=True)
class Comparison:
    """One comparison: its settings, its results and their statistics.

    Attributes:
        name: Of its run.
        setting: What all arms share, parameter by parameter.
        defaults: Names of the parameters in `setting` that have their default value.
        rounds: One row per method, seed and round; round 0 is the dense network.
        epochs: One row per method, seed, round and epoch.
        retrain_lr: Learning rate of retraining, by method.
        masks: Masks of `shown_round` by (method, seed).
        image_shape: (channels, height, width).
        shown_round: The round that tables and figures of a single round show.
        failed: Arms that did not finish: label, seed and reason of each.
        links: URLs of runs by run id.
        command: The command that repeats the comparison.
        environment: Versions, processor and commit.
        images: Number of images in train, valid and test.
        data_source: Where the images come from.
        costs: What `measure` found of networks of the arms: one row per method, seed, round and
            form, and for each number of threads and images in a query. Empty if it did not run.
    """

    name: str
    setting: Mapping[str, str]
    defaults: frozenset[str]
    rounds: pd.DataFrame
    epochs: pd.DataFrame
    retrain_lr: Mapping[str, float]
    masks: Mapping[tuple[str, int], Masks]
    image_shape: tuple[int, ...]
    shown_round: int
    failed: Sequence[Mapping[str, Any]]
    links: Mapping[str, str]
    command: str
    environment: Mapping[str, str]
    images: Mapping[str, int]
    data_source: str
    costs: pd.DataFrame = field(default_factory=pd.DataFrame)

    @cached_property
    def summary(self) -> pd.DataFrame:
        """See `statistics.summarise`."""
        return statistics.summarise(self.rounds)

    @cached_property
    def differences(self) -> pd.DataFrame:
        """See `statistics.differences`."""
        return statistics.differences(self.rounds)

    @cached_property
    def matches(self) -> pd.DataFrame:
        """See `statistics.smallest_matches`."""
        return statistics.smallest_matches(self.rounds)

    @property
    def methods(self) -> list[str]:
        """The methods, in order of appearance."""
        return statistics.methods_of(self.rounds)
