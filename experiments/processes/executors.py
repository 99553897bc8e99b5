"""Executors: where the tasks of a command run.

To add one: write a subclass of `Executor`, a context manager that opens it, and a line in
`EXECUTORS`. Results do not depend on the executor: every task computes with one thread.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from math import inf
from queue import SimpleQueue
from typing import Any

from experiments.processes.tasks import THREADS_PER_WORKER, Executor, Outcome, Work, run_task


class Inline(Executor):
    """One task after another in a thread of this process: for debugging and for tests.

    The thread keeps the active MLflow run of a task apart from the caller's.
    """

    count = 1

    def __init__(self, thread: ThreadPoolExecutor) -> None:
        super().__init__(SimpleQueue())
        self.thread = thread

    def _start(self, name: str, work: Work, args: tuple[Any, ...]) -> "Future[Outcome]":
        return self.thread.submit(run_task, work, args, lambda line: self.queue.put((name, line)))

    def _lost(self, error: BaseException) -> Outcome:
        raise error


@contextmanager
def open_inline() -> Iterator[Inline]:
    """A thread that computes as a worker process does; the thread count is restored on exit."""
    import torch

    before = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(
            1, "task", initializer=torch.set_num_threads, initargs=(THREADS_PER_WORKER,)
        ) as thread:
            yield Inline(thread)
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True)
class Needs:
    """What a command asks of its executor."""

    workers: int | None  # tasks at a time; None is as many as there is room for
    device: str  # "cpu" or "cuda"
    tracking_uri: str  # where tasks log to
    tasks: float = inf  # how many tasks there are at most


def _processes(needs: Needs) -> AbstractContextManager[Executor]:
    from experiments.processes.pool import open_pool, worker_count

    return open_pool(int(min(worker_count(needs.workers, needs.device), needs.tasks)))


def _ray(needs: Needs) -> AbstractContextManager[Executor]:
    from experiments.processes.ray import open_cluster  # an optional package

    return open_cluster(needs.workers, needs.device, needs.tracking_uri)


EXECUTORS: dict[str, Callable[[Needs], AbstractContextManager[Executor]]] = {
    "processes": _processes,
    "ray": _ray,
    "inline": lambda _: open_inline(),
}
