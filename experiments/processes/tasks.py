"""Tasks: what an executor runs, how a task ends, and what all executors have in common."""

import sys
import threading
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future
from concurrent.futures import wait as wait_for
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from math import inf
from typing import Any

from experiments.processes.secrets import redact
from experiments.processes.signals import handle_signals, raise_if_interrupted
from experiments.processes.terminal import Echo, describe_error, is_user_error

THREADS_PER_WORKER = 1
POLL_SECONDS = 0.2
STOPPED = "it was stopped"  # reason of a task that a signal ended


@contextmanager
def computing_with(threads: int | None) -> Iterator[None]:
    """Compute with this number of threads; the number before is restored on exit."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


Work = Callable[..., str]  # takes an `Echo` as its last argument; returns the id of its run
Message = tuple[str, str]  # the name of a task, and a line that it prints


@dataclass(frozen=True)
class Outcome:
    """How a task ended: the id of its run, or the reason why there is none."""

    run_id: str | None
    reason: str = ""
    died: bool = False  # its process died, so its run may still be marked RUNNING
    duplicate: str = ""  # id of the run of another process that has the same work


class DuplicateError(Exception):
    """Another process, perhaps on another machine, has already started this work.

    Args:
        run_id: Of its run.
    """

    def __init__(self, run_id: str) -> None:
        super().__init__(f"run {run_id} runs the same experiment")
        self.run_id = run_id


class Executor(ABC):
    """Runs tasks, several at a time, and passes on the lines that they print.

    Only one thread may use it.
    """

    def __init__(self, queue: Any) -> None:
        self.queue = queue  # of the messages that tasks send
        self.running: dict[str, Future[Outcome]] = {}

    @property
    @abstractmethod
    def count(self) -> int:
        """How many tasks can run at a time."""

    @property
    def has_room(self) -> bool:
        """Whether another task can start now."""
        return len(self.running) < self.count

    def submit(self, name: str, work: Work, *args: Any) -> None:
        """Start `work(*args, echo)`; there must be room, and no running task of this name."""
        assert self.has_room
        assert name not in self.running
        self.running[name] = self._start(name, work, args)

    def wait(self, echo: Echo, at_most: float = inf) -> dict[str, Outcome]:
        """Wait until a task ends, for `at_most` seconds; echo what the tasks print until then.

        Raises:
            ConnectionError: If the machines that run the tasks are gone.
        """
        ended: set[Future[Outcome]] = set()
        give_up = time.monotonic() + at_most
        while not ended and time.monotonic() < give_up:
            raise_if_interrupted()
            ended, _ = wait_for(self.running.values(), POLL_SECONDS, FIRST_COMPLETED)
            for name, line in self._messages():
                echo(f"{name}: {line}")
        names = [name for name, future in self.running.items() if future in ended]
        return {name: self._outcome(self.running.pop(name)) for name in names}

    def _outcome(self, future: "Future[Outcome]") -> Outcome:
        error = future.exception()
        return self._lost(error) if error else future.result()

    @abstractmethod
    def _start(self, name: str, work: Work, args: tuple[Any, ...]) -> "Future[Outcome]":
        """Start a task, which sends its messages under `name`."""

    def _messages(self) -> Iterator[Message]:
        """The messages since the last call."""
        while not self.queue.empty():
            yield self.queue.get()

    @abstractmethod
    def _lost(self, error: BaseException) -> Outcome:
        """The outcome of a task that could not return one; raises `error` if it is a bug."""


def run_task(work: Work, args: tuple[Any, ...], echo: Echo) -> Outcome:
    """Run a task in this process; an exception becomes the reason of its outcome."""
    main = threading.current_thread() is threading.main_thread()  # the only one that gets signals
    try:
        with handle_signals() if main else nullcontext():
            return Outcome(work(*args, echo))
    except KeyboardInterrupt:
        return Outcome(None, STOPPED)
    except DuplicateError as found:
        return Outcome(None, str(found), duplicate=found.run_id)
    except Exception as error:
        if is_user_error(error):
            return Outcome(None, describe_error(error))
        print(redact(traceback.format_exc()), file=sys.stderr)
        return Outcome(None, f"{type(error).__name__}: {describe_error(error)}")
