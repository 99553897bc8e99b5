"""Checkpoints: a masked network on disk, as small as its sparsity allows.

A checkpoint is one safetensors file (never pickle). A masked tensor `w` is stored as its surviving
values, `w` (1-D), and its mask, `w.mask`, in the smaller of two encodings:

* "bits": one bit a weight, packed eight to a byte (`numpy.packbits`);
* "gaps": for each survivor the number of pruned weights before it, as a byte, where 255 means "255
  and no survivor yet"; smaller than bits when less than about an eighth of the weights survive.

One metadata entry holds JSON with the shapes, the encodings, the caller's metadata and a digest of
everything, so an altered file is detected. The bytes depend on the content only.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from pruning.masks import Masks, State

FORMAT = "weight-loss/1"
_HEADER = "weight_loss"


@dataclass(frozen=True)
class Checkpoint:
    """What `load_checkpoint` returns: the masked state, its masks and the caller's metadata."""

    state: State
    masks: Masks
    metadata: dict[str, Any]


def save_checkpoint(
    path: str | os.PathLike[str], state: State, masks: Masks, metadata: Mapping[str, Any]
) -> int:
    """Write a masked network to `path`, all or nothing, and return the file size in bytes.

    Args:
        state: All tensors of the network; pruned weights must be zero.
        masks: Bool, one for each prunable tensor, True = survives.
        metadata: Any JSON value.

    Raises:
        ValueError: If a pruned weight is not zero or `metadata` is not JSON.
        OSError: If the file cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    layout: dict[str, Any] = {}
    for name, value in state.items():
        value = value.detach().cpu().contiguous()
        if name not in masks:
            tensors[name] = value
            continue
        mask = masks[name].cpu()
        if value[~mask].count_nonzero():
            raise ValueError(f"pruned weights of {name} must be zero: apply the masks first")
        encoding, code = _encode(mask.numpy().ravel())
        layout[name] = {"shape": list(mask.shape), "encoding": encoding}
        tensors[name] = value[mask]
        tensors[f"{name}.mask"] = torch.from_numpy(code)
    header = {"format": FORMAT, "masks": layout, "metadata": dict(metadata)}
    text = json.dumps(header | {"digest": _digest(tensors, header)}, sort_keys=True)
    # A single entry: safetensors writes several in an order that differs from call to call.
    content = save(tensors, metadata={_HEADER: text})
    write_whole(Path(path), content)
    return len(content)


def load_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Read what `save_checkpoint` wrote, bit for bit; pruned weights come back as zeros.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is truncated, altered, foreign, or of a newer format.
    """
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(_HEADER)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is truncated or not a safetensors file ({error})") from None
    if text is None:
        raise ValueError(f"{path} is a safetensors file, but not a Weight Loss checkpoint")
    try:
        header = json.loads(text)
        digest = header.pop("digest")
        if header["format"] != FORMAT:
            raise ValueError(f"{path} has format {header['format']}, this version reads {FORMAT}")
        intact = digest == _digest(tensors, header)
    except (json.JSONDecodeError, KeyError, AttributeError, TypeError):
        intact = False
    if not intact:
        raise ValueError(f"{path} has been altered: its content does not match its digest")
    masks = {
        name: torch.from_numpy(_decode(tensors.pop(f"{name}.mask").numpy(), **entry))
        for name, entry in header["masks"].items()
    }
    state = {name: _fill(value, masks.get(name)) for name, value in tensors.items()}
    return Checkpoint(state, masks, header["metadata"])


def _encode(mask: NDArray[np.bool_]) -> tuple[str, NDArray[np.uint8]]:
    bits = np.packbits(mask)
    if mask.mean() > 0.25:  # gaps take at least a byte for each survivor
        return "bits", bits
    gaps = np.diff(np.flatnonzero(mask), prepend=-1) - 1
    skips, last = np.divmod(gaps, 255)
    ends = np.cumsum(skips + 1) - 1  # position of each survivor's last byte
    code = np.full(int(ends[-1]) + 1 if len(ends) else 0, 255, dtype=np.uint8)
    code[ends] = last
    return ("gaps", code) if len(code) < len(bits) else ("bits", bits)


def _decode(code: NDArray[np.uint8], shape: list[int], encoding: str) -> NDArray[np.bool_]:
    size = int(np.prod(shape))
    if encoding == "bits":
        return np.unpackbits(code, count=size).astype(bool).reshape(shape)
    assert encoding == "gaps", encoding
    ends = code != 255
    mask = np.zeros(size, dtype=bool)
    mask[np.cumsum(code.astype(np.int64) + ends)[ends] - 1] = True
    return mask.reshape(shape)


def _fill(values: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return values
    full = torch.zeros(mask.shape, dtype=values.dtype)
    full[mask] = values
    return full


def _digest(tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that is either complete or missing, even after a power failure."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        partial.unlink(missing_ok=True)
