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
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from time import monotonic
from typing import Any
from urllib.parse import urlsplit

import torch

from experiments import server, summary
from experiments.liveness import check_stop
from experiments.parameters import AUTO
from experiments.run import Tell
from experiments.tuning.search import TuneConfig
from experiments.tuning.storage import check_url, is_file, shown
from experiments.workers import POLL_SECONDS, THREADS, Outcome, Work, outcome_of

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
    at_work: dict[str, Any] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """As in `Workers`."""
        return self.limit or max(1, int(_resources().get(self.kind, 0)))

    @property
    def free(self) -> bool:
        """As in `Workers`."""
        return len(self.at_work) < self.count

    def start(self, name: str, work: Work, *args: Any) -> None:
        """As in `Workers`."""
        task = _task.options(num_cpus=1, num_gpus=int(self.kind == "GPU"))
        self.at_work[name] = task.remote(name, work, args, _environment(), self.messages)

    def wait(self, tell: Tell, at_most: float = inf) -> dict[str, Outcome]:
        """As in `Workers`."""
        done: list[Any] = []
        give_up = monotonic() + at_most
        while not done and monotonic() < give_up:
            check_stop()
            with _in_our_words():
                done, _ = ray.wait(list(self.at_work.values()), timeout=POLL_SECONDS)
                lines = self.messages.get_nowait_batch(self.messages.size())
            for name, line in lines:
                tell(f"{name}: {line}")
        ended = {name: ref for name, ref in self.at_work.items() if ref in done}
        for name in ended:
            del self.at_work[name]
        return {name: _outcome(ref) for name, ref in ended.items()}

    def stop(self) -> None:
        """Have what is at work given back."""
        refs = list(self.at_work.values())
        with suppress(exceptions.RayError):  # the cluster may be gone
            for ref in refs:
                ray.cancel(ref)
            if refs:
                ray.wait(refs, num_returns=len(refs), timeout=STOP_SECONDS)


def prepare(config: TuneConfig) -> TuneConfig:
    """Connect to the cluster; the search as each of its machines must have it.

    Raises:
        ValueError: If there is no cluster, or what all machines must reach is not to be reached.
    """
    storage, tracking = check_url(config.storage), server.tracking_uri()
    if is_file(storage):
        raise ValueError(
            "executor=ray needs a storage that all machines reach, such as "
            f"postgresql+psycopg://user@host/optuna, got storage={config.storage}"
        )
    if urlsplit(tracking).scheme not in ("http", "https"):
        raise ValueError(
            "executor=ray needs a tracking server that all machines reach: set "
            f"MLFLOW_TRACKING_URI to one such as http://host:5000, it is {tracking}"
        )
    _connect(config.ray_address)
    machines = {node["NodeManagerAddress"] for node in _nodes() if node["Alive"]}
    for address, host in (
        (shown(config.storage), storage.host),
        (tracking, urlsplit(tracking).hostname),
    ):
        if len(machines) > 1 and host in ONE_MACHINE:
            raise ValueError(f"{address}: {host} is another machine on each of the cluster")
    return config.model_copy(update={"data_root": str(Path(config.data_root).absolute())})


@contextmanager
def open_cluster(config: TuneConfig) -> Iterator[Cluster]:
    """Workers on the cluster that `prepare` has connected to; what is at work at the end stops.

    Raises:
        ValueError: If the cluster has nothing to work with.
    """
    kind = "GPU" if config.device != "cpu" and torch.cuda.is_available() else "CPU"
    try:
        if not _resources().get(kind):
            raise ValueError(f"executor=ray: the cluster has no {kind}")
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        messages = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})
        cluster = Cluster(config.workers, kind, messages)
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
        check_stop()
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
        if address != AUTO:  # which Ray itself would do for minutes
            host, _, port = address.rpartition(":")
            socket.create_connection((host, int(port)), ANSWER_SECONDS).close()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ray.init(address, runtime_env=code, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError, ValueError, exceptions.RayError) as error:
        where = "on this machine" if address == AUTO else f"at {address}"
        raise ValueError(
            f"there is no Ray cluster {where} ({summary.explain(error)}): start one with "
            "ray start --head, or give ray_address"
        ) from None
    finally:
        signal.signal(signal.SIGTERM, handler)  # Ray has put one of its own there


def _resources() -> dict[str, float]:
    return dict(ray.cluster_resources())  # type: ignore[no-untyped-call]


def _nodes() -> list[dict[str, Any]]:
    return list(ray.nodes())  # type: ignore[no-untyped-call]


def _environment() -> dict[str, str]:
    """What a task must know of where to log to and how to log in; Ray shows it to nobody."""
    known = {k: v for k, v in os.environ.items() if k.startswith(SHARED) and k != "MLFLOW_RUN_ID"}
    return known | {"MLFLOW_TRACKING_URI": server.tracking_uri()}


@ray.remote(max_retries=0, max_calls=0)
def _task(
    name: str, work: Work, args: tuple[Any, ...], environment: dict[str, str], messages: Queue
) -> Outcome:
    os.environ.update(environment)
    torch.set_num_threads(THREADS)
    return outcome_of(work, args, lambda line: messages.put((name, line)))


def _outcome(ref: Any) -> Outcome:
    try:
        outcome: Outcome = ray.get(ref)
        return outcome
    except exceptions.TaskCancelledError:
        return Outcome(None, "it was stopped")
    except DIED as error:
        return Outcome(None, summary.explain(error), died=True)
    except exceptions.RayTaskError as error:
        return Outcome(None, summary.explain(error.cause))
    except exceptions.RayError as error:
        return Outcome(None, summary.explain(error))
