"""Ray: tasks on the machines of a Ray cluster, which may join and leave at any time.

The code of this machine is sent to the others, so all run the same; packages and data must be there
already. Ray retries nothing: the code that submits a task handles the death of its process.
"""

import logging
import os
import signal
import socket
import warnings
from collections.abc import Iterator
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

import torch

from experiments.processes.program import IMPORT_ROOT, INSIDE
from experiments.processes.signals import raise_if_interrupted
from experiments.processes.tasks import (
    STOPPED,
    THREADS_PER_WORKER,
    Executor,
    Message,
    Outcome,
    Work,
    run_task,
)
from experiments.processes.terminal import describe_error

try:
    import ray
    from ray import exceptions
    from ray.util.queue import Queue
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
except ImportError:
    how = "install weight-loss[cluster]" if INSIDE else "pip install -r requirements-cluster.txt"
    raise ValueError(f"executor=ray needs a package that is missing: {how}") from None

# Folders that are sent to every machine.
CODE = ("weight_loss",) if INSIDE else ("experiments", "pruning", "models", "datasets")
SHARED_VARIABLES = ("MLFLOW_", "PG", "AWS_", "AZURE_", "GOOGLE_")  # prefixes of their names
STOP_SECONDS = 30.0  # that stopped tasks have to mark their runs
CONNECT_SECONDS = 10.0  # for a cluster to answer
LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")
DIED = (
    *(exceptions.WorkerCrashedError, exceptions.NodeDiedError),
    *(exceptions.OutOfMemoryError, exceptions.ObjectLostError),
)


class Cluster(Executor):
    """Tasks on a Ray cluster, each of which takes one `resource`: "CPU" or "GPU"."""

    def __init__(self, limit: int | None, resource: str, queue: Queue, tracking_uri: str) -> None:
        super().__init__(queue)
        self.limit, self.resource, self.tracking_uri = limit, resource, tracking_uri

    @property
    def count(self) -> int:
        """How many tasks can run at a time, on the cluster's current machines."""
        return self.limit or max(1, int(_resources().get(self.resource, 0)))

    def _start(self, name: str, work: Work, args: tuple[Any, ...]) -> "Future[Outcome]":
        task = _task.options(num_cpus=1, num_gpus=int(self.resource == "GPU"))
        environment = _environment(self.tracking_uri)
        future: Future[Outcome] = task.remote(name, work, args, environment, self.queue).future()
        return future

    def _messages(self) -> Iterator[Message]:
        try:
            return iter(self.queue.get_nowait_batch(self.queue.size()))
        except KeyboardInterrupt:  # Ray turns our exception into this one, without the signal
            raise_if_interrupted()
            raise
        except exceptions.RayError:
            raise ConnectionError(
                "the Ray cluster is gone: start it again; the same command continues from here"
            ) from None

    def _lost(self, error: BaseException) -> Outcome:
        if isinstance(error, exceptions.TaskCancelledError):
            return Outcome(None, STOPPED)
        cause = error.cause if isinstance(error, exceptions.RayTaskError) else error
        if not isinstance(error, exceptions.RayError):
            raise error
        return Outcome(None, describe_error(cause).rstrip("."), died=isinstance(error, DIED))

    def stop(self) -> None:
        """Stop all tasks, and wait until they have marked their runs."""
        with suppress(exceptions.RayError):  # the cluster may be gone
            for future in self.running.values():
                ray.cancel(future.object_ref)  # type: ignore[attr-defined]  # Ray keeps it there
            wait_for(self.running.values(), STOP_SECONDS)


def connect(address: str, tracking_uri: str, *servers: str) -> None:
    """Connect to the cluster at `address` (host:port, or "auto" for the one on this machine).

    Args:
        tracking_uri: Where tasks log to.
        servers: URLs of the other servers that tasks use.

    Raises:
        ValueError: If there is no cluster, or its machines cannot reach a server.
    """
    if urlsplit(tracking_uri).scheme not in ("http", "https"):
        raise ValueError(
            "executor=ray needs a tracking server that all machines can reach: set "
            f"MLFLOW_TRACKING_URI to one such as http://host:5000; it is {tracking_uri}"
        )
    _connect(address)
    nodes = ray.nodes()  # type: ignore[no-untyped-call]
    machines = {node["NodeManagerAddress"] for node in nodes if node["Alive"]}
    for host in (urlsplit(url).hostname for url in (tracking_uri, *servers)):
        if len(machines) > 1 and host in LOCAL_HOSTS:
            raise ValueError(
                f"executor=ray: the server on {host} cannot be reached from the other machines of "
                "the cluster; use this machine's name or address"
            )


@contextmanager
def open_cluster(workers: int | None, device: str, tracking_uri: str) -> Iterator[Cluster]:
    """The cluster that `connect` has connected to; tasks that still run on exit are stopped.

    Args:
        workers: Tasks at a time; None is as many as the cluster has CPUs, or GPUs.
        device: "cpu", or else a task takes a GPU where this machine has one.
        tracking_uri: Where tasks log to.

    Raises:
        ValueError: If the cluster has no CPU, or no GPU.
    """
    resource = "GPU" if device != "cpu" and torch.cuda.is_available() else "CPU"
    try:
        if not _resources().get(resource):
            raise ValueError(f"executor=ray: the cluster has no {resource}")
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        queue = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})
        cluster = Cluster(workers, resource, queue, tracking_uri)
        try:
            yield cluster
        finally:
            cluster.stop()
    finally:
        ray.shutdown()


def _connect(address: str) -> None:
    if "://" in address:
        raise ValueError(f"ray_address must be auto or host:port, got {address}")
    handler = signal.getsignal(signal.SIGTERM)
    others = [f"/{path.name}" for path in IMPORT_ROOT.iterdir() if path.name not in CODE]
    code = {"working_dir": str(IMPORT_ROOT), "excludes": others}
    try:
        if address != "auto":  # Ray itself would try for minutes
            host, _, port = address.rpartition(":")
            socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ray.init(address, runtime_env=code, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError, ValueError, exceptions.RayError) as error:
        where = "on this machine" if address == "auto" else f"at {address}"
        raise ValueError(
            f"there is no Ray cluster {where} ({describe_error(error)}): start one with "
            "ray start --head, or set ray_address"
        ) from None
    finally:
        signal.signal(signal.SIGTERM, handler)  # Ray replaces it


def _resources() -> dict[str, float]:
    return dict(ray.cluster_resources())  # type: ignore[no-untyped-call]


def _environment(tracking_uri: str) -> dict[str, str]:
    """Where a task logs to and how it logs in; as an argument, since Ray shows a runtime_env."""
    shared = {k: v for k, v in os.environ.items() if k.startswith(SHARED_VARIABLES)}
    shared.pop("MLFLOW_RUN_ID", None)
    return shared | {"MLFLOW_TRACKING_URI": tracking_uri}


@ray.remote(max_retries=0, max_calls=0)
def _task(
    name: str, work: Work, args: tuple[Any, ...], environment: dict[str, str], queue: Queue
) -> Outcome:
    os.environ.update(environment)
    torch.set_num_threads(THREADS_PER_WORKER)
    return run_task(work, args, lambda line: queue.put((name, line)))
