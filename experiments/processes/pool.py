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
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context, parent_process, resource_tracker
from multiprocessing.connection import Connection
from typing import Any

import torch
from pebble import CONSTS, ProcessExpired, ProcessPool
from tqdm import tqdm

from experiments.processes.messages import Inbox, send
from experiments.processes.tasks import (
    STOPPED,
    THREADS_PER_WORKER,
    Executor,
    Outcome,
    Work,
    run_task,
)

STOP_SECONDS = 30.0  # that a stopped process has to mark its run
MOST_DIED_EARLY = 10  # processes, before their tasks began
STOPPED_STATUS = 128 + signal.SIGTERM  # of a process whose task was stopped


class Pool(Executor):
    """Processes of this machine, which start with the first task.

    Each is a pool of its own, which ends with it. Processes of one pool share locks, and one that
    is killed would keep them: the others would wait until they give up.
    """

    def __init__(self, count: int) -> None:
        self.context = get_context("spawn")  # torch's threads do not survive a fork
        reader, self.writer = self.context.Pipe(duplex=False)
        super().__init__(Inbox(reader))
        self._count = count
        self.pools: list[ProcessPool] = []
        self.used: dict[Future[Outcome], ProcessPool] = {}
        self.died_early = 0  # processes, before their tasks began

    @property
    def count(self) -> int:
        """How many tasks can run at a time."""
        return self._count

    def _start(self, name: str, work: Work, args: tuple[Any, ...]) -> "Future[Outcome]":
        while len(self.pools) < self.count:
            self.pools.append(self._open())
        pool = next(pool for pool in self.pools if pool not in self.used.values())
        if not pool.active:
            _stop(pool)
            self.pools[self.pools.index(pool)] = pool = self._open()
        future: Future[Outcome] = pool.schedule(_task, args=(name, work, args))
        self.used[future] = pool
        return future

    def _outcome(self, future: "Future[Outcome]") -> Outcome:
        pool = self.used.pop(future)
        if future.exception():  # the next task gets another
            _stop(pool)
        return super()._outcome(future)

    def _lost(self, error: BaseException) -> Outcome:
        if isinstance(error, BrokenProcessPool):
            self.died_early += 1
            return Outcome(None, "its process died while it was starting", died=True)
        if not isinstance(error, ProcessExpired):
            raise error
        if error.exitcode == STOPPED_STATUS:
            return Outcome(None, STOPPED)
        return Outcome(None, f"its process died (exit code {error.exitcode})", died=True)

    def _open(self) -> ProcessPool:
        if self.died_early == MOST_DIED_EARLY:
            raise ConnectionError(
                f"processes died {MOST_DIED_EARLY} times while they were starting: free some "
                "memory, or use fewer workers"
            )
        pool = ProcessPool(
            max_workers=1,
            context=self.context,
            initializer=_start_worker,
            initargs=(self.writer,),
        )
        # The process, and the threads that start another later, inherit this. Ctrl-C reaches them
        # too, and Python would report it with a traceback.
        resource_tracker.ensure_running()  # later, this would unblock it
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            assert pool.active  # this starts it
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return pool

    def close(self) -> None:
        """Let the processes end by themselves."""
        for pool in self.pools:
            pool.close()  # type: ignore[no-untyped-call]

    def stop(self) -> None:
        """Stop the processes, which have `STOP_SECONDS` to mark their runs."""
        for pool in self.pools:
            pool.stop()  # type: ignore[no-untyped-call]
        for pool in self.pools:
            _stop(pool)


def _stop(pool: ProcessPool) -> None:
    pool.stop()  # type: ignore[no-untyped-call]
    pool.join()


def worker_count(asked: int | None, device: str) -> int:
    """How many processes to use: `asked`, or else as many as this machine has room for."""
    return asked or (1 if device == "cuda" else os.cpu_count() or 1)


@contextmanager
def open_pool(count: int) -> Iterator[Pool]:
    """`count` processes, which are stopped on exit."""
    CONSTS.term_timeout = STOP_SECONDS
    pool = Pool(count)
    try:
        yield pool
        pool.close()
    finally:
        pool.stop()


_worker: dict[str, Connection] = {}  # of a worker process: where its messages go


def _start_worker(writer: Connection) -> None:
    # Pebble has made the process ignore it; each task handles it.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    gc.disable()  # until the first task and all that it imports have been received
    torch.set_num_threads(THREADS_PER_WORKER)
    tqdm.set_lock(threading.RLock())  # the default is a semaphore, left behind on exit
    _worker["messages"] = writer

    def stop_with_parent() -> None:
        parent = parent_process()
        assert parent
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(STOP_SECONDS)  # time for the task to mark its run
        os._exit(1)

    threading.Thread(target=stop_with_parent, daemon=True, name="parent watch").start()


def _task(name: str, work: Work, args: tuple[Any, ...]) -> Outcome:
    parent = parent_process()
    if not parent or not parent.is_alive():  # it died before this task left the pipe
        os._exit(1)
    gc.enable()
    outcome = run_task(work, args, lambda line: send(_worker["messages"], (name, line)))
    if outcome.reason == STOPPED:  # perhaps in the middle of an import: another task would fail
        os._exit(STOPPED_STATUS)
    return outcome
