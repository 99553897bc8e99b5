"""Schedule: in which order are the experiments of a comparison done, and which need not be?

The first arm of a seed leads, or with masks=shared the trunk: the others of that seed wait for it
and branch off its run. What was done before is found by its fingerprint.
"""

import os
from dataclasses import dataclass, field

from experiments.comparison import store
from experiments.comparison.arms import Arm, CompareConfig, arms_of, trunk_of
from experiments.comparison.workers import Outcome, Workers, open_workers
from experiments.config import Config, Resolved, config_from
from experiments.fields import NONE
from experiments.run import Tell

Outcomes = dict[Arm, Outcome]


@dataclass(frozen=True)
class Facts:
    """What is known before anything is trained."""

    dataset: str
    digests: dict[int, str]  # of the data, by seed
    resolved: Resolved  # of the first arm
    rounds: int  # after the dense one
    image_shape: tuple[int, ...]
    images: dict[str, int]
    source: str


@dataclass
class Schedule:
    """The experiments of a comparison, those done and those to do."""

    config: CompareConfig
    facts: Facts
    parent: str
    leaders: dict[int, Arm]
    waiting: list[Arm]
    outcomes: Outcomes = field(default_factory=dict)

    def next(self) -> Arm | None:
        """An experiment that nothing keeps waiting, if there is one; it no longer waits then."""
        for arm in self.waiting:
            leader = self.leaders[arm.seed]
            if arm == leader or leader in self.outcomes:
                self.waiting.remove(arm)
                return arm
        return None

    def config_of(self, arm: Arm) -> Config:
        """The config of an experiment; it branches off its leader, if that has left a run."""
        leader = self.leaders[arm.seed]
        masks, branch = "own", NONE
        if arm != leader:
            masks = self.config.masks
            branch = self.outcomes[leader].run_id or NONE
        more = {"dataset": self.facts.dataset, "masks": masks, "branch_of": branch}
        return self.config.config_of(arm.method, arm.seed, **more)

    def begin(self, arm: Arm, workers: Workers) -> Outcome | None:
        """What became of an experiment at once; None where it is being worked on now."""
        leader = self.leaders[arm.seed]
        if self.config.masks == "shared" and arm != leader and not self.outcomes[leader].run_id:
            return Outcome(None, f"its trunk failed: {self.outcomes[leader].reason}")
        config = self.config_of(arm)
        found = store.find_arm(config.resolved(self.facts.dataset), self.facts.digests[arm.seed])
        if found:
            store.adopt(found, self.parent)
            if store.is_finished(found):
                return Outcome(found.info.run_id)
            moved = {"resume": found.info.run_id, "data_root": config.data_root}
            config = config_from(moved)  # the rest is the run's own
        workers.start(arm.name, config, self.parent)
        return None


def do_arms(config: CompareConfig, facts: Facts, parent: str, tell: Tell) -> Outcomes:
    """What became of every arm: found done already, or done now."""
    arms = arms_of(config)
    leaders = leaders_of(config, arms)
    todo = list(dict.fromkeys([*leaders.values(), *arms]))
    schedule = Schedule(config, facts, parent, leaders, todo)
    by_name, total = {arm.name: arm for arm in todo}, len(todo)

    def ended(arm: Arm, outcome: Outcome, how: str) -> None:
        schedule.outcomes[arm] = outcome
        what = f"failed: {outcome.reason}" if outcome.reason else how
        tell(f"{arm.name}: {what} ({len(schedule.outcomes)} of {total})")

    with open_workers(_count(config, total, facts.resolved.device)) as workers:
        tell(f"{total} experiments, {workers.count} at a time")
        while schedule.waiting or workers.at_work:
            while workers.free and (arm := schedule.next()):
                found = schedule.begin(arm, workers)
                if found:
                    ended(arm, found, "done before")
            if workers.at_work:
                for name, outcome in workers.wait(tell).items():
                    ended(by_name[name], outcome, "done")
    return {arm: schedule.outcomes[arm] for arm in arms}


def leaders_of(config: CompareConfig, arms: list[Arm]) -> dict[int, Arm]:
    """By seed, the experiment whose dense network the others take (masks too, where shared)."""
    if config.masks == "own":
        first: dict[int, Arm] = {}
        for arm in arms:
            first.setdefault(arm.seed, arm)
        return first
    trunks = {arm.seed: trunk_of(config, arm.seed) for arm in arms}
    same = {arm.seed: arm for arm in arms if arm.method == trunks[arm.seed].method}
    return trunks | same  # an arm that is its own trunk is done once


def _count(config: CompareConfig, experiments: int, device: str) -> int:
    if config.workers:
        return min(config.workers, experiments)
    return 1 if device == "cuda" else min(os.cpu_count() or 1, experiments)
