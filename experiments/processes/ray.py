"""Cluster: trials are tasks on the machines of a Ray cluster, told apart by nothing else.

The code of this machine goes to the others with the search, so that all do the same; data and
packages are there already. What a task tells comes back through a queue on this machine. Ray
repeats nothing by itself: a trial whose process died is found by Optuna's storage, as everywhere.
"""

import logging
import os
import signal
import socket
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from time import monotonic
from typing import Any

import torch

from experiments.processes.pool import POLL_SECONDS, THREADS_PER_WORKER, Outcome, Work, outcome_of
from experiments.processes.signals import raise_if_interrupted
from experiments.processes.terminal import Echo, describe_error

try:
    import ray
    from ray import exceptions
    from ray.util.queue import Queue
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
except ImportError:
    raise ValueError(
        "executor=ray needs a package that is missing: pip install -r requirements-cluster.txt"
    ) from None

ROOT = Path(__file__).resolve().parents[2]
CODE = ("experiments", "pruning", "models", "datasets")  # the folders that go to every machine
SHARED = ("MLFLOW_", "PG", "AWS_", "AZURE_", "GOOGLE_")  # what variables begin with
STOP_SECONDS = 30.0  # for trials to be given back when the search is stopped
ANSWER_SECONDS = 10.0  # for a cluster to answer
ONE_MACHINE = ("localhost", "127.0.0.1", "::1")
DIED = (
    *(exceptions.WorkerCrashedError, exceptions.NodeDiedError),
    *(exceptions.OutOfMemoryError, exceptions.ObjectLostError),
)


@dataclass
class Cluster:
    """Workers that are tasks on a cluster; machines may join and leave meanwhile."""

    limit: int | None
    kind: str  # of resource that a task takes one of: CPU or GPU
    messages: Queue
    tracking_uri: str
    running: dict[str, Any] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """As in `Workers`."""
        return self.limit or max(1, int(_resources().get(self.kind, 0)))

    @property
    def has_room(self) -> bool:
        """As in `Workers`."""
        return len(self.running) < self.count

    def submit(self, name: str, work: Work, *args: Any) -> None:
        """As in `Workers`."""
        task = _task.options(num_cpus=1, num_gpus=int(self.kind == "GPU"))
        self.running[name] = task.remote(
            name, work, args, _environment(self.tracking_uri), self.messages
        )

    def wait(self, echo: Echo, at_most: float = inf) -> dict[str, Outcome]:
        """As in `Workers`."""
        done: list[Any] = []
        give_up = monotonic() + at_most
        while not done and monotonic() < give_up:
            raise_if_interrupted()
            with _in_our_words():
                done, _ = ray.wait(list(self.running.values()), timeout=POLL_SECONDS)
                lines = self.messages.get_nowait_batch(self.messages.size())
            for name, line in lines:
                echo(f"{name}: {line}")
        ended = {name: ref for name, ref in self.running.items() if ref in done}
        for name in ended:
            del self.running[name]
        return {name: _outcome(ref) for name, ref in ended.items()}

    def stop(self) -> None:
        """Have what is at work given back."""
        refs = list(self.running.values())
        with suppress(exceptions.RayError):  # the cluster may be gone
            for ref in refs:
                ray.cancel(ref)
            if refs:
                ray.wait(refs, num_returns=len(refs), timeout=STOP_SECONDS)


def connect(address: str, servers: Mapping[str, str | None]) -> None:
    """Connect to the cluster at `address` (host:port, or "auto" for the one on this machine).

    Args:
        servers: Hosts of the servers that tasks use, by what to call them in a message.

    Raises:
        ValueError: If there is no cluster, or another of its machines cannot reach a server.
    """
    _connect(address)
    machines = {node["NodeManagerAddress"] for node in _nodes() if node["Alive"]}
    for server, host in servers.items():
        if len(machines) > 1 and host in ONE_MACHINE:
            raise ValueError(f"{server}: {host} is another machine on each of the cluster")


@contextmanager
def open_cluster(workers: int | None, device: str, tracking_uri: str) -> Iterator[Cluster]:
    """Workers on the cluster that `connect` has connected to; what is at work at the end stops.

    Args:
        workers: Tasks at a time; None is as many as the cluster has CPUs, or GPUs.
        device: "cpu", or else a task takes a GPU where this machine has one.
        tracking_uri: Where tasks log to.

    Raises:
        ValueError: If the cluster has nothing to work with.
    """
    kind = "GPU" if device != "cpu" and torch.cuda.is_available() else "CPU"
    try:
        if not _resources().get(kind):
            raise ValueError(f"executor=ray: the cluster has no {kind}")
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        messages = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})
        cluster = Cluster(workers, kind, messages, tracking_uri)
        try:
            yield cluster
        finally:
            cluster.stop()
    finally:
        ray.shutdown()


@contextmanager
def _in_our_words() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:  # Ray makes it of our own, which knows by which signal
        raise_if_interrupted()
        raise
    except exceptions.RayError:
        raise ConnectionError(
            "the Ray cluster is gone: start it again; the same command goes on from here"
        ) from None


def _connect(address: str) -> None:
    if "://" in address:
        raise ValueError(
            "ray_address must be auto or host:port, and this machine part of the cluster, "
            f"got {address}"
        )
    handler = signal.getsignal(signal.SIGTERM)
    others = [f"/{path.name}" for path in ROOT.iterdir() if path.name not in CODE]
    code = {"working_dir": str(ROOT), "excludes": others}
    try:
        if address != "auto":  # which Ray itself would do for minutes
            host, _, port = address.rpartition(":")
            socket.create_connection((host, int(port)), ANSWER_SECONDS).close()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ray.init(address, runtime_env=code, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError, ValueError, exceptions.RayError) as error:
        where = "on this machine" if address == "auto" else f"at {address}"
        raise ValueError(
            f"there is no Ray cluster {where} ({describe_error(error)}): start one with "
            "ray start --head, or give ray_address"
        ) from None
    finally:
        signal.signal(signal.SIGTERM, handler)  # Ray has put one of its own there


def _resources() -> dict[str, float]:
    return dict(ray.cluster_resources())  # type: ignore[no-untyped-call]


def _nodes() -> list[dict[str, Any]]:
    return list(ray.nodes())  # type: ignore[no-untyped-call]


def _environment(tracking_uri: str) -> dict[str, str]:
    """What a task must know of where to log to and how to log in; Ray shows it to nobody."""
    known = {k: v for k, v in os.environ.items() if k.startswith(SHARED) and k != "MLFLOW_RUN_ID"}
    return known | {"MLFLOW_TRACKING_URI": tracking_uri}


@ray.remote(max_retries=0, max_calls=0)
def _task(
    name: str, work: Work, args: tuple[Any, ...], environment: dict[str, str], messages: Queue
) -> Outcome:
    os.environ.update(environment)
    torch.set_num_threads(THREADS_PER_WORKER)
    return outcome_of(work, args, lambda line: messages.put((name, line)))


def _outcome(ref: Any) -> Outcome:
    try:
        outcome: Outcome = ray.get(ref)
        return outcome
    except exceptions.TaskCancelledError:
        return Outcome(None, "it was stopped")
    except DIED as error:
        return Outcome(None, describe_error(error), died=True)
    except exceptions.RayTaskError as error:
        return Outcome(None, describe_error(error.cause))
    except exceptions.RayError as error:
        return Outcome(None, describe_error(error))
