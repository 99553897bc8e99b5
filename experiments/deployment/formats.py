"""Formats: a network as files that are smaller than its checkpoint, or faster to run.

Each is written, read back, and evaluated on all validation and test images. To add one: a function
`(request, path) -> Model`, and a line in `FORMATS`.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from datasets import Split, Splits
from experiments.config.export import Chosen
from experiments.deployment.clusters import train_shared
from experiments.deployment.onnx_files import OnnxModel, quantise, write_onnx
from experiments.rounds.network import Network, logits_of, open_network
from models.compact import compact, remove_dead
from pruning.checkpoint import load_checkpoint, save_checkpoint
from pruning.packed import SHARED, load_packed, save_packed

Model = Callable[[Tensor], Tensor]  # pixels in [0, 1], [N, channels, height, width], to logits
ALIGNED = 8  # of which the layers of int8 files have a multiple: fast convolutions need it
SAME = 1e-5  # difference of logits that rounding may cause, of the largest logit


@dataclass(frozen=True)
class Request:
    """What is exported, and how."""

    config: Chosen
    network: Network
    data: Splits


@dataclass(frozen=True)
class Format:
    """A form of a network: how it is written, and whether its outputs are those of the checkpoint.

    Attributes:
        file: In the output folder.
        write: Writes the file; returns what was read back from it.
        exact: Whether outputs may differ by rounding only.
    """

    file: str
    write: Callable[[Request, Path], Model]
    exact: Callable[[Chosen], bool]


@dataclass(frozen=True)
class Measured:
    """A format's file, and the results of what was read back from it."""

    format: str
    file: str
    bytes: int
    test_accuracy: float  # in [0, 1]
    valid_accuracy: float
    largest_difference: float  # of a logit from the masked network's, on test images
    changed: int  # number of test images that it classifies differently

    @property
    def row(self) -> dict[str, Any]:
        """By column of the table."""
        return asdict(self)


def compact_network(network: Network, multiple: int = 1) -> Network:
    """The smallest dense network with the same outputs (`models.compact`).

    Args:
        multiple: A layer keeps units without effect until the number of its units is a multiple of
            this.

    Raises:
        ValueError: If its model does not state its units.
    """
    state = network.module.network.state_dict()
    small = compact(network.spec.architecture, state, network.masks, multiple)
    inputs = None if small.inputs is None else tuple(small.inputs.tolist())
    spec = replace(network.spec, compact=True, inputs=inputs)
    metadata = network.metadata | {"network": asdict(spec), "units": small.units}
    return Network(spec.build(small.state), small.masks, spec, metadata)


def smallest(network: Network, multiple: int = 1) -> Network:
    """Its compact network, or if its model does not state its units the network itself."""
    return compact_network(network, multiple) if network.spec.architecture.widths else network


def accuracy_of(logits: Tensor, split: Split) -> float:
    """Share of the images that are classified correctly, in [0, 1]."""
    return int((logits.argmax(1) == split.labels).sum()) / len(split)


def write_format(name: str, request: Request, folder: Path, expected: Tensor) -> Measured:
    """Write one format, read it back and evaluate it.

    Args:
        expected: Logits of the masked network on the test images.

    Raises:
        RuntimeError: If outputs differ where they must not.
    """
    form, test, valid = FORMATS[name], request.data.test, request.data.valid
    assert test
    path = folder / form.file
    model = form.write(request, path)
    logits = logits_of(model, test)
    difference = float((logits - expected).abs().max())
    changed = int((logits.argmax(1) != expected.argmax(1)).sum())
    close = difference <= SAME * max(1, float(expected.abs().max()))  # false for NaN
    if form.exact(request.config) and not close:
        raise RuntimeError(
            f"{path} differs from the network by {difference:g} in {changed} of {len(test)} images"
        )
    return Measured(
        format=name,
        file=form.file,
        bytes=path.stat().st_size,
        test_accuracy=accuracy_of(logits, test),
        valid_accuracy=accuracy_of(logits_of(model, valid), valid),
        largest_difference=difference,
        changed=changed,
    )


def write_compact(request: Request, path: Path) -> Model:
    """The smallest dense network, as a checkpoint that any program for safetensors reads."""
    small = compact_network(request.network)
    save_checkpoint(path, small.module.network.state_dict(), {}, small.metadata)
    return open_network(load_checkpoint(path), path.name).module


def write_packed(request: Request, path: Path) -> Model:
    """The pruned network in as few bytes as it takes; with values=shared they are trained."""
    network, config = request.network, request.config
    state, masks = network.module.network.state_dict(), network.masks
    if network.spec.architecture.widths:
        state, masks = remove_dead(network.spec.architecture, state, masks)
    if config.values == SHARED:
        state = train_shared(
            network.spec, state, masks, request.data, config.shared_values, config.shared_epochs
        )
    width = network.spec.architecture.image_shape[-1]
    save_packed(path, state, masks, brief(network), config.values, width)
    return open_network(load_packed(path), path.name).module


def brief(network: Network) -> dict[str, Any]:
    """The metadata that a network needs to work, in few bytes."""
    defaults = {"crop": 0, "compact": False, "inputs": None, "l2": False}
    spec = {
        name: value
        for name, value in asdict(network.spec).items()
        if name not in defaults or value != defaults[name]
    }
    data = {name: value for name, value in network.metadata["data"].items() if name != "digest"}
    return {"network": spec, "data": data, "round": network.round}


def write_float_onnx(request: Request, path: Path) -> Model:
    """The compact network for ONNX Runtime."""
    write_onnx(smallest(request.network), path)
    return OnnxModel(path)


def write_int8_onnx(request: Request, path: Path) -> Model:
    """The compact network with 8-bit integers, and a few more units (`ALIGNED`)."""
    quantise(smallest(request.network, ALIGNED), request.data.train, path)
    return OnnxModel(path)


FORMATS: dict[str, Format] = {
    "compact": Format("compact.safetensors", write_compact, lambda config: True),
    "packed": Format("packed.wlp", write_packed, lambda config: config.values == "float32"),
    "onnx": Format("model.onnx", write_float_onnx, lambda config: True),
    "int8": Format("model.int8.onnx", write_int8_onnx, lambda config: False),
}
