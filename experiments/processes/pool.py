"""Pool: tasks in processes of this machine, several at a time.

Each process computes with one thread: two networks train faster side by side than one after the
other. If a process dies, only its own task fails. If the parent dies, each process stops, starts no
other task, and its experiment can be resumed.
"""

import gc
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from multiprocessing.queues import SimpleQueue
from typing import Any

import torch
from pebble import CONSTS, ProcessExpired, ProcessPool
from tqdm import tqdm

from experiments.processes.tasks import (
    THREADS_PER_WORKER,
    Executor,
    Message,
    Outcome,
    Work,
    run_task,
)

STOP_SECONDS = 30.0  # that a stopped process has to mark its run


class Pool(Executor):
    """Processes of this machine."""

    def __init__(self, pool: ProcessPool, queue: "SimpleQueue[Message]", count: int) -> None:
        super().__init__(queue)
        self.pool, self._count = pool, count

    @property
    def count(self) -> int:
        """How many tasks can run at a time."""
        return self._count

    def _start(self, name: str, work: Work, args: tuple[Any, ...]) -> "Future[Outcome]":
        return self.pool.schedule(_task, args=(name, work, args))

    def _lost(self, error: BaseException) -> Outcome:
        if not isinstance(error, ProcessExpired):
            raise error
        return Outcome(None, f"its process died (exit code {error.exitcode})", died=True)


def worker_count(asked: int | None, device: str) -> int:
    """How many processes to use: `asked`, or else as many as this machine has room for."""
    return asked or (1 if device == "cuda" else os.cpu_count() or 1)


@contextmanager
def open_pool(count: int) -> Iterator[Pool]:
    """`count` processes, which are stopped on exit."""
    context = get_context("spawn")  # torch's threads do not survive a fork
    # With a Queue, which sends from a thread, a task could end before its last line arrives.
    queue: SimpleQueue[Message] = context.SimpleQueue()
    CONSTS.term_timeout = STOP_SECONDS
    pool = ProcessPool(
        max_workers=count, context=context, initializer=_start_worker, initargs=(queue,)
    )
    try:
        yield Pool(pool, queue, count)
        pool.close()  # type: ignore[no-untyped-call]
    finally:
        pool.stop()  # type: ignore[no-untyped-call]
        pool.join()


_worker: dict[str, Any] = {}  # of a worker process: the queue for its messages


def _start_worker(queue: "SimpleQueue[Message]") -> None:
    gc.disable()  # until the first task and all that it imports have been received
    torch.set_num_threads(THREADS_PER_WORKER)
    tqdm.set_lock(threading.RLock())  # the default is a semaphore, left behind on exit
    _worker["queue"] = queue

    def stop_with_parent() -> None:
        parent = parent_process()
        assert parent
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(STOP_SECONDS)  # time for the task to mark its run
        os._exit(1)

    threading.Thread(target=stop_with_parent, daemon=True, name="parent watch").start()


def _task(name: str, work: Work, args: tuple[Any, ...]) -> Outcome:
    _exit_if_orphan()  # the parent may have died before this task left the pipe
    gc.enable()
    outcome = run_task(work, args, lambda line: _worker["queue"].put((name, line)))
    _exit_if_orphan()  # the next task may already be in the pipe
    return outcome


def _exit_if_orphan() -> None:
    parent = parent_process()
    if not parent or not parent.is_alive():
        os._exit(1)
