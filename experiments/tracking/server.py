"""Server: is the tracking server there, and what has `mlflow run` opened on it for us?"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit, urlunsplit

import mlflow
from mlflow.exceptions import MlflowException

from experiments.processes.terminal import describe_error


def mark_failed(run_id: str, error: BaseException) -> None:
    """Mark a run that nobody has started yet FAILED, and keep the reason."""
    with short_timeouts(), suppress(MlflowException, OSError):  # a lost server has been told of
        client = mlflow.MlflowClient()
        client.set_tag(run_id, "error", describe_error(error))
        client.set_terminated(run_id, "FAILED")


@contextmanager
def short_timeouts() -> Iterator[None]:
    """Wait for a tracking server that does not answer some seconds, not MLflow's minutes."""
    limits = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
    before = {name: os.environ.get(name) for name in limits}
    os.environ.update({name: before[name] or value for name, value in limits.items()})
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def ping() -> None:
    """Ask the tracking server something; raises whatever its kind of store does."""
    # It prints a database's errors with their tracebacks, which we tell on one line.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    with short_timeouts():
        mlflow.MlflowClient().search_experiments(max_results=1)


def check_tracking() -> None:
    """See that the tracking server answers, before anything else is done.

    Raises:
        ValueError: If it does not.
    """
    try:
        ping()
    except Exception as error:  # each kind of store has errors of its own
        raise ValueError(
            f"the tracking server {mlflow.get_tracking_uri()} does not answer "
            f"({describe_error(error)}): start it, or set MLFLOW_TRACKING_URI to another"
        ) from None


def attached_run() -> str | None:
    """The run that `mlflow run` opened for this process and nobody has started yet."""
    return os.environ.get("MLFLOW_RUN_ID")


@contextmanager
def tracking_to(uri: str, experiment_id: str) -> Iterator[None]:
    """Whatever is tracked meanwhile, by this process or its children, goes to this experiment."""
    chosen = {"MLFLOW_TRACKING_URI": uri, "MLFLOW_EXPERIMENT_ID": experiment_id}
    names = (*chosen, "MLFLOW_EXPERIMENT_NAME")
    before = {name: os.environ.pop(name) for name in names if name in os.environ}
    os.environ.update(chosen)
    try:
        yield
    finally:
        for name in chosen:
            os.environ.pop(name, None)
        os.environ.update(before)


def tracking_uri() -> str:
    """Where runs are tracked, wherever one looks from."""
    return str(mlflow.get_tracking_uri())


def ui_command() -> str:
    """The command that opens the UI on what was logged."""
    uri = mlflow.get_tracking_uri()
    return f"open {uri}" if uri.startswith("http") else f"mlflow ui --backend-store-uri {uri}"


def without_login(uri: str) -> str:
    """An address without the name and the password that it may hold."""
    parts = urlsplit(uri)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])).rstrip("/")
