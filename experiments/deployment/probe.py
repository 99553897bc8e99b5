"""Probe: a process that loads one form of a network, and answers with its memory and its times.

It has a process of its own and imports only what the form needs: for ONNX Runtime not PyTorch.
deployment/timing.py starts it, writes a line of JSON to its standard input for each request, and
reads one for each answer.
"""

import json
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import numpy as np
from numpy.typing import NDArray

Query = Callable[[], object]
Loaded = Callable[[NDArray[np.uint8]], Query]  # from stored images to a query on them
STATUS, PEAK = Path("/proc/self/status"), Path("/proc/self/clear_refs")
MEGABYTE = 1e6  # bytes


def load_onnx(path: Path, threads: int, white: int) -> Loaded:
    """A session of ONNX Runtime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def prepare(images: NDArray[np.uint8]) -> Query:
        given = {name: images.astype(np.float32) / white}
        return lambda: session.run(None, given)

    return prepare


def load_torch(path: Path, threads: int, white: int) -> Loaded:
    """A network in PyTorch."""
    import torch

    from experiments.rounds.network import open_network
    from pruning.checkpoint import load_checkpoint
    from pruning.packed import is_packed, load_packed

    torch.set_num_threads(threads)
    checkpoint = load_packed(path) if is_packed(path) else load_checkpoint(path)
    module = open_network(checkpoint, path.name).module
    module.to(memory_format=torch.channels_last)

    def prepare(images: NDArray[np.uint8]) -> Query:
        pixels = torch.from_numpy(images).float() / white

        def query() -> object:
            with torch.inference_mode():
                return module(pixels)

        return query

    return prepare


def load_sparse(path: Path, threads: int, white: int) -> Loaded:
    """The kernels of the sparse engine, which compute survivors only."""
    import torch

    from datasets import View
    from experiments.rounds.network import open_network
    from experiments.training.sparse import for_inference
    from pruning.checkpoint import load_checkpoint

    torch.set_num_threads(threads)
    network = open_network(load_checkpoint(path), path.name)
    spec, state = network.spec, network.module.network.state_dict()
    engine = for_inference(spec.architecture, state, network.masks)
    view = View(white, spec.mean, spec.std, spec.crop, spec.l2)

    def prepare(images: NDArray[np.uint8]) -> Query:
        stored = torch.from_numpy(images)
        return lambda: engine.logits(stored, view)

    return prepare


LOADERS: dict[str, Callable[[Path, int, int], Loaded]] = {
    "onnx": load_onnx,
    "torch": load_torch,
    "sparse": load_sparse,
}
IMPORTS = {
    "onnx": ("onnxruntime",),
    "torch": ("experiments.rounds.network", "pruning.packed"),
    "sparse": ("experiments.rounds.network", "experiments.training.sparse"),
}


def main(text: str) -> None:
    """Load, then answer requests until there are no more."""
    asked = json.loads(text)
    for name in IMPORTS[asked["loader"]]:
        import_module(name)
    images = np.load(asked["images"])
    before = reset_peak()
    path, threads = Path(asked["path"]), asked["threads"]
    loaded = LOADERS[asked["loader"]](path, threads, asked["white"])
    answer({"loading": peak() - before})
    queries: dict[int, Query] = {}
    for line in sys.stdin:
        request = json.loads(line)
        batch = request["batch"]
        if batch not in queries:
            reset_peak()
            queries[batch] = loaded(np.resize(images, (batch, *images.shape[1:])))
            queries[batch]()
            answer({"inference": peak() - before, "process": peak()})
            continue
        answer({"ns": [measure(queries[batch]) for _ in range(request["queries"])]})


def measure(query: Query) -> int:
    """Nanoseconds that a query takes."""
    began = perf_counter_ns()
    query()
    return perf_counter_ns() - began


def answer(content: dict[str, Any]) -> None:
    """Write a line of JSON."""
    print(json.dumps(content), flush=True)


def reset_peak() -> float:
    """Begin to measure the peak of this process's memory; returns the memory in use, in MB."""
    PEAK.write_text("5")
    return _status("VmRSS")


def peak() -> float:
    """The largest memory in use since `reset_peak`, in MB."""
    return _status("VmHWM")


def _status(field: str) -> float:
    (line,) = (line for line in STATUS.read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024 / MEGABYTE


if __name__ == "__main__":
    main(sys.argv[1])
