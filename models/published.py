"""Published checkpoints: loading the trained values of a network that its authors release.

The file is a safetensors file or was written by `torch.save`, of any version since Python 2. Code
in a pickle is never executed: a file that needs it is rejected.
"""

import os
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SHOWN = 3  # problems in an error message
MOST_PICKLED = 1 << 20  # bytes that the content of a file may take more than the file
NUMBERS = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32)


class _Ignored:
    """Placeholder for a NumPy value next to the weights, such as an accuracy."""

    def __init__(self, *parts: object) -> None: ...

    def __setstate__(self, parts: object) -> None: ...


_NUMPY = ("dtype", "ndarray") + tuple(
    f"{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")
)
_IGNORED: list[Any] = [(_Ignored, f"numpy.{name}") for name in _NUMPY]


def load_published(
    path: str | os.PathLike[str], state: Mapping[str, Tensor], output: str
) -> dict[str, Tensor]:
    """A copy of `state`, a network's initial values, with the values from the file `path`.

    The tensors are at the top level of the file or under `state_dict`, with or without the prefix
    `module.`; other content (epoch, optimizer state) is ignored. The output layer, whose weight is
    called `output`, keeps its values from `state` if the file has another number of classes.

    Raises:
        ValueError: If the file is missing, truncated or not a checkpoint, if reading it would
            execute code, or if its tensors do not fit the network.
    """
    found = _tensors(_read(Path(path)))
    kept = _other_classes(found, state, output)
    _check(found, {name: value for name, value in state.items() if name not in kept}, kept)
    return {
        name: value.clone() if name in kept else torch.empty_like(value).copy_(found[name])
        for name, value in state.items()
    }


def _read(path: Path) -> object:
    if not path.is_file():
        raise ValueError(f"pretrained must be an existing file, got {path}")
    try:
        _check_memory(path)
        with torch.serialization.safe_globals(_IGNORED), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about old formats
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ValueError(f"pretrained cannot be read: {error}") from None
    except Exception as error:  # a damaged pickle can raise anything
        raise ValueError(_rejection(path, str(error))) from None


def _check_memory(path: Path) -> None:
    """Check that reading takes about as much memory as the file has bytes."""
    whole = path.read_bytes()
    pickles = [whole]
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as file:
            if sum(each.file_size for each in file.infolist()) > len(whole) + MOST_PICKLED:
                raise ValueError("it is compressed")
            pickles = [file.read(each) for each in file.infolist() if each.filename[-4:] == ".pkl"]
    if any(b"bytearray" in each for each in pickles):  # of any size
        raise ValueError("it allocates memory")


def _rejection(path: Path, error: str) -> str:
    """Why the file was not read; PyTorch distinguishes the cases only in its message."""
    code = re.search(r"GLOBAL (\S+)", error)
    if code:
        return (
            f"pretrained must contain tensors only, but loading {path} would execute code "
            f"({code[1]}): save a state_dict() instead of a whole model"
        )
    return (
        "pretrained must be a checkpoint of tensors (torch.save or safetensors), but "
        f"{path} is truncated or not a checkpoint; no code in it was executed"
    )


def _tensors(content: Any) -> dict[str, Tensor]:
    """The named tensors of a checkpoint, their names without `module.`."""
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping):
        raise ValueError(
            f"pretrained must contain named tensors, but the file is a {type(content).__name__}"
        )
    return {
        str(name).removeprefix("module."): value.detach()
        for name, value in content.items()
        if isinstance(value, Tensor)
    }


def _other_classes(
    found: Mapping[str, Tensor], state: Mapping[str, Tensor], output: str
) -> set[str]:
    """The weight and bias of the output layer, if the file has another number of classes."""
    theirs, ours = found.get(output), state[output]
    if theirs is None or theirs.shape[1:] != ours.shape[1:] or theirs.shape == ours.shape:
        return set()
    bias = output.removesuffix("weight") + "bias"
    return {name for name in (output, bias) if name in found and name in state}


def _check(found: dict[str, Tensor], expected: dict[str, Tensor], kept: set[str]) -> None:
    wrong = [f"lacks {name}" for name in expected if name not in found]
    wrong += [
        f"has {name} as {_shape(found[name])} instead of {_shape(value)}"
        for name, value in expected.items()
        if name in found and found[name].shape != value.shape
    ]
    wrong += [
        f"has {name} with values that are not finite numbers of {expected[name].dtype}"
        for name in expected
        if name in found and not _is_plain(found[name], expected[name])
    ]
    wrong += [f"has an extra {name}" for name in found if name not in expected and name not in kept]
    if wrong:
        more = f" (and {len(wrong) - SHOWN} more)" if len(wrong) > SHOWN else ""
        raise ValueError(
            f"pretrained must fit the model, but the file {', '.join(wrong[:SHOWN])}{more}: use "
            "the model and image shape that it was trained with"
        )


def _is_plain(value: Tensor, expected: Tensor) -> bool:
    """Whether these are numbers in memory that a tensor like `expected` can hold."""
    if value.layout != torch.strided or value.is_quantized or value.device.type != "cpu":
        return False
    if value.dtype not in NUMBERS or value.is_floating_point() != expected.is_floating_point():
        return False
    return bool(value.isfinite().all())


def _shape(value: Tensor) -> str:
    return "x".join(map(str, value.shape)) or "a number"
