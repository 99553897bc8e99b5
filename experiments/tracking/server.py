"""Server: does the tracking server answer, and which run did `mlflow run` open on it for us?"""

import logging
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.utils import rest_utils
from sqlalchemy import make_url

from experiments.processes.retry import retry
from experiments.processes.secrets import redact_url
from experiments.processes.terminal import describe_error, print_line

PATIENCE = 600.0  # seconds to wait for a locked database
UNAUTHORIZED = ("UNAUTHENTICATED", "CUSTOMER_UNAUTHORIZED")  # MLflow's error codes for HTTP 401


def _refuse_empty(verify: Callable[..., Any]) -> Callable[..., Any]:
    """`verify_rest_response` of MLflow that does not take an empty answer for an empty object.

    An answer that is cut off in its headers looks empty. A search would then find nothing, and a
    new run would have no id.
    """

    @wraps(verify)
    def verified(response: Any, endpoint: str, *args: Any, **more: Any) -> Any:
        if response.status_code == 200 and not response.content:
            raise MlflowException(f"the answer to {endpoint} is empty")
        return verify(response, endpoint, *args, **more)

    return verified


rest_utils.verify_rest_response = _refuse_empty(rest_utils.verify_rest_response)


@contextmanager
def short_timeouts() -> Iterator[None]:
    """Give up on a tracking server after seconds without an answer, not after MLflow's minutes."""
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
    """Send a request to the tracking server; each kind of store raises its own errors."""
    # It logs a database's errors with their tracebacks; we print them on one line.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    with short_timeouts():
        mlflow.MlflowClient().search_experiments(max_results=1)


def check_tracking() -> None:
    """Check that the tracking server answers.

    Raises:
        ValueError: If it does not.
    """
    _check_sqlite_file(str(mlflow.get_tracking_uri()))
    try:
        ping()
    except Exception as error:  # each kind of store raises its own errors
        name = f"the tracking server {without_login(mlflow.get_tracking_uri())}"
        if isinstance(error, MlflowException) and error.error_code in UNAUTHORIZED:
            raise ValueError(
                f"{name} requires a login: set MLFLOW_TRACKING_USERNAME and "
                "MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
            ) from None
        if isinstance(error, MlflowException) and error.error_code == "PERMISSION_DENIED":  # 403
            raise ValueError(
                f"{name} refuses access ({describe_error(error)}): add the host name that you use "
                "to its --allowed-hosts, and check the permissions of your user"
            ) from None
        raise ValueError(
            f"{name} does not answer "
            f"({describe_error(_origin(error))}): start it, or set MLFLOW_TRACKING_URI to another"
        ) from None


def _check_sqlite_file(uri: str) -> None:
    """Check that an SQLite store can be opened; MLflow would try for two minutes."""
    path = make_url(uri).database if uri.startswith("sqlite:///") and "?" not in uri else None
    if not path:
        return
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)  # as MLflow does
        with closing(sqlite3.connect(path)):
            pass
    except OSError as error:
        raise ValueError(
            f"{path} cannot be created ({describe_error(error)}): work in a folder that you can "
            "write to, or set MLFLOW_TRACKING_URI"
        ) from None
    except sqlite3.OperationalError as error:
        raise ValueError(
            f"{path} cannot be opened ({error}): work in a folder that you can write to, or set "
            "MLFLOW_TRACKING_URI"
        ) from None


def retry_while_locked(call: Callable[[], None]) -> None:
    """Repeat `call` while another process locks MLflow's database.

    `call` must be safe to repeat. MLflow itself waits for 20 seconds. If a server does not answer,
    MLflow's client retries.

    Raises:
        ConnectionError: If the database is locked for longer than `PATIENCE`.
    """

    def attempt() -> None:
        try:
            call()
        except MlflowException as error:
            if "database is locked" in str(error):
                raise _LockedError(str(error)) from None
            raise

    retry(
        "MLflow's database",
        attempt,
        (_LockedError,),
        PATIENCE,
        print_line,
        defer=False,
        trouble="is locked",
        advice="end the process that locks it",
    )


class _LockedError(Exception):
    """Another process keeps the database locked."""


def _origin(error: BaseException) -> BaseException:
    """What the system said, if that is where an error began: requests wraps it five times."""
    inner: BaseException | None = error
    while inner:
        if isinstance(inner, OSError) and inner.strerror:
            return inner
        inner = inner.__cause__ or inner.__context__
    return error


def attached_run() -> str | None:
    """Id of the run that `mlflow run` has opened for this process, until it is started."""
    return os.environ.get("MLFLOW_RUN_ID")


@contextmanager
def tracking_to(uri: str, experiment_id: str) -> Iterator[None]:
    """Within the block, this process and its children log to this experiment."""
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
    """The address of the tracking server or store."""
    return str(mlflow.get_tracking_uri())


def without_login(uri: str) -> str:
    """An address without the user name, the password and the tokens that it may contain."""
    return redact_url(uri).rstrip("/")
