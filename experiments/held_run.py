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
from contextlib import ExitStack, contextmanager, suppress

import mlflow
from mlflow.entities import Param, RunTag
from mlflow.exceptions import MlflowException

from experiments import leftover, summary
from experiments.fields import NONE
from experiments.liveness import (
    Interrupted,
    check_stop,
    heartbeat,
    lock_name,
    signature,
    sole_worker,
    undisturbed,
)
from experiments.server import attached_run, impatient

EXPERIMENT = "weight-loss"
CHOOSE_EXPERIMENT = ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID")
ERRORS = (ValueError, OSError, MlflowException)  # what a user can meet, told on one line
_DEFAULT_NAME = re.compile(r"[a-z]+-[a-z]+-\d+")


@contextmanager
def held_run(name: str, resume: str = NONE, parent: str | None = None) -> Iterator[str]:
    """The id of the run to log to: the one `mlflow run` has opened, a new one, or `resume`'s.

    On the way out the run is marked FINISHED; KILLED if it was interrupted; FAILED, with the
    reason in the tag `error`, on any other exception.

    Args:
        name: Of a new run, or of one whose name nobody has chosen.
        resume: Id of a run to continue, which the caller holds already (`sole_worker`).
        parent: Id of the run that a new one is nested under.
    """
    attached = attached_run()
    status, tags = "FAILED", {}
    with ExitStack() as held:
        try:
            with undisturbed():
                run_id = _start(name, resume, parent)
            if resume == NONE:
                held.enter_context(sole_worker(run_id))
            elif attached and attached != run_id:
                leftover.label(attached, run_id)
                held.callback(leftover.delete_when_closed, attached)
            with heartbeat(lambda: beat(run_id)):
                yield run_id
                check_stop()
            status = "FINISHED"
        except KeyboardInterrupt as stop:
            signal = stop.signal_name if isinstance(stop, Interrupted) else "SIGINT"
            status, tags = "KILLED", {"interrupted": signal}
            raise
        except BaseException as error:
            tags = {"error": summary.explain(error)}
            raise
        finally:
            _close(status, tags)


def choose_experiment() -> None:
    """Log to our experiment, unless the environment names another."""
    if not any(os.environ.get(name) for name in CHOOSE_EXPERIMENT):
        mlflow.set_experiment(EXPERIMENT)


def _start(name: str, resume: str, parent: str | None) -> str:
    if resume != NONE:
        os.environ.pop("MLFLOW_RUN_ID", None)
        for tag in {"error", "interrupted"} & set(mlflow.start_run(run_id=resume).data.tags):
            mlflow.delete_tag(tag)
        return resume
    attached = attached_run()
    choose_experiment()
    run = mlflow.start_run(
        run_name=None if attached else name, parent_run_id=parent, tags=signature()
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
        with impatient():
            mlflow.end_run(status)
            for tag in tags.items():
                mlflow.MlflowClient().set_tag(active.info.run_id, *tag)
    except (MlflowException, OSError) as error:
        if status == "FINISHED":
            raise
        why = summary.explain(error)
        print(f"run {active.info.run_id} could not be marked {status}: {why}", file=sys.stderr)


def describe(run_id: str, params: Mapping[str, str], tags: Mapping[str, str]) -> None:
    """Say what a run is; params that `mlflow run` has logged already may not change, and stay."""
    client = mlflow.MlflowClient()
    known = client.get_run(run_id).data.params
    new = [Param(*param) for param in params.items() if param[0] not in known]
    client.log_batch(run_id, params=new, tags=[RunTag(*tag) for tag in tags.items()])


def beat(run_id: str) -> None:
    """Write into a run that this process works on it, and when it last said so."""
    tags = {"host": socket.gethostname(), "lock": lock_name(run_id), "heartbeat": f"{time.time()}"}
    with suppress(MlflowException):  # a lost server shows when a round is logged
        mlflow.MlflowClient().log_batch(run_id, tags=[RunTag(*tag) for tag in tags.items()])
