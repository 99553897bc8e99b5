"""Forms: what a network costs as it is usually kept, and as an export makes it.

Each form is a file and a way to run it, of the dense network or of the pruned one. To add one: a
line in `FORMS`; a file of another kind also needs a loader (deployment/probe.py).
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from datasets import View
from experiments.deployment.formats import (
    ALIGNED,
    FORMATS,
    Model,
    Request,
    accuracy_of,
    smallest,
)
from experiments.rounds.network import Network, logits_of
from models import linear_layers
from pruning.checkpoint import save_checkpoint

ALL, KEPT = "all", "kept"  # weights that are multiplied
LEFT, LEFT_ALIGNED = "left", "left_aligned"  # those of the units that are left
SUFFIXES = {"torch": "safetensors", "sparse": "safetensors", "onnx": "onnx"}


@dataclass(frozen=True)
class Form:
    """A form of a network.

    Attributes:
        title: What it is, for readers of a table.
        write: Writes its file; returns what computes, if that is not the network itself.
        loader: How it is run: a key of `probe.LOADERS`.
        products: Which weights it multiplies: `ALL`, `KEPT`, `LEFT` or `LEFT_ALIGNED`. Zeros that
            fill the kernel of grey images do not count (deployment/integers.py).
        dense: Whether it is of the dense network.
        against: The form that it is compared with.
    """

    title: str
    write: Callable[[Request, Path], Model | None]
    loader: str
    products: str
    dense: bool = False
    against: str = "dense"


def write_plain(request: Request, path: Path) -> None:
    """All values of a network, zeros included, as most programs keep it."""
    network = request.network
    save_checkpoint(path, network.module.network.state_dict(), {}, network.metadata)


def write_sparse(request: Request, path: Path) -> Model:
    """The network as `run` keeps it; returns the sparse engine's network."""
    from experiments.training.sparse import for_inference  # here: Numba takes long to import

    network, white = request.network, request.data.train.view.white
    network.save(path)
    spec = network.spec
    engine = for_inference(spec.architecture, network.module.network.state_dict(), network.masks)
    view = View(white, spec.mean, spec.std, spec.crop, spec.l2)
    return lambda pixels: engine.logits((white * pixels).round().to(torch.uint8), view)


def _form(name: str) -> Callable[[Request, Path], Model]:
    return FORMATS[name].write


FORMS: dict[str, Form] = {
    "dense": Form("dense network in PyTorch", write_plain, "torch", ALL, dense=True),
    "dense_onnx": Form("dense network in ONNX Runtime", _form("onnx"), "onnx", ALL, dense=True),
    "dense_int8": Form("the same with int8", _form("int8"), "onnx", ALL, dense=True),
    "masked": Form("pruned network in PyTorch, with its zeros", write_plain, "torch", ALL),
    "packed": Form("the same, from a packed file", _form("packed"), "torch", ALL),
    "sparse": Form("its survivors, in the sparse engine", write_sparse, "sparse", KEPT),
    "compact": Form("its units that are left, in PyTorch", _form("compact"), "torch", LEFT),
    "onnx": Form("the same in ONNX Runtime", _form("onnx"), "onnx", LEFT, against="dense_onnx"),
    "int8": Form(
        "the same with int8, units aligned",
        _form("int8"),
        "onnx",
        LEFT_ALIGNED,
        against="dense_int8",
    ),
}


def available(network: Network) -> list[str]:
    """The forms that a network can have."""
    architecture = network.spec.architecture
    without = set() if architecture.widths else {"compact"}
    without |= set() if linear_layers(architecture.skeleton) else {"sparse"}
    return [name for name in FORMS if name not in without]


def multiply_adds(form: Form, network: Network) -> int:
    """Multiply-adds for an image."""
    uses = network.spec.architecture.uses
    masks = network.masks
    if form.products in (LEFT, LEFT_ALIGNED):
        masks = smallest(network, ALIGNED if form.products == LEFT_ALIGNED else 1).masks
    kept = form.products == KEPT
    return sum(
        uses[name] * int(mask.sum() if kept else mask.numel()) for name, mask in masks.items()
    )


@dataclass(frozen=True)
class Written:
    """A form's file, and its results on the images."""

    form: str
    path: Path
    bytes: int
    multiply_adds: int
    test_accuracy: float  # in [0, 1]
    valid_accuracy: float


def write_form(name: str, request: Request, folder: Path) -> Written:
    """Write the file of a form, and evaluate it."""
    form, data = FORMS[name], request.data
    assert data.test
    path = folder / f"{name}.{SUFFIXES[form.loader]}"
    model = form.write(request, path) or request.network.module
    return Written(
        form=name,
        path=path,
        bytes=path.stat().st_size,
        multiply_adds=multiply_adds(form, request.network),
        test_accuracy=accuracy_of(logits_of(model, data.test), data.test),
        valid_accuracy=accuracy_of(logits_of(model, data.valid), data.valid),
    )
