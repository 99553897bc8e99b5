"""Schedule: in which order are the experiments of a comparison done, and which need not be?

One experiment of each seed leads, or with masks=shared the trunk: the others of that seed wait for
it and branch off its run. What was done before is found by its fingerprint; what was interrupted
is resumed; what another process is at work on is waited for.
"""

import time
from dataclasses import dataclass, field

from experiments.comparison import record
from experiments.config.comparison import Arm, CompareConfig, arms_of, trunk_of
from experiments.config.experiment import Config, Resolved
from experiments.config.fields import NONE
from experiments.processes.pool import Executor, Outcome, open_pool, worker_count
from experiments.processes.signals import raise_if_interrupted
from experiments.processes.terminal import Echo
from experiments.run import run_experiment
from experiments.tracking.resume import (
    FoundRun,
    find_experiment,
    is_finished,
    other_versions_note,
    resume_config,
)
from experiments.tracking.session import close_dead_runs, is_running

Outcomes = dict[Arm, Outcome]
ELSEWHERE_SECONDS = 2.0  # between looks whether another process is done


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
    """The experiments of a comparison: those that wait, those at work, and what became of them."""

    config: CompareConfig
    facts: Facts
    parent: str
    echo: Echo
    workers: Executor
    total: int = 0
    leaders: dict[int, Arm] = field(default_factory=dict)
    waiting: list[Arm] = field(default_factory=list)
    outcomes: Outcomes = field(default_factory=dict)
    elsewhere: set[Arm] = field(default_factory=set)

    def plan(self, arms: list[Arm]) -> None:
        """Recall what was done before, and line up the rest, leaders first."""
        if self.config.masks == "own":
            done = [arm for arm in arms if self._is_done(arm)]
            # A finished arm leads rather than the first, which would train the dense network anew.
            self.leaders = {arm.seed: arm for arm in reversed([*done, *arms])}
        else:
            self.leaders = trunks_of(self.config, arms)
        self.waiting = list(dict.fromkeys([*(self.leaders[arm.seed] for arm in arms), *arms]))
        self.total = len(self.waiting)

    def begin_ready(self) -> None:
        """Begin what nothing keeps waiting, as long as a worker is free."""
        for arm in list(self.waiting):
            leader = self.leaders[arm.seed]
            if self.workers.has_room and (arm == leader or leader in self.outcomes):
                self._begin(arm)

    def end(self, arm: Arm, outcome: Outcome, how: str = "done") -> None:
        """Note what became of an experiment."""
        if outcome.died:
            close_dead_runs(self.parent, outcome.reason)
        self.outcomes[arm] = outcome
        what = f"failed: {outcome.reason}" if outcome.reason else how
        self.echo(f"{arm.name}: {what} ({len(self.outcomes)} of {self.total})")

    def _begin(self, arm: Arm) -> None:
        """Do an experiment, or see that it is done, or cannot be, or is being done elsewhere."""
        leader, config = self.leaders[arm.seed], self._config_of(arm)
        if config is None:
            self.waiting.remove(arm)
            reason = f"its trunk failed: {self.outcomes[leader].reason}"
            self.end(arm, Outcome(None, reason))
            return
        found = self._find(arm, config)
        if found and is_running(found):
            if arm not in self.elsewhere:
                self.echo(f"{arm.name}: another process is at work on it; waiting for that")
            self.elsewhere.add(arm)
            return
        self.waiting.remove(arm)
        if found:
            record.adopt(found, self.parent)
        if found and is_finished(found):
            self.end(arm, Outcome(found.info.run_id), "done before")
        else:
            resumed = self._resumed(arm, config, found)
            self.workers.submit(arm.name, run_experiment, resumed, self.parent)

    def _config_of(self, arm: Arm) -> Config | None:
        """The config of an experiment, branching off its leader; None without a trunk it needs."""
        leader = self.leaders.get(arm.seed, arm)
        masks, branch = "own", NONE
        if arm != leader:
            masks = self.config.masks
            branch = self.outcomes[leader].run_id or NONE
        if masks == "shared" and branch == NONE:
            return None
        more = {"dataset": self.facts.dataset, "masks": masks, "branch_of": branch}
        return self.config.config_of(arm.method, arm.seed, **more)

    def _is_done(self, arm: Arm) -> bool:
        config = self._config_of(arm)
        found = config and self._find(arm, config)
        return bool(found and is_finished(found))

    def _find(self, arm: Arm, config: Config) -> FoundRun | None:
        """The run of the same experiment, if there is one."""
        resolved = config.resolved(self.facts.dataset)
        return find_experiment(resolved, self.facts.digests[arm.seed])

    def _resumed(self, arm: Arm, config: Config, found: FoundRun | None) -> Config:
        """The config that goes on with a run, if there is one that can be gone on with."""
        if not found:
            return config
        try:
            return resume_config(found.info.run_id, config.data_root)
        except ValueError as error:
            self.echo(f"{arm.name}: done anew, since an earlier run is of no use ({error})")
            return config


def do_arms(config: CompareConfig, facts: Facts, parent: str, echo: Echo) -> Outcomes:
    """What became of every arm: found done already, or done now."""
    arms = arms_of(config)
    most = worker_count(config.workers, facts.resolved.device)
    with open_pool(min(most, len(arms))) as workers:
        schedule = Schedule(config, facts, parent, echo, workers)
        if note := other_versions_note(facts.dataset, facts.resolved.model):
            echo(note)
        schedule.plan(arms)
        by_name = {arm.name: arm for arm in schedule.waiting}
        echo(f"{schedule.total} experiments, {workers.count} at a time")
        while schedule.waiting or workers.running:
            schedule.begin_ready()
            if workers.running:
                for name, outcome in workers.wait(echo).items():
                    schedule.end(by_name[name], outcome)
            elif schedule.waiting:  # all of them for other processes
                raise_if_interrupted()
                time.sleep(ELSEWHERE_SECONDS)
    return {arm: schedule.outcomes[arm] for arm in arms}


def trunks_of(config: CompareConfig, arms: list[Arm]) -> dict[int, Arm]:
    """By seed, the experiment whose masks are shared; an arm, where one is just that."""
    trunks = {arm.seed: trunk_of(config, arm.seed) for arm in arms}
    return trunks | {arm.seed: arm for arm in arms if arm.method == trunks[arm.seed].method}
