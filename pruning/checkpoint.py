"""Checkpoints: a masked network on disk, as small as its sparsity allows.

A checkpoint is one safetensors file (never pickle). A masked tensor `w` is stored as its surviving
values, `w` (1-D), and its mask, `w.mask`, in the smaller of two encodings:

* "bits": one bit a weight, packed eight to a byte (`numpy.packbits`);
* "gaps": for each survivor the number of pruned weights before it, as a byte, where 255 means "255
  and no survivor yet"; smaller than bits when less than about an eighth of the weights survive.

One metadata entry holds JSON with the shapes, the encodings, the caller's metadata and a digest of
everything, so a damaged file is detected. A digest is not a signature: anyone who alters a file can
recompute it, so everything in a file is checked before it is used. The bytes depend only on the
content.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil, prod
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from pruning.files import read_whole, write_whole
from pruning.masks import Masks, State

FORMAT = "weight-loss/1"
# The masks of a file may have MOST_WEIGHTS weights, or WEIGHTS_PER_BYTE for each byte of the file,
# whichever is more.
MOST_WEIGHTS = 1 << 26
WEIGHTS_PER_BYTE = 256
_HEADER = "weight_loss"
_SIZE = 8  # bytes of the size of the header of a safetensors file


class _Mask(BaseModel):
    """What the header says about a mask."""

    model_config = ConfigDict(extra="forbid", strict=True)
    shape: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1, max_length=8)]
    encoding: Literal["bits", "gaps"]

    @property
    def size(self) -> int:
        """How many weights it covers."""
        return prod(self.shape)

    @property
    def extent(self) -> int:
        """The product of the sides, with 0 counted as 1, so that a limit on it limits each side."""
        return prod(max(1, side) for side in self.shape)


class _Header(BaseModel):
    format: str
    masks: dict[str, _Mask]
    metadata: dict[str, Any]
    digest: str


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
        ValueError: If a pruned weight is not zero, a name is used twice, or `metadata` is not JSON.
        OSError: If the file cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    layout: dict[str, Any] = {}
    for name, value in state.items():
        value = value.detach().cpu().contiguous()
        if f"{name}.mask" in state and name in masks:
            raise ValueError(f"{name}.mask is reserved for the mask of {name}: rename this tensor")
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
        ValueError: If the file is truncated, altered, foreign or of a newer format, or would need
            far more memory than its size.
    """
    content = read_whole(path)
    try:
        return _read(content)
    except ValueError as error:
        raise ValueError(f"{path} {error}") from None


def _read(content: bytes) -> Checkpoint:
    try:
        tensors = load(content)
    except (SafetensorError, KeyError, RuntimeError, TypeError) as error:
        # Raised also for types that PyTorch lacks, and for sizes that it cannot represent.
        why = " ".join(str(error).split())[:200]
        raise ValueError(f"is truncated or not a safetensors file ({why})") from None
    size = int.from_bytes(content[:_SIZE], "little")
    metadata = json.loads(content[_SIZE : _SIZE + size]).get("__metadata__") or {}
    text = metadata.get(_HEADER)
    if text is None:
        raise ValueError("is a safetensors file, but not a Weight Loss checkpoint")
    header, stored = _read_header(text)
    if header.format != FORMAT:
        raise ValueError(f"has format {header.format[:40]!r}; this version reads {FORMAT}")
    if stored.pop("digest") != _digest(tensors, stored):
        raise ValueError("has been altered: its content does not match its digest")
    most = _most_weights(len(content))
    if sum(entry.extent for entry in header.masks.values()) > most:
        raise ValueError(f"has masks of more than {most:,} weights")
    masks = {name: _read_mask(name, entry, tensors) for name, entry in header.masks.items()}
    if missing := masks.keys() - tensors.keys():
        raise ValueError(f"is damaged: the values of {min(missing)} are missing")
    state = {name: _fill(name, value, masks.get(name)) for name, value in tensors.items()}
    return Checkpoint(state, masks, stored["metadata"])


def _most_weights(size: int) -> int:
    return max(MOST_WEIGHTS, WEIGHTS_PER_BYTE * size)


def _read_header(text: str) -> tuple[_Header, dict[str, Any]]:
    """The validated header, and the JSON that it was read from."""
    try:
        stored = json.loads(text)  # pydantic's own parser rejects lone surrogates, which we write
        return _Header.model_validate(stored), stored
    except (ValueError, RecursionError):
        raise ValueError("has been altered: its header is invalid") from None


def _read_mask(name: str, entry: _Mask, tensors: dict[str, Tensor]) -> Tensor:
    code = tensors.pop(f"{name}.mask", None)
    bytes_only = code is not None and code.dtype == torch.uint8 and code.ndim == 1
    mask = _decode(code.numpy(), entry) if code is not None and bytes_only else None
    if mask is None:
        raise ValueError(f"is damaged: the mask of {name} does not fit its shape {entry.shape}")
    return torch.from_numpy(mask.reshape(entry.shape))


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


def _decode(code: NDArray[np.uint8], entry: _Mask) -> NDArray[np.bool_] | None:
    """The flattened mask; None if `code` does not encode a mask of this size."""
    if entry.encoding == "bits":
        if len(code) != ceil(entry.size / 8):
            return None
        return np.unpackbits(code, count=entry.size).astype(bool)
    ends = code != 255
    if len(code) and not ends[-1]:
        return None
    places = np.cumsum(code.astype(np.int64) + ends)[ends] - 1
    if len(places) and places[-1] >= entry.size:
        return None
    mask = np.zeros(entry.size, dtype=bool)
    mask[places] = True
    return mask


def _fill(name: str, values: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return values
    if values.shape != (int(mask.sum()),):
        raise ValueError(f"is damaged: {name} does not have one value for each weight in its mask")
    full = torch.zeros(mask.shape, dtype=values.dtype)
    full[mask] = values
    return full


def _digest(tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
