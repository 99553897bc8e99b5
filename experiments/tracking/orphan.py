"""Orphans: the run that `mlflow run` opens for a command which then works on another run or fails.

`mlflow run` sets the status of its run after the command has ended, and fails if the run is deleted
by then. So a process that outlives the command deletes it.
"""

import subprocess
import sys
import time
from contextlib import suppress

import mlflow
from mlflow.exceptions import MlflowException

from experiments.processes.program import IMPORT_ROOT
from experiments.tracking.server import short_timeouts

WAIT_SECONDS = 60.0


def label(run_id: str, resumed: str) -> None:
    """Name the run after the one that is resumed, in case it cannot be deleted."""
    client = mlflow.MlflowClient()
    client.update_run(run_id, name=f"resumes {resumed}")
    client.set_tag(run_id, "mlflow.parentRunId", resumed)


def delete_failed(run_id: str, error: str) -> None:
    """Delete the run of a command that failed before it logged anything; the tag `error` says why.

    A run that the user named, with MLFLOW_RUN_ID or `mlflow run --run-id`, stays.
    """
    with short_timeouts(), suppress(MlflowException, OSError):  # the user has read the error
        if is_disposable(run_id):
            mlflow.MlflowClient().set_tag(run_id, "error", error)
            delete_when_closed(run_id)


def dispose(run_id: str, instead: str = "") -> None:
    """Delete the run of a command that works on another one, `instead`, or on none.

    A run that the user named stays.
    """
    if is_disposable(run_id):
        if instead:
            label(run_id, instead)
        delete_when_closed(run_id)


def is_disposable(run_id: str) -> bool:
    """Whether `mlflow run` has opened the run for this command."""
    run = mlflow.get_run(run_id)
    opened = run.data.tags.get("mlflow.source.type") == "PROJECT"
    return opened and run.info.status == "RUNNING" and not run.data.metrics


def delete_when_closed(run_id: str) -> None:
    """Start a process that deletes the run once `mlflow run` has closed it."""
    subprocess.Popen(
        [sys.executable, "-m", __name__, run_id],
        cwd=IMPORT_ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def main(run_id: str) -> None:
    """Wait at most `WAIT_SECONDS` for the run to end, and delete it."""
    client = mlflow.MlflowClient()
    give_up = time.monotonic() + WAIT_SECONDS
    while client.get_run(run_id).info.status == "RUNNING" and time.monotonic() < give_up:
        time.sleep(0.2)
    if client.get_run(run_id).info.status == "RUNNING":  # `mlflow run` itself was killed
        client.set_terminated(run_id, "KILLED")
    client.delete_run(run_id)


if __name__ == "__main__":
    main(sys.argv[1])
