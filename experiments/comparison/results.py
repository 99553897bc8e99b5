"""Results: everything that a report shows of one comparison, as plain data without MLflow."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pandas as pd

from experiments.comparison import families, matching, statistics
from experiments.comparison.masks import similarity
from experiments.config.comparison import MARGIN, is_further_draw
from pruning.masks import Masks

EARLY_STOP = "early_stop_iteration"


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
        retrain_epochs: Epochs of retraining, by method.
        masks: Masks of `shown_round` by (method, seed).
        earlier_masks: Those of the round half-way to it, rounded down.
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
        correct: Which test images each network classifies correctly, by (method, seed, round):
            bool [N], in the order of the data, the same N images in all. Empty if the run of an arm
            lacks this, because an older version made it.
        margin: How far below the dense network's validation accuracy a network still matches it.
    """

    name: str
    setting: Mapping[str, str]
    defaults: frozenset[str]
    rounds: pd.DataFrame
    epochs: pd.DataFrame
    retrain_lr: Mapping[str, float]
    retrain_epochs: Mapping[str, float]
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
    earlier_masks: Mapping[tuple[str, int], Masks] = field(default_factory=dict)
    correct: statistics.Correct = field(default_factory=dict)
    margin: float = MARGIN

    @cached_property
    def summary(self) -> pd.DataFrame:
        """See `statistics.summarise`."""
        return statistics.summarise(self.rounds, self.test_images, self.correct)

    @cached_property
    def differences(self) -> pd.DataFrame:
        """`statistics.differences`, corrected (see `families.corrected`).

        Where the schedule sets the early stop, differences of it have no p-value.
        """
        table = statistics.differences(self.rounds, self.correct)
        if not self.constant_rate:
            early = table["metric"] == EARLY_STOP
            table["p_value"] = table["p_value"].mask(early)
        return families.corrected(table, self.families, self.shown_round)

    @cached_property
    def families(self) -> dict[str, families.Pairs]:
        """See `families.families`."""
        return families.families(self.summary, self.shown_round)

    @cached_property
    def matches(self) -> pd.DataFrame:
        """See `matching.smallest_matches`."""
        return matching.smallest_matches(self.rounds, self.margin, self.constant_rate)

    @property
    def constant_rate(self) -> bool:
        """Whether the learning rate is constant; if not, its schedule sets the early stop."""
        return self.setting["schedule"] == "constant"

    @property
    def test_images(self) -> int:
        """How many there are."""
        return self.images["test"]

    @cached_property
    def mask_overlap(self) -> pd.DataFrame:
        """See `masks.similarity`."""
        return similarity(self.masks, self.earlier_masks)

    @property
    def controls(self) -> set[str]:
        """The methods that are controls or further draws of others."""
        methods = self.rounds[["method", "control"]].drop_duplicates()
        plain = (methods["control"] == "none") & ~methods["method"].map(is_further_draw)
        return set(methods["method"][~plain])

    @property
    def methods(self) -> list[str]:
        """The methods, in order of appearance."""
        return statistics.methods_of(self.rounds)
