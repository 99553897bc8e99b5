"""Held runs: a run in MLflow that this process works on, from its start to how it ends.

A process that works on a run holds its lock and renews its heartbeat (see liveness.py), so that
others can tell a run at work from one that was killed.
"""

import os
import re
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext, suppress

import mlflow
from mlflow.entities import Param, RunTag
from mlflow.entities import Run as MlflowRun
from mlflow.exceptions import MlflowException

from experiments.config.fields import NONE
from experiments.processes.locks import (
    heartbeat,
    is_alive,
    lock_name,
    process_tags,
    run_lock,
)
from experiments.processes.signals import Interrupted, defer_signals, raise_if_interrupted
from experiments.processes.terminal import describe_error
from experiments.tracking import orphan
from experiments.tracking.server import attached_run, short_timeouts

EXPERIMENT = "weight-loss"
CHOOSE_EXPERIMENT = ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID")
_DEFAULT_NAME = re.compile(r"[a-z]+-[a-z]+-\d+")


@contextmanager
def tracked_run(
    name: str,
    resume: str = NONE,
    parent: str | None = None,
    tags: Mapping[str, str] | None = None,
    locked: bool = True,
) -> Iterator[str]:
    """The id of the run to log to: the one `mlflow run` has opened, a new one, or `resume`'s.

    On the way out the run is marked FINISHED; KILLED if it was interrupted; FAILED, with the
    reason in the tag `error`, on any other exception.

    Args:
        name: Of a new run, or of one whose name nobody has chosen.
        resume: Id of a run to continue, which the caller holds already (`sole_worker`).
        parent: Id of the run that a new one is nested under.
        tags: Of a new run, from its first moment.
        locked: Whether the run gets a lock and a heartbeat; a trial's run does not, since the
            trial has both.
    """
    attached = attached_run()
    status, reasons = "FAILED", {}
    with ExitStack() as held:
        try:
            with defer_signals():
                run_id = _start(name, resume, parent, tags or {})
            if resume == NONE:
                if locked:
                    held.enter_context(run_lock(run_id))
            elif attached and attached != run_id:
                orphan.label(attached, run_id)
                held.callback(orphan.delete_when_closed, attached)
            with heartbeat(lambda: write_heartbeat(run_id)) if locked else nullcontext():
                yield run_id
                raise_if_interrupted()
            status = "FINISHED"
        except KeyboardInterrupt as stop:
            signal = stop.signal_name if isinstance(stop, Interrupted) else "SIGINT"
            status, reasons = "KILLED", {"interrupted": signal}
            raise
        except BaseException as error:
            reasons = {"error": describe_error(error)}
            raise
        finally:
            _close(status, reasons)


def choose_experiment() -> None:
    """Log to our experiment, unless the environment names another."""
    if not any(os.environ.get(name) for name in CHOOSE_EXPERIMENT):
        mlflow.set_experiment(EXPERIMENT)


def _start(name: str, resume: str, parent: str | None, tags: Mapping[str, str]) -> str:
    if resume != NONE:
        os.environ.pop("MLFLOW_RUN_ID", None)
        for tag in {"error", "interrupted"} & set(mlflow.start_run(run_id=resume).data.tags):
            mlflow.delete_tag(tag)
        return resume
    attached = attached_run()
    choose_experiment()
    run = mlflow.start_run(
        run_name=None if attached else name,
        parent_run_id=parent,
        tags=process_tags() | dict(tags),
    )
    if _DEFAULT_NAME.fullmatch(run.info.run_name):
        mlflow.MlflowClient().update_run(run.info.run_id, name=name)
    return str(run.info.run_id)


def _close(status: str, tags: dict[str, str]) -> None:
    """Write how the run ended; a server that is lost by then must not hide why."""
    active = mlflow.active_run()
    if active is None:
        return
    try:
        with short_timeouts():
            mlflow.end_run(status)
            for tag in tags.items():
                mlflow.MlflowClient().set_tag(active.info.run_id, *tag)
    except (MlflowException, OSError) as error:
        if status == "FINISHED":
            raise
        why = describe_error(error)
        print(f"run {active.info.run_id} could not be marked {status}: {why}", file=sys.stderr)


def describe(run_id: str, params: Mapping[str, str], tags: Mapping[str, str]) -> None:
    """Say what a run is; params that `mlflow run` has logged already may not change, and stay."""
    client = mlflow.MlflowClient()
    known = client.get_run(run_id).data.params
    new = [Param(*param) for param in params.items() if param[0] not in known]
    client.log_batch(run_id, params=new, tags=[RunTag(*tag) for tag in tags.items()])


def write_heartbeat(run_id: str) -> None:
    """Write into a run that this process works on it, and when it last said so."""
    tags = {"host": socket.gethostname(), "lock": lock_name(run_id), "heartbeat": f"{time.time()}"}
    with suppress(MlflowException):  # a lost server shows when a round is logged
        mlflow.MlflowClient().log_batch(run_id, tags=[RunTag(*tag) for tag in tags.items()])


TRACKING_ERRORS = (OSError, MlflowException)  # a store or a server that does not answer
PARENT = "mlflow.parentRunId"


def is_running(run: MlflowRun) -> bool:
    """Whether a living process works on a run."""
    return run.info.status == "RUNNING" and is_alive(run.info.run_id, run.data.tags)


def close_dead_runs(parent: str, reason: str) -> None:
    """Mark the runs nested under `parent` FAILED whose process on this machine has died."""
    active, client = mlflow.active_run(), mlflow.MlflowClient()
    assert active
    for run in mlflow.search_runs(
        [active.info.experiment_id],
        filter_string=f"tags.`{PARENT}` = '{parent}' AND attributes.status = 'RUNNING'",
        output_format="list",
    ):
        run_id, tags = run.info.run_id, run.data.tags
        if tags.get("lock") == lock_name(run_id) and not is_alive(run_id, tags):
            client.set_tag(run_id, "error", reason)
            client.set_terminated(run_id, "FAILED")


@contextmanager
def claim_run(run_id: str) -> Iterator[bool]:
    """Hold the run of a study, unless another command does; whether it is ours.

    On the way out it is marked FINISHED, KILLED or FAILED, as a run of ours always is.
    """
    client, status = mlflow.MlflowClient(), "FAILED"
    info = client.get_run(run_id)
    with ExitStack() as held:
        try:
            held.enter_context(run_lock(run_id))
        except ValueError:
            yield False
            return
        elsewhere = info.data.tags.get("lock") != lock_name(run_id)
        if info.info.status == "RUNNING" and elsewhere and is_alive(run_id, info.data.tags):
            yield False
            return
        client.update_run(run_id, status="RUNNING")
        try:
            with heartbeat(lambda: write_heartbeat(run_id)):
                yield True
            status = "FINISHED"
        except KeyboardInterrupt:
            status = "KILLED"
            raise
        finally:
            with suppress(MlflowException):
                client.set_terminated(run_id, status)
