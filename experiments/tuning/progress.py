"""Progress: start trials and wait for them, here or in other commands, until none is left."""

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import ClassVar

from experiments.processes.signals import raise_if_interrupted
from experiments.processes.tasks import Executor, Outcome, Work
from experiments.processes.terminal import Echo
from experiments.tuning import runs
from experiments.tuning.choose import latest_failures
from experiments.tuning.study import Study
from experiments.tuning.trial import Job, claim_and_run

RECLAIM_SECONDS = 10.0  # between searches for trials whose process died
POLL_SECONDS = 1.0  # while only other commands run trials
MOST_FAILURES = 10  # in a row, before the search ends


@dataclass
class Progress:
    """The studies of a command, and the workers that run their trials."""

    studies: dict[str, Study]  # by method
    jobs: dict[str, Job]
    workers: Executor
    echo: Echo
    ended_before: dict[str, set[int]] = field(default_factory=dict)  # numbers of trials
    reclaimed: float = 0.0  # when, monotonic
    submitted: Counter[str] = field(default_factory=Counter)  # tasks, by method
    work: ClassVar[Work] = staticmethod(claim_and_run)

    def __post_init__(self) -> None:
        for method, study in self.studies.items():
            ended = (trial.number for trial in study.trials() if trial.state.is_finished())
            self.ended_before[method] = set(ended)

    def advance(self) -> bool:
        """Start the trials that there is room for, and wait a little; False once all have ended."""
        if time.monotonic() - self.reclaimed > RECLAIM_SECONDS:
            self.reclaim_dead()
        self._submit()
        if self.workers.running:
            for name, outcome in self.workers.wait(self.echo, RECLAIM_SECONDS).items():
                self._handle(name.partition("#")[0], outcome)
            return True
        if all(study.ended() >= study.search.config.trials for study in self.studies.values()):
            self.reclaim_dead()
            return False
        raise_if_interrupted()
        time.sleep(POLL_SECONDS)
        return True

    def _submit(self) -> None:
        waiting = {method: study.waiting() for method, study in self.studies.items()}
        while self.workers.has_room and any(waiting.values()):
            # All methods advance at the same pace.
            method = min((m for m in waiting if waiting[m]), key=lambda m: self.submitted[m])
            waiting[method] -= 1
            self.submitted[method] += 1
            name = f"{method}#{self.submitted[method]}"
            self.workers.submit(name, self.work, self.jobs[method])

    def _handle(self, method: str, outcome: Outcome) -> None:
        if outcome.died or outcome.reason == "it was stopped":
            end = f"died ({outcome.reason})" if outcome.died else "was stopped"
            self.echo(f"{method}: a worker {end}; its trial is retried{' once' * outcome.died}")
            self.reclaim_dead()
        elif outcome.reason:
            raise ValueError(f"{outcome.reason}; run the same command again to continue")
        failures = latest_failures(self.studies[method].trials(), self.ended_before[method])
        if len(failures) >= MOST_FAILURES:
            raise ValueError(
                f"the last {MOST_FAILURES} trials of {self.studies[method].search.name} failed, "
                f"the latest with: {failures[-1]}"
            )

    def reclaim_dead(self) -> None:
        """Leave no trial and no run to a dead process, and enqueue the trials that are missing."""
        for method, study in self.studies.items():
            study.reclaim_dead()
            study.enqueue_missing()
            runs.close_dead(self.jobs[method].study_run, study.table())
        self.reclaimed = time.monotonic()
