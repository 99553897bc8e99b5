"""Storage: the database of Optuna's studies, shared by any number of processes.

The default is an SQLite file, for the processes of one machine; several machines share a PostgreSQL
server.
"""

import logging
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import lru_cache
from math import inf
from pathlib import Path
from urllib.parse import urlencode

import optuna
from filelock import FileLock
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy import create_engine, func, inspect, select, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError
from sqlalchemy.pool import NullPool

from experiments.processes.locks import DEAD_AFTER_SECONDS, HEARTBEAT_SECONDS
from experiments.processes.retry import Result, retry
from experiments.processes.secrets import has_secret, redact
from experiments.processes.terminal import Echo, describe_error

UNREACHABLE = (DBAPIError, StorageInternalError)  # the server is down, or the file is locked
RETRIES = 1  # of a trial whose process died
FAILURE = "failure"  # attribute of a trial: why it failed, if its parameters are to blame
HISTORY, ORIGINAL = "retry_history", "failed_trial"  # Optuna's own names
ADVISORY_LOCK = 1803_03635  # our key among the advisory locks of a PostgreSQL database
BUSY_SECONDS = 60  # that SQLite waits for a locked file
CONNECT: dict[str, dict[str, int]] = {  # timeouts, so that no connection hangs forever
    "sqlite": {"timeout": BUSY_SECONDS},
    "postgresql+psycopg": {"connect_timeout": 10, "keepalives_idle": 30, "tcp_user_timeout": 60000},
    "postgresql+psycopg2": {"connect_timeout": 10, "keepalives_idle": 30},
}
# Errors that retrying cannot fix, in the words of SQLite and PostgreSQL.
PERMANENT_ERRORS = (
    "authentication failed",
    "does not exist",
    "not a database",
    "readonly",
    "no password",
)

optuna.logging.set_verbosity(optuna.logging.WARNING)
# It asks for greenlet, with which a sample takes as long (measured: 0.92 to 1.0 times).
logging.getLogger("optuna._gp").setLevel(logging.ERROR)
logging.getLogger("alembic").setLevel(logging.WARNING)
# Heartbeats, names of objectives and plots with matplotlib are experimental.
warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)


class Storage:
    """An open storage; a process opens its connections once.

    Args:
        patience: How many seconds to wait for it when it does not answer.

    Raises:
        ValueError: If it cannot be opened, or is not one of Optuna's.
        ConnectionError: If it does not answer in time.
    """

    def __init__(self, url: str, patience: float, echo: Echo) -> None:
        parse_url(url)
        self.url, self.patience, self.echo = url, patience, echo
        self.recovered = -inf  # monotonic time when the last long outage ended
        self.rdb = self.retry(lambda: _open(url))

    def retry(self, do: Callable[[], Result]) -> Result:
        """The result of `do`, which is repeated until the storage answers.

        Raises:
            ConnectionError: If it does not answer in time.
        """
        began = time.monotonic()
        what = f"the storage {redact(self.url)}"
        result = retry(what, do, UNREACHABLE, self.patience, self.echo)
        if time.monotonic() - began > HEARTBEAT_SECONDS:
            self.recovered = time.monotonic()
        return result

    def lock(self) -> AbstractContextManager[object]:
        """A lock that one process on any machine holds at a time."""
        return exclusive_lock(make_url(self.url))


@lru_cache(maxsize=4)
def _open(url: str) -> RDBStorage:
    parsed = make_url(url)
    connect = CONNECT.get(parsed.drivername, {})
    try:
        _refuse_mlflow(parsed)
        with exclusive_lock(parsed):  # only one process at a time may create the tables
            return RDBStorage(
                url,
                engine_kwargs={"pool_pre_ping": True, "connect_args": connect},
                heartbeat_interval=int(HEARTBEAT_SECONDS),
                grace_period=int(DEAD_AFTER_SECONDS),
                heartbeat_stale_trial_callback=enqueue_again,
            )
    except ImportError:
        raise ValueError(
            f"storage {redact(url)} needs a driver that is not installed: "
            "pip install -r requirements-cluster.txt"
        ) from None
    except DBAPIError as error:
        why = describe_error(error.orig or error)
        if any(words in why for words in PERMANENT_ERRORS):
            raise ValueError(f"storage {redact(url)} cannot be used: {why}") from None
        raise
    except RuntimeError as error:
        raise ValueError(
            f"storage {redact(url)} was not created by this Optuna version "
            f"({describe_error(error)}); Optuna needs a database of its own"
        ) from None


def _refuse_mlflow(url: URL) -> None:
    """Refuse MLflow's database before Optuna creates its tables there."""
    engine = create_engine(url, poolclass=NullPool, connect_args=CONNECT.get(url.drivername, {}))
    if inspect(engine).has_table("experiments"):
        raise ValueError(f"storage {url} belongs to MLflow: give Optuna a database of its own")


def enqueue_again(study: optuna.Study, trial: FrozenTrial, counted: bool = True) -> None:
    """Append a lost trial's parameters to the queue, unless it has been retried before.

    Args:
        counted: Whether this is one of its `RETRIES`.
    """
    history = trial.system_attrs.get(HISTORY, []) + [trial.number] * counted
    if len(history) <= RETRIES and is_lost(trial):
        kept = {ORIGINAL: original_number(trial), HISTORY: history}
        study.add_trial(
            create_trial(
                state=TrialState.WAITING,
                params=trial.params,
                distributions=trial.distributions,
                system_attrs=kept,
            )
        )


def original_number(trial: FrozenTrial) -> int:
    """The number of the trial that this one retries; else its own."""
    return int(trial.system_attrs.get(ORIGINAL, trial.number))


def is_lost(trial: FrozenTrial) -> bool:
    """Whether the process that ran a trial died or was stopped."""
    return trial.state == TrialState.FAIL and FAILURE not in trial.user_attrs


def parse_url(url: str) -> URL:
    """The parts of a storage's URL.

    Raises:
        ValueError: If it is not a URL, or the database cannot be shared by several processes.
    """
    try:
        parsed = make_url(url)
        parsed.get_dialect()
    except (ArgumentError, NoSuchModuleError, ValueError):
        raise ValueError(
            "storage must be a URL such as sqlite:///optuna.db or "
            f"postgresql+psycopg://<user>@<host>/optuna, got {redact(url)}"
        ) from None
    except ImportError:
        pass  # reported when it is opened
    if parsed.password or has_secret(f"?{urlencode(parsed.query)}"):
        raise ValueError(
            f"storage must not contain a password, got {redact(parsed.render_as_string())}: "
            "parameters are logged and shown in process lists; set PGPASSWORD or use ~/.pgpass "
            "instead, and change this password"
        )
    if parsed.get_backend_name() not in ("sqlite", "postgresql"):
        raise ValueError(f"storage must be SQLite or PostgreSQL, got {redact(url)}")
    if is_file(parsed):
        if parsed.database in (None, "", ":memory:"):
            raise ValueError(f"storage must be a file or a server, not in memory, got {url}")
        folder = Path(str(parsed.database)).absolute().parent
        if not folder.is_dir():
            raise ValueError(f"storage: the folder {folder} does not exist")
    return parsed


def absolute_url(url: str) -> str:
    """The same storage as a URL that works from every folder; raises as `parse_url`."""
    parsed = parse_url(url)
    if parsed.drivername == "postgresql":  # the driver of requirements-cluster.txt
        parsed = parsed.set(drivername="postgresql+psycopg")
    if not is_file(parsed):
        return parsed.render_as_string(hide_password=False)
    try:
        path = str(Path(str(parsed.database)).resolve())
    except (OSError, RuntimeError):  # RuntimeError: of a loop of symbolic links
        raise ValueError(f"storage cannot be used: {parsed.database} is a loop of links") from None
    return parsed.set(database=path).render_as_string(hide_password=False)


@contextmanager
def exclusive_lock(url: URL) -> Iterator[None]:
    """Hold a storage's lock: a file beside SQLite's, an advisory lock of PostgreSQL."""
    if is_file(url):
        with FileLock(f"{url.database}.lock"):
            yield
    else:
        arguments = CONNECT.get(url.drivername, {})
        with create_engine(url, poolclass=NullPool, connect_args=arguments).begin() as connection:
            # A machine that loses its network while it holds the lock must not block the others.
            connection.execute(text("SET LOCAL lock_timeout = '60s'"))
            connection.execute(text("SET LOCAL idle_in_transaction_session_timeout = '120s'"))
            connection.execute(select(func.pg_advisory_xact_lock(ADVISORY_LOCK)))
            yield


def is_file(url: URL) -> bool:
    """Whether a storage is an SQLite file."""
    return url.get_backend_name() == "sqlite"
