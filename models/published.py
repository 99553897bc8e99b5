"""Published checkpoints: the trained values of a network, in the files that authors release.

Such a file is what `torch.save` writes, today's or that of Python 2, or a safetensors file. It is
read without executing the code that a pickle can hold: a file that needs any is refused.
"""

import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SHOWN = 3  # tensors in an error message


class _Ignored:
    """Stands in for a NumPy value beside the weights, such as a measured accuracy."""

    def __init__(self, *parts: object) -> None: ...

    def __setstate__(self, parts: object) -> None: ...


_NUMPY = ("dtype", "ndarray") + tuple(
    f"{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")
)
_IGNORED: list[Any] = [(_Ignored, f"numpy.{name}") for name in _NUMPY]


def load_published(
    path: str | os.PathLike[str], state: Mapping[str, Tensor], output: str
) -> dict[str, Tensor]:
    """A copy of `state`, a network's first values, with the values published in the file `path`.

    The tensors lie in the file as they are or under `state_dict`, with or without `module.` before
    each name; what else is there (epoch, optimizer state) is ignored. The output layer, whose
    weight is called `output`, stays as it is in `state` if the file has another class count.

    Raises:
        ValueError: If there is no such file, if it is truncated or no checkpoint, if reading it
            would execute code, or if its tensors are not those of the network.
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
        raise ValueError(f"pretrained must be a file, there is none at {path}")
    try:
        with torch.serialization.safe_globals(_IGNORED), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of old formats: they are read or refused
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ValueError(f"pretrained cannot be read: {error}") from None
    except Exception as error:  # a damaged pickle can raise anything
        raise ValueError(_refusal(path, str(error))) from None


def _refusal(path: Path, error: str) -> str:
    """Why the file was not read; PyTorch tells the cases apart in words only."""
    code = re.search(r"GLOBAL (\S+)", error)
    if code:
        return (
            f"pretrained must hold tensors only, but {path} contains code that reading it would "
            f"execute ({code[1]}): refused; save a state_dict() instead of a whole model"
        )
    return (
        "pretrained must be a checkpoint of tensors (torch.save or safetensors), but "
        f"{path} is truncated or something else; no code in it was executed"
    )


def _tensors(content: Any) -> dict[str, Tensor]:
    """The named tensors of a checkpoint, their names without `module.`."""
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping):
        raise ValueError(
            f"pretrained must hold tensors by name, the file holds a {type(content).__name__}"
        )
    return {
        str(name).removeprefix("module."): value.detach()
        for name, value in content.items()
        if isinstance(value, Tensor)
    }


def _other_classes(
    found: Mapping[str, Tensor], state: Mapping[str, Tensor], output: str
) -> set[str]:
    """The weight and bias of the output layer, if the file has them for other classes."""
    theirs, ours = found.get(output), state[output]
    if theirs is None or theirs.shape[1:] != ours.shape[1:] or theirs.shape == ours.shape:
        return set()
    bias = output.removesuffix("weight") + "bias"
    return {name for name in (output, bias) if name in found and name in state}


def _check(found: dict[str, Tensor], wanted: dict[str, Tensor], kept: set[str]) -> None:
    wrong = [f"lacks {name}" for name in wanted if name not in found]
    wrong += [
        f"has {name} as {_shape(found[name])} and not {_shape(value)}"
        for name, value in wanted.items()
        if name in found and found[name].shape != value.shape
    ]
    wrong += [f"has {name} besides" for name in found if name not in wanted and name not in kept]
    if wrong:
        more = f" (and {len(wrong) - SHOWN} more)" if len(wrong) > SHOWN else ""
        raise ValueError(
            f"pretrained must fit the model, but the file {', '.join(wrong[:SHOWN])}{more}: choose "
            "the model and the image shape it was trained with"
        )


def _shape(value: Tensor) -> str:
    return "x".join(map(str, value.shape)) or "a number"
