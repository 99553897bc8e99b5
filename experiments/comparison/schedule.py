"""Schedule: in which order do the arms of a comparison run, and which of them need not run?

Each dense network has a base arm, which runs first: the others branch off its run, so the dense
network of a seed is trained once (once for each epoch to rewind to). With masks=shared the base arm
is the trunk, whose masks the others retrain. An arm that has already run is found by its
fingerprint, and one that was interrupted is resumed. If another process is running it, the schedule
waits for that.
"""

import time
from dataclasses import dataclass, field

from experiments.comparison import record
from experiments.config.comparison import Arm, CompareConfig, arms_of, trunk_of
from experiments.config.experiment import Config, Resolved
from experiments.config.fields import NONE
from experiments.processes.executors import EXECUTORS, Needs
from experiments.processes.locks import HEARTBEAT_SECONDS
from experiments.processes.signals import raise_if_interrupted
from experiments.processes.tasks import Executor, Outcome
from experiments.processes.terminal import Echo
from experiments.run import run_nested
from experiments.tracking import server
from experiments.tracking.claims import LOOK_SECONDS, Claims
from experiments.tracking.resume import find_experiment, is_finished, other_versions_note
from experiments.tracking.session import close_dead_runs

Outcomes = dict[Arm, Outcome]


@dataclass(frozen=True)
class Inputs:
    """The data of a comparison, and what follows from them before anything is trained."""

    config: CompareConfig
    digests: dict[int, str]  # of the data, by seed
    resolved: Resolved  # of the first arm
    record: record.Record  # without arms


@dataclass
class Schedule:
    """The arms of a comparison: which wait, which run, and how the others ended."""

    config: CompareConfig
    inputs: Inputs
    parent: str
    echo: Echo
    executor: Executor
    claims: Claims
    total: int = 0
    base_arms: dict[tuple[object, ...], Arm] = field(default_factory=dict)  # by `Arm.dense`
    waiting: list[Arm] = field(default_factory=list)
    outcomes: Outcomes = field(default_factory=dict)
    in_other_processes: set[Arm] = field(default_factory=set)
    death: str = ""  # why the last process died, if any did
    death_checked: float = 0.0

    def plan(self, arms: list[Arm]) -> None:
        """Choose the base arms, and put them first."""
        if self.config.masks == "own":
            finished = [arm for arm in arms if self._is_finished(arm)]
            # Prefer a finished arm to the first one, which would train the dense network again.
            self.base_arms = {arm.dense: arm for arm in reversed([*finished, *arms])}
        else:
            self.base_arms = trunks_of(self.config, arms)
        self.waiting = list(dict.fromkeys([*(self.base_arms[arm.dense] for arm in arms), *arms]))
        self.total = len(self.waiting)

    def start_ready(self) -> None:
        """Start the arms whose base arm has ended, while the executor has room."""
        for arm in list(self.waiting):
            base = self.base_arms[arm.dense]
            if self.executor.has_room and (arm == base or base in self.outcomes):
                self._start(arm)

    def finish(self, arm: Arm, outcome: Outcome, how: str = "done") -> None:
        """Record how an arm ended, and report it; one that another process has waits again."""
        self.claims.release(arm.name, outcome.duplicate)
        if outcome.duplicate:
            self.waiting.insert(0, arm)
            self._wait_for_other(arm)
            return
        if outcome.died:
            self.death, self.death_checked = outcome.reason, 0.0
            self.close_dead()
        self.outcomes[arm] = outcome
        what = f"failed: {outcome.reason}" if outcome.reason else how
        self.echo(f"{arm.name}: {what} ({len(self.outcomes)} of {self.total})")

    def close_dead(self) -> None:
        """Mark the runs of processes that died; on another machine it takes time to be sure."""
        if self.death and time.monotonic() - self.death_checked > HEARTBEAT_SECONDS:
            close_dead_runs(self.parent, self.death)
            self.death_checked = time.monotonic()

    def _start(self, arm: Arm) -> None:
        """Start an arm, unless it has already run, cannot run, or runs in another process."""
        config = self._config_of(arm)
        if config is None:
            self.waiting.remove(arm)
            reason = self.outcomes[self.base_arms[arm.dense]].reason
            self.finish(arm, Outcome(None, f"its trunk failed: {reason}"))
            return
        dataset, data_digest = self.inputs.resolved.dataset, self.inputs.digests[arm.seed]
        earlier = self.claims.claim(arm.name, config, dataset, data_digest)
        if earlier is None:
            self._wait_for_other(arm)
            return
        self.waiting.remove(arm)
        if earlier.run:
            record.adopt(earlier.run, self.parent)
        if earlier.run and is_finished(earlier.run):
            self.finish(arm, Outcome(earlier.run.info.run_id), "already done")
            return
        if earlier.problem:
            self.echo(f"{arm.name}: rerun: the earlier run cannot be resumed ({earlier.problem})")
        digest = data_digest if self.config.executor == "ray" else None
        self.executor.submit(arm.name, run_nested, earlier.config, self.parent, digest)

    def _wait_for_other(self, arm: Arm) -> None:
        if arm not in self.in_other_processes:
            self.echo(f"{arm.name}: waiting for another process that is running it")
        self.in_other_processes.add(arm)

    def _config_of(self, arm: Arm) -> Config | None:
        """The config of an arm, which branches off its base arm; None if it lacks a trunk."""
        base = self.base_arms.get(arm.dense, arm)
        masks = "own" if arm == base else self.config.masks
        branch = NONE if arm == base else self.outcomes[base].run_id or NONE
        if masks == "shared" and branch == NONE:
            return None
        more = {"dataset": self.inputs.resolved.dataset, "masks": masks, "branch_of": branch}
        return self.config.config_of(arm, **more)

    def _is_finished(self, arm: Arm) -> bool:
        config = self._config_of(arm)
        assert config, "with masks=own no arm lacks a trunk"
        resolved = config.resolved(self.inputs.resolved.dataset)
        found = find_experiment(resolved, self.inputs.digests[arm.seed])
        return found is not None and is_finished(found)


def run_arms(config: CompareConfig, inputs: Inputs, parent: str, echo: Echo) -> Outcomes:
    """Run the arms that have not run yet; how each arm ended."""
    arms = arms_of(config)
    needs = Needs(config.workers, inputs.resolved.device, server.tracking_uri(), len(arms))
    with Claims() as claims, EXECUTORS[config.executor](needs) as executor:
        schedule = Schedule(config, inputs, parent, echo, executor, claims)
        if note := other_versions_note(inputs.resolved.dataset, inputs.resolved.model):
            echo(note)
        schedule.plan(arms)
        by_name = {arm.name: arm for arm in schedule.waiting}
        echo(f"{schedule.total} experiments, {executor.count} at a time")
        while schedule.waiting or executor.running:
            schedule.start_ready()
            if executor.running:
                for name, outcome in executor.wait(echo, HEARTBEAT_SECONDS).items():
                    schedule.finish(by_name[name], outcome)
            elif schedule.waiting:  # the rest is in other processes
                raise_if_interrupted()
                time.sleep(LOOK_SECONDS)
            schedule.close_dead()
    close_dead_runs(parent, "its process ended without marking it")  # a server did not answer
    return {arm: schedule.outcomes[arm] for arm in arms}


def trunks_of(config: CompareConfig, arms: list[Arm]) -> dict[tuple[object, ...], Arm]:
    """By `Arm.dense`, the arm whose masks are shared; one of `arms`, if that is a trunk."""
    trunks = {arm.dense: trunk_of(config, arm.seed) for arm in arms}
    same = [arm for arm in arms if (arm.method, arm.own) == (trunks[arm.dense].method, ())]
    return trunks | {arm.dense: arm for arm in same}
