"""Locks and heartbeats: is the process that works on a run still alive?

On one machine a file lock shows it: the system releases the lock however a process ends. Between
machines a heartbeat shows it: a time stamp that the process renews.
"""

import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from getpass import getuser
from pathlib import Path

from filelock import FileLock, Timeout

from experiments.processes.signals import defer_signals

HEARTBEAT_SECONDS = 30.0
DEAD_AFTER_SECONDS = 3 * HEARTBEAT_SECONDS
AHEAD_SECONDS = 3600.0  # by which another machine's clock may be ahead of ours
TRY_SECONDS = 0.05  # to wait for a lock: its last holder may still be removing the file


def lock_path(run_id: str) -> Path:
    """The file that a process locks while it works on a run."""
    return Path(tempfile.gettempdir()) / f"weight-loss-{getuser()}-{run_id}.lock"


def lock_name(run_id: str) -> str:
    """The lock's name on all machines: processes with the same name keep each other out."""
    return f"{socket.gethostname()}:{lock_path(run_id)}"


@contextmanager
def run_lock(run_id: str, patience: float = TRY_SECONDS) -> Iterator[None]:
    """Lock a run for this process, against all others on this machine.

    Args:
        patience: How long to try, in seconds.

    Raises:
        ValueError: If another process has locked it.
    """
    try:
        held = FileLock(lock_path(run_id)).acquire(timeout=patience, poll_interval=0.01)
    except Timeout:
        raise ValueError(
            f"another process on this machine is still working on run {run_id}"
        ) from None
    with held:
        try:
            yield
        finally:
            # Before the release: a process that has the file open sees this, and retries.
            lock_path(run_id).unlink(missing_ok=True)


def is_alive(run_id: str, tags: Mapping[str, str]) -> bool:
    """Whether the process whose `tags` a RUNNING run has is alive."""
    if tags.get("lock") != lock_name(run_id):
        return _is_recent(float(tags.get("heartbeat", 0)))
    try:
        with run_lock(run_id, patience=0.0):
            return False
    except ValueError:
        return True


def may_be_starting(tags: Mapping[str, str], started: float) -> bool:
    """Whether a run that has no lock yet may soon get one.

    False for a run with a lock (see `is_alive`), and if its process is gone.

    Args:
        tags: Of the run; `host` and `pid` name its process.
        started: When the run was created, in seconds since the epoch.
    """
    if "lock" in tags:
        return False
    if tags.get("host") != socket.gethostname() or "pid" not in tags:
        return _is_recent(started)
    try:
        os.kill(int(tags["pid"]), 0)
    except ProcessLookupError:
        return False
    except OSError:  # of another user
        pass
    return True


def _is_recent(stamp: float) -> bool:
    """Whether a time is less than `DEAD_AFTER_SECONDS` ago and not too far in the future."""
    return -AHEAD_SECONDS < time.time() - stamp < DEAD_AFTER_SECONDS


@contextmanager
def heartbeat(beat: Callable[[], None]) -> Iterator[None]:
    """Call `beat` now, and then every `HEARTBEAT_SECONDS` in a thread."""
    with defer_signals():
        beat()
    done = threading.Event()

    def keep_beating() -> None:
        while not done.wait(HEARTBEAT_SECONDS):
            beat()

    thread = threading.Thread(target=keep_beating, daemon=True, name="heartbeat")
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(timeout=5)  # it may be waiting for a lost server
