"""Claims: of several processes that need the same experiment, one runs it and the others wait.

On one machine a lock decides, before the tracking store is searched: then of two processes only one
starts or resumes a run. Machines without a common lock may start a run at the same time: then one
finds the run of the other and deletes its own (`duplicate_of`).
"""

import hashlib
import time
from contextlib import ExitStack
from types import TracebackType

import mlflow
from mlflow.entities import Run as MlflowRun

from experiments.config.experiment import Config, Resolved
from experiments.processes.locks import DEAD_AFTER_SECONDS, run_lock
from experiments.processes.signals import raise_if_interrupted
from experiments.processes.tasks import POLL_SECONDS, THREADS_PER_WORKER
from experiments.tracking.fingerprint import fingerprint
from experiments.tracking.resume import (
    STARTED,
    Earlier,
    find_or_resume,
    is_finished,
    with_fingerprint,
)
from experiments.tracking.session import INTERNAL, is_running, tags_of

LOOK_SECONDS = 2.0  # between looks whether another process has finished


class Claims:
    """The experiments that this process runs, by name; released when the block ends.

    An active MLflow run says in which of MLflow's experiments they are.
    """

    def __init__(self) -> None:
        self.held: dict[str, ExitStack] = {}
        self.elsewhere: dict[str, str] = {}  # runs of other processes, by name

    def __enter__(self) -> "Claims":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for name in list(self.held):
            self.release(name)

    def claim(self, name: str, config: Config, dataset: str, data_digest: str) -> Earlier | None:
        """What is known of an experiment, which is now ours; None while another process runs it."""
        if other := self.elsewhere.get(name):
            run = mlflow.get_run(other)
            if is_running(run):
                return None
            del self.elsewhere[name]
            if is_finished(run):
                return Earlier(config, run)
        held = ExitStack()
        try:
            held.enter_context(run_lock(_lock_name(config.resolved(dataset), data_digest)))
        except ValueError:
            return None
        with held:
            earlier = find_or_resume(config, dataset, data_digest)
            if earlier.run and is_running(earlier.run):
                return None
            self.held[name] = held.pop_all()
        return earlier

    def release(self, name: str, duplicate: str = "") -> None:
        """Give up a claim; `duplicate` is the run of another process that has the experiment."""
        self.held.pop(name, ExitStack()).close()
        if duplicate:
            self.elsewhere[name] = duplicate


def _lock_name(config: Resolved, data_digest: str) -> str:
    """The name of the lock of an experiment, in the active run's MLflow experiment."""
    active = mlflow.active_run()
    assert active
    where = f"{mlflow.get_tracking_uri()} {active.info.experiment_id}"
    text = f"{where} {fingerprint(config, data_digest, THREADS_PER_WORKER)}"
    return f"claim-{hashlib.blake2b(text.encode(), digest_size=16).hexdigest()}"


def duplicate_of(run_id: str, key: str) -> MlflowRun | None:
    """Another run of the same experiment, finished or in progress; None if there is none.

    Several processes, on one or more machines, may announce the same experiment at the same time:
    each logs its fingerprint, calls this, and calls `mark_started` if there is no duplicate. As in
    Lamport's bakery algorithm (1974), one of them finds no duplicate and the others find one. A run
    that has started is a duplicate, and so is one that was announced earlier (by start time, then
    run id). This waits for one that was announced later, which may have looked before it could see
    this run; after `DEAD_AFTER_SECONDS`, that one counts as a duplicate too.

    Args:
        run_id: Of the active run, which has the fingerprint `key`.
    """

    def order(run: MlflowRun) -> tuple[int, str]:
        return run.info.start_time, run.info.run_id

    own, deadline = order(mlflow.get_run(run_id)), time.monotonic() + DEAD_AFTER_SECONDS
    while True:
        others = [
            run
            for run in with_fingerprint(key)
            if run.info.run_id != run_id and (is_finished(run) or is_running(run))
        ]
        late = time.monotonic() > deadline
        for run in others:
            if is_finished(run) or STARTED in tags_of(run) or order(run) < own or late:
                return run
        if not others:
            return None
        raise_if_interrupted()
        time.sleep(POLL_SECONDS)


def mark_started(run_id: str) -> None:
    """Mark a run as the one that runs its experiment."""
    mlflow.MlflowClient().set_tag(run_id, f"{INTERNAL}{STARTED}", "true")
