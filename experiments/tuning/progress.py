"""Progress: the trials of studies are done, here or elsewhere, until none is left."""

import time
from dataclasses import dataclass, field
from itertools import count
from typing import ClassVar

from experiments.processes.executors import Executor, Outcome, Work
from experiments.processes.signals import raise_if_interrupted
from experiments.processes.terminal import Echo
from experiments.tuning import runs
from experiments.tuning.study import Study
from experiments.tuning.table import latest_failures, states_of
from experiments.tuning.trial import Job, claim_and_run

SWEEP_SECONDS = 10.0  # between looks for trials whose process died on another machine
ELSEWHERE_SECONDS = 1.0  # between looks whether other commands are done
IN_A_ROW = 10  # failures that end a study


@dataclass
class Progress:
    """The studies of a command, and who is at work on them here."""

    studies: dict[str, Study]  # by method
    jobs: dict[str, Job]
    workers: Executor
    echo: Echo
    before: dict[str, set[int]] = field(default_factory=dict)  # trials that had ended
    swept: float = 0.0
    given: dict[str, int] = field(default_factory=dict)  # tasks, by method
    numbers: "count[int]" = field(default_factory=count)
    work: ClassVar[Work] = staticmethod(claim_and_run)

    def __post_init__(self) -> None:
        for method, study in self.studies.items():
            ended = (trial.number for trial in study.trials() if trial.state.is_finished())
            self.before[method] = set(ended)

    def go_on(self) -> bool:
        """Begin what can be begun, and wait a little; whether there is more to do."""
        self._sweep_now_and_then()
        waiting = {method: study.waiting() for method, study in self.studies.items()}
        while self.workers.has_room and any(waiting.values()):
            # The one that has had least, so that all get on alike.
            method = min((m for m in waiting if waiting[m]), key=lambda m: self.given.get(m, 0))
            waiting[method] -= 1
            self.given[method] = self.given.get(method, 0) + 1
            name = f"{method}#{next(self.numbers)}"
            self.workers.submit(name, self.work, self.jobs[method])
        if self.workers.running:
            for name, outcome in self.workers.wait(self.echo, SWEEP_SECONDS).items():
                self._ended(name.partition("#")[0], outcome)
            return True
        if all(study.ended() >= study.search.config.trials for study in self.studies.values()):
            self.sweep()
            return False
        raise_if_interrupted()
        time.sleep(ELSEWHERE_SECONDS)
        return True

    def _ended(self, method: str, outcome: Outcome) -> None:
        if outcome.died:
            self.echo(f"{method}: a worker died ({outcome.reason}); its trial is tried again once")
            self.sweep()
        elif outcome.reason == "it was stopped":
            self.echo(f"{method}: a worker was stopped; its trial is tried again")
            self.sweep()
        elif outcome.reason:
            raise ValueError(f"{outcome.reason}; the same command goes on from here")
        failures = latest_failures(self.studies[method].trials(), self.before[method])
        if len(failures) >= IN_A_ROW:
            raise ValueError(
                f"the last {IN_A_ROW} trials of {self.studies[method].search.name} failed in a "
                f"row, at last with: {failures[-1]}"
            )

    def _sweep_now_and_then(self) -> None:
        if time.monotonic() - self.swept > SWEEP_SECONDS:
            self.sweep()

    def sweep(self) -> None:
        """See to it that no trial is left to a dead process, and that enough wait to be done."""
        for method, study in self.studies.items():
            study.sweep()
            study.fill_up()
            runs.close_dead(self.jobs[method].study_run, states_of(study.table()))
        self.swept = time.monotonic()
