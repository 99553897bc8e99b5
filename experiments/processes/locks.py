"""Liveness: who works on a run, is he still alive, and how does he end?

On one machine a file lock tells, which the system releases however a process ends. Between
machines a heartbeat does: a time stamp that the working process renews.
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


def lock_path(run_id: str) -> Path:
    """The file whose lock the process that works on a run holds."""
    return Path(tempfile.gettempdir()) / f"weight-loss-{getuser()}-{run_id}.lock"


def lock_name(run_id: str) -> str:
    """The same for all machines: who would use another lock cannot be kept out by this one."""
    return f"{socket.gethostname()}:{lock_path(run_id)}"


@contextmanager
def run_lock(run_id: str) -> Iterator[None]:
    """Hold the run for this process, against every other one on this machine.

    Raises:
        ValueError: If another process holds it.
    """
    lock = FileLock(lock_path(run_id))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(
            f"another process on this machine is still working on run {run_id}"
        ) from None
    try:
        yield
    finally:
        lock.release()


def is_alive(run_id: str, tags: Mapping[str, str]) -> bool:
    """Whether a living process works on a run that is RUNNING, as its tags and its lock tell."""
    if tags.get("lock") != lock_name(run_id):
        return time.time() - float(tags.get("heartbeat", 0)) < DEAD_AFTER_SECONDS
    try:
        with run_lock(run_id):
            return False
    except ValueError:
        return True


def process_tags() -> dict[str, str]:
    """Who begins a run, as tags that it has before it has a lock."""
    return {"host": socket.gethostname(), "pid": str(os.getpid())}


def may_be_starting(tags: Mapping[str, str], began: float) -> bool:
    """Whether a process may be about to sign a run that it began at the time `began`, in seconds.

    Of a run that is signed (see `at_work`), and of one whose process is gone, it is not true.
    """
    if "lock" in tags or time.time() - began > DEAD_AFTER_SECONDS:
        return False
    if tags.get("host") != socket.gethostname() or "pid" not in tags:
        return True
    try:
        os.kill(int(tags["pid"]), 0)
    except ProcessLookupError:
        return False
    return True


@contextmanager
def heartbeat(beat: Callable[[], None]) -> Iterator[None]:
    """Call `beat` now and then every `HEARTBEAT_SECONDS`, in a thread of its own."""
    with defer_signals():
        beat()
    done = threading.Event()

    def go_on() -> None:
        while not done.wait(HEARTBEAT_SECONDS):
            beat()

    thread = threading.Thread(target=go_on, daemon=True, name="heartbeat")
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(timeout=5)  # it may be waiting for a lost server
