"""Workers: experiments and trials in processes of their own, several at a time.

Each has one thread: two networks train faster side by side than one after the other, and the
results do not depend on how many are at work. A worker that dies costs the experiment it was at;
one whose parent dies stops, and its experiment can be resumed.
"""

import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import inf
from multiprocessing import get_context, parent_process
from multiprocessing.queues import Queue
from queue import Empty
from typing import Any, Protocol

import torch
from pebble import CONSTS, ProcessExpired, ProcessPool
from tqdm import tqdm

from experiments.processes.signals import handle_signals, raise_if_interrupted
from experiments.processes.terminal import Echo, describe_error, is_user_error

THREADS_PER_WORKER = 1
POLL_SECONDS = 0.2
STOP_SECONDS = 30.0  # for a worker that is stopped to say so where it must

Work = Callable[..., str]  # takes a `Tell` last; the id of its run


@dataclass(frozen=True)
class Outcome:
    """What became of some work: its run, or else the reason why there is none."""

    run_id: str | None
    reason: str = ""
    died: bool = False  # its process did, so that nobody has closed its run


class Executor(Protocol):
    """Whoever works, on this machine or on many; for one thread."""

    running: dict[str, Any]

    @property
    def count(self) -> int:
        """How many can be at work at a time."""

    @property
    def has_room(self) -> bool:
        """Whether one has nothing to do."""

    def submit(self, name: str, work: Work, *args: Any) -> None:
        """Begin `work(*args, tell)` in a process; `name` tells it from others."""

    def wait(self, echo: Echo, at_most: float = inf) -> dict[str, Outcome]:
        """Wait until something ends, or for `at_most` seconds; tells what is said meanwhile."""


@dataclass
class Pool:
    """Workers that are processes of this machine."""

    pool: ProcessPool
    messages: "Queue[tuple[str, str]]"
    count: int
    running: dict[str, "Future[Outcome]"] = field(default_factory=dict)

    @property
    def has_room(self) -> bool:
        """As in `Workers`."""
        return len(self.running) < self.count

    def submit(self, name: str, work: Work, *args: Any) -> None:
        """As in `Workers`."""
        self.running[name] = self.pool.schedule(_run_task, args=(name, work, args))

    def wait(self, echo: Echo, at_most: float = inf) -> dict[str, Outcome]:
        """As in `Workers`."""
        done: set[Future[Outcome]] = set()
        give_up = time.monotonic() + at_most
        while not done and time.monotonic() < give_up:
            raise_if_interrupted()
            done, _ = wait(self.running.values(), timeout=POLL_SECONDS, return_when=FIRST_COMPLETED)
            self.pass_on(echo)
        ended = {name: future for name, future in self.running.items() if future in done}
        for name in ended:
            del self.running[name]
        return {name: _outcome(future) for name, future in ended.items()}

    def pass_on(self, echo: Echo) -> None:
        """Tell what the experiments at work have said since."""
        while True:
            try:
                name, line = self.messages.get_nowait()
            except Empty:
                return
            echo(f"{name}: {line}")


def worker_count(asked: int | None, device: str) -> int:
    """Processes that this machine has room for, unless a number is asked for."""
    return asked or (1 if device == "cuda" else os.cpu_count() or 1)


@contextmanager
def open_pool(count: int) -> Iterator[Pool]:
    """`count` processes, stopped on the way out."""
    context = get_context("spawn")  # torch's threads do not survive a fork
    messages: Queue[tuple[str, str]] = context.Queue()
    CONSTS.term_timeout = STOP_SECONDS
    pool = ProcessPool(
        max_workers=count,
        context=context,
        initializer=_start_worker,
        initargs=(messages,),
    )
    try:
        yield Pool(pool, messages, count)
        pool.close()  # type: ignore[no-untyped-call]
    finally:
        pool.stop()  # type: ignore[no-untyped-call]
        pool.join()


def _outcome(future: "Future[Outcome]") -> Outcome:
    try:
        return future.result()
    except ProcessExpired as error:
        return Outcome(None, f"its process died (exit code {error.exitcode})", died=True)


_process: dict[str, Any] = {}  # of a worker: where to send what it has to say


def _start_worker(messages: "Queue[tuple[str, str]]") -> None:
    torch.set_num_threads(THREADS_PER_WORKER)
    tqdm.set_lock(threading.RLock())  # its own is a semaphore that a process leaves behind
    _process["messages"] = messages

    def watch() -> None:
        ours = parent_process()
        assert ours
        ours.join()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True, name="orphan watch").start()


def _run_task(name: str, work: Work, args: tuple[Any, ...]) -> Outcome:
    def echo(line: str) -> None:
        _process["messages"].put((name, line))

    return outcome_of(work, args, echo)


def outcome_of(work: Work, args: tuple[Any, ...], echo: Echo) -> Outcome:
    """Do some work in this process; what goes wrong becomes the reason."""
    try:
        with handle_signals():
            return Outcome(work(*args, echo))
    except KeyboardInterrupt:
        return Outcome(None, "it was stopped")
    except Exception as error:
        if is_user_error(error):
            return Outcome(None, describe_error(error))
        traceback.print_exc(file=sys.stderr)
        return Outcome(None, f"{type(error).__name__}: {describe_error(error)}")
