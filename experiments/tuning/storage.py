"""Storage: the database that Optuna keeps its studies in, of one process or of many.

The default is a file, which takes as many processes of this machine as one likes; several machines
share a PostgreSQL server.
"""

import logging
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

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
from experiments.processes.retry import retry
from experiments.processes.terminal import Echo, describe_error

# What a server that is gone, or a file that others keep busy, makes of a query.
UNREACHABLE = (DBAPIError, StorageInternalError)
RETRIES = 1
FAILURE = "failure"  # why a trial failed, by its own fault
HISTORY, ORIGINAL = "retry_history", "failed_trial"  # Optuna's own names for these
ADVISORY_LOCK = 1803_03635  # the number of our lock among those of a PostgreSQL database
BUSY_SECONDS = 60  # that a file may be busy
CONNECT: dict[str, dict[str, int]] = {  # so that nothing hangs for ever
    "sqlite": {"timeout": BUSY_SECONDS},
    "postgresql+psycopg": {"connect_timeout": 10, "keepalives_idle": 30, "tcp_user_timeout": 60000},
    "postgresql+psycopg2": {"connect_timeout": 10, "keepalives_idle": 30},
}
# What waiting does not mend, in the words of SQLite and PostgreSQL.
PERMANENT_ERRORS = (
    "authentication failed",
    "does not exist",
    "not a database",
    "readonly",
    "no password",
)
Result = TypeVar("Result")

optuna.logging.set_verbosity(optuna.logging.WARNING)
logging.getLogger("alembic").setLevel(logging.WARNING)
# We keep the heartbeat of a trial ourselves, since trials are not done by `Study.optimize`.
warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)


@dataclass(frozen=True)
class Storage:
    """An open storage, and how long to wait for it when it is gone."""

    rdb: RDBStorage
    url: str
    patience: float
    echo: Echo
    back: list[float] = field(default_factory=list)  # when it answered again, after long silence

    def patiently(self, do: Callable[[], Result]) -> Result:
        """What `do` gives, once the storage answers; `do` may be begun several times.

        Raises:
            ConnectionError: If it does not answer in time.
        """

        began = time.monotonic()
        what = f"the storage {redacted(self.url)}"
        result = retry(what, do, UNREACHABLE, self.patience, self.echo)
        if time.monotonic() - began > HEARTBEAT_SECONDS:
            self.back.append(time.monotonic())
        return result

    def was_away(self, within: float) -> bool:
        """Whether it began to answer again only some seconds ago, after it was long silent."""
        return bool(self.back) and time.monotonic() - self.back[-1] < within

    def sole(self) -> AbstractContextManager[object]:
        """Nobody else on any machine is in here meanwhile; for what must be made once."""
        return exclusive_lock(make_url(self.url))


def open_storage(url: str, patience: float, echo: Echo) -> Storage:
    """The storage at `url`, whose connections a process opens once.

    Raises:
        ValueError: If it cannot be opened, or is not one of Optuna's.
        ConnectionError: If it does not answer in time.
    """
    parse_url(url)
    what = f"the storage {redacted(url)}"
    rdb = retry(what, lambda: _open(url), UNREACHABLE, patience, echo)
    return Storage(rdb, url, patience, echo)


@lru_cache(maxsize=4)
def _open(url: str) -> RDBStorage:
    parsed = make_url(url)
    more = {"connect_args": CONNECT[driver]} if (driver := parsed.drivername) in CONNECT else {}
    try:
        _refuse_others(parsed)
        # Only one process at a time may make the tables.
        with exclusive_lock(parsed):
            return RDBStorage(
                url,
                engine_kwargs={"pool_pre_ping": True, **more},
                heartbeat_interval=int(HEARTBEAT_SECONDS),
                grace_period=int(DEAD_AFTER_SECONDS),
                heartbeat_stale_trial_callback=retry_lost,
            )
    except ImportError:
        raise ValueError(
            f"storage {redacted(url)} needs a driver that is not installed: "
            "pip install -r requirements-cluster.txt"
        ) from None
    except DBAPIError as error:
        why = describe_error(error.orig or error)
        if any(words in why for words in PERMANENT_ERRORS):
            raise ValueError(f"storage {redacted(url)} cannot be used: {why}") from None
        raise
    except RuntimeError as error:
        raise ValueError(
            f"storage {redacted(url)} is none of this version of Optuna ({describe_error(error)}); "
            "it must be a database of its own, not MLflow's"
        ) from None


def _refuse_others(url: URL) -> None:
    """See that a database is not MLflow's, before Optuna makes its tables there."""
    engine = create_engine(url, poolclass=NullPool, connect_args=CONNECT.get(url.drivername, {}))
    if inspect(engine).has_table("experiments"):
        raise ValueError(f"storage {url} is MLflow's: give Optuna a database of its own")


def retry_lost(study: optuna.Study, trial: FrozenTrial, counted: bool = True) -> None:
    """Put a lost trial's parameters to the end of the queue, unless they were lost before.

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
    """The number of the trial that this one is another try of; else its own."""
    return int(trial.system_attrs.get(ORIGINAL, trial.number))


def is_lost(trial: FrozenTrial) -> bool:
    """Whether the process that did a trial died or was stopped."""
    return trial.state == TrialState.FAIL and FAILURE not in trial.user_attrs


def parse_url(url: str) -> URL:
    """The parts of a storage's address.

    Raises:
        ValueError: If it is none, or one that several processes cannot share.
    """
    try:
        parsed = make_url(url)
        parsed.get_dialect()
    except (ArgumentError, NoSuchModuleError):
        raise ValueError(
            "storage must be an address such as sqlite:///optuna.db or "
            f"postgresql+psycopg://user@host/optuna, got {url}"
        ) from None
    except ImportError:
        return parsed  # told when it is opened
    if parsed.get_backend_name() not in ("sqlite", "postgresql"):
        raise ValueError(f"storage must be SQLite or PostgreSQL, got {redacted(url)}")
    if is_file(parsed):
        if parsed.database in (None, "", ":memory:"):
            raise ValueError(f"storage must be a file or a server, which can be shared, got {url}")
        folder = Path(str(parsed.database)).absolute().parent
        if not folder.is_dir():
            raise ValueError(f"storage: there is no folder {folder}")
    return parsed


def absolute_url(url: str) -> str:
    """The same storage from whatever folder one looks at it; raises as `check_url`."""
    parsed = parse_url(url)
    if parsed.drivername == "postgresql":  # the driver of requirements-cluster.txt
        parsed = parsed.set(drivername="postgresql+psycopg")
    if not is_file(parsed):
        return parsed.render_as_string(hide_password=False)
    path = str(Path(str(parsed.database)).resolve())
    return parsed.set(database=path).render_as_string(hide_password=False)


@contextmanager
def exclusive_lock(url: URL) -> Iterator[None]:
    """Hold a storage's lock: of SQLite a file beside it, of PostgreSQL one in a transaction."""
    if is_file(url):
        with FileLock(f"{url.database}.lock"):
            yield
    else:
        arguments = CONNECT.get(url.drivername, {})
        with create_engine(url, poolclass=NullPool, connect_args=arguments).begin() as connection:
            # A machine that is cut off while it is in here must not keep all others out.
            connection.execute(text("SET LOCAL lock_timeout = '60s'"))
            connection.execute(text("SET LOCAL idle_in_transaction_session_timeout = '120s'"))
            connection.execute(select(func.pg_advisory_xact_lock(ADVISORY_LOCK)))
            yield


def is_file(url: URL) -> bool:
    """Whether a storage is a file of SQLite's."""
    return url.get_backend_name() == "sqlite"


def redacted(url: str) -> str:
    """An address without its password."""
    return make_url(url).render_as_string(hide_password=True)
