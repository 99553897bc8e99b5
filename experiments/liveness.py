"""Liveness: who works on a run, is he still alive, and how does he end?

On one machine a file lock tells, which the system releases however a process ends. Between
machines a heartbeat does: a time stamp that the working process renews.
"""

import os
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from getpass import getuser
from pathlib import Path
from types import FrameType

from filelock import FileLock, Timeout

HEARTBEAT_SECONDS = 30.0
DEAD_AFTER_SECONDS = 3 * HEARTBEAT_SECONDS


class Interrupted(KeyboardInterrupt):
    """Somebody asked the process to stop; `signal_name` says how."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number
        self.signal_name = signal.Signals(number).name


_stopped_by: list[int] = []
_writing: list[bool] = []


def check_stop() -> None:
    """Raise `Interrupted` if a signal came whose exception Python swallowed.

    It does so when the handler happens to run inside a finalizer or a weak reference's callback.
    """
    if _stopped_by:
        raise Interrupted(_stopped_by[0])


@contextmanager
def undisturbed() -> Iterator[None]:
    """A signal that comes meanwhile is obeyed afterwards.

    In the middle of a write to SQLite, `Interrupted` would leave the file locked: its traceback
    keeps the open cursor, and what cleans up waits for this very process.
    """
    if threading.current_thread() is not threading.main_thread():  # which alone gets signals
        yield
        return
    before = len(_stopped_by)
    _writing.append(True)
    try:
        yield
    finally:
        _writing.pop()
    if len(_stopped_by) > before:
        raise Interrupted(_stopped_by[-1])


@contextmanager
def stop_signals() -> Iterator[None]:
    """Turn the first SIGINT or SIGTERM into `Interrupted`.

    While that is cleaned up after, SIGTERM is ignored (`mlflow run` sends one after a Ctrl-C), and
    another SIGINT ends the process at once.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        del frame
        signal.signal(signal.SIGTERM, lambda *_: None)  # for SIG_IGN, one on its way is an error
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        _stopped_by.append(number)
        if not _writing:
            raise Interrupted(number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    _stopped_by.clear()
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def lock_path(run_id: str) -> Path:
    """The file whose lock the process that works on a run holds."""
    return Path(tempfile.gettempdir()) / f"weight-loss-{getuser()}-{run_id}.lock"


def lock_name(run_id: str) -> str:
    """The same for all machines: who would use another lock cannot be kept out by this one."""
    return f"{socket.gethostname()}:{lock_path(run_id)}"


@contextmanager
def sole_worker(run_id: str) -> Iterator[None]:
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


def at_work(run_id: str, tags: Mapping[str, str]) -> bool:
    """Whether a living process works on a run that is RUNNING, as its tags and its lock tell."""
    if tags.get("lock") != lock_name(run_id):
        return time.time() - float(tags.get("heartbeat", 0)) < DEAD_AFTER_SECONDS
    try:
        with sole_worker(run_id):
            return False
    except ValueError:
        return True


def signature() -> dict[str, str]:
    """Who begins a run, as tags that it has before it has a lock."""
    return {"host": socket.gethostname(), "pid": str(os.getpid())}


def has_begun(tags: Mapping[str, str], began: float) -> bool:
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
    with undisturbed():
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
