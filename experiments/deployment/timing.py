"""Timing: memory and latency of several forms of a network, each in a process of its own.

The forms take turns, so that a machine that slows down slows all of them. As in the single-stream
scenario of MLPerf Inference (Reddi et al. 2020, arXiv:1911.02549), a query is sent when the one
before is answered. MLPerf requires at least 1,024 queries and at least 60 seconds; here a form
stops at whichever comes first.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from experiments.processes.program import IMPORT_ROOT, INSIDE
from experiments.processes.signals import raise_if_interrupted

WARM_UP = 16  # queries, or as many as fit in `WARM_SECONDS`
WARM_SECONDS = 1.0
TURN_SECONDS = 0.25  # a form's turn takes about as long, and at least one query
PROBE = f"{INSIDE}experiments.deployment.probe"


@dataclass(frozen=True)
class Source:
    """A file to load, and how."""

    loader: str  # a key of `probe.LOADERS`
    path: Path


@dataclass
class Times:
    """What one form takes with a number of threads and images in a query."""

    threads: int
    batch: int
    loading: float  # memory in MB, beyond that of the imported libraries
    inference: float
    process: float  # all memory of the process, in MB
    seconds: list[float] = field(default_factory=list)  # of each query

    def percentile(self, share: float) -> float:
        """In milliseconds."""
        return float(1000 * np.percentile(self.seconds, share))

    @property
    def throughput(self) -> float:
        """Images a second."""
        return self.batch * len(self.seconds) / sum(self.seconds)


class Probe:
    """A process that runs one form; it ends when its input does."""

    def __init__(self, source: Source, images: Path, white: int, threads: int) -> None:
        asked = {
            "loader": source.loader,
            "path": str(source.path.resolve()),
            "images": str(images.resolve()),
            "white": white,
            "threads": threads,
        }
        self.path = source.path
        self.process = subprocess.Popen(
            [sys.executable, "-m", PROBE, json.dumps(asked)],
            cwd=IMPORT_ROOT,
            env=os.environ | {"OMP_NUM_THREADS": str(threads)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            self.loading = float(self._answer()["loading"])
        except BaseException:  # an interrupt, too, must not leave the process behind
            self.close()
            raise

    def begin(self, batch: int) -> dict[str, float]:
        """Prepare a query of `batch` images; returns the memory that it takes."""
        return self._ask({"batch": batch})

    def run(self, batch: int, queries: int) -> list[float]:
        """The seconds that each of some queries takes."""
        return [each / 1e9 for each in self._ask({"batch": batch, "queries": queries})["ns"]]

    def _ask(self, request: Mapping[str, int]) -> dict[str, Any]:
        assert self.process.stdin
        with suppress(BrokenPipeError):  # the answer, which is missing then, says more
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            status = self.process.wait()
            raise ValueError(f"the process that measures {self.path} ended with status {status}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin
        assert self.process.stdout
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.stdout.close()
        self.process.kill()
        self.process.wait()


def take_times(
    sources: Mapping[str, Source],
    images: Path,
    white: int,
    threads: int,
    batch: int,
    queries: int,
    seconds: float,
) -> dict[str, Times]:
    """Measure all forms in turns, with one number of threads and of images in a query.

    Args:
        images: An .npy file of stored images, uint8 [n, channels, height, width].
        white: The largest value of a pixel.
        queries: How many each form answers, unless that takes longer than `seconds`.
    """
    with ExitStack() as open_probes:
        probes, times = {}, {}
        for name, source in sources.items():
            probe = Probe(source, images, white, threads)
            open_probes.callback(probe.close)
            probes[name] = probe
            memory = probe.begin(batch)
            times[name] = Times(
                threads, batch, probe.loading, memory["inference"], memory["process"]
            )
        turns = {name: _warm(probe, batch) for name, probe in probes.items()}
        waiting = list(probes)
        while waiting:
            for name in list(waiting):
                raise_if_interrupted()
                taken = times[name].seconds
                taken += probes[name].run(batch, min(turns[name], queries - len(taken)))
                if len(taken) >= queries or sum(taken) >= seconds:
                    waiting.remove(name)
    return times


def _warm(probe: Probe, batch: int) -> int:
    """Answer some queries that do not count; returns how many fit in a turn."""
    taken: list[float] = []
    while len(taken) < WARM_UP and sum(taken) < WARM_SECONDS:
        taken += probe.run(batch, 1)
    return max(1, int(TURN_SECONDS / float(np.median(taken))))
