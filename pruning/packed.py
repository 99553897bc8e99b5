"""Packed files: a pruned network in as few bytes as its masks and values allow.

A packed file holds the surviving values of each tensor, and masks and indices coded with the
probability of each bit, which is learned from what was coded before (context modelling, as in
JBIG; Rissanen & Langdon 1981, doi:10.1109/TIT.1981.1056282). Values are float32, float16, or
indices into the few values that a tensor has (Han et al. 2016, arXiv:1510.00149).

Layout, little-endian: `MAGIC`; three uint32: the sizes of header and values in bytes, and a CRC-32
of all that follows; the header, which is JSON compressed by zlib; the values; the coded words.
Nothing in a file is executed, and what it says is checked before memory is allocated.
"""

import json
import os
import struct
import zlib
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Annotated, Any, Literal

import constriction  # type: ignore[import-untyped]
import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, Field, ValidationError

from pruning.checkpoint import Checkpoint
from pruning.files import read_whole, write_whole
from pruning.masks import Masks, State

MAGIC = b"WLPACK1\n"
KINDS: dict[str, np.dtype[Any]] = {"float32": np.dtype("<f4"), "float16": np.dtype("<f2")}
SHARED = "shared"
MOST_SHARED = 4096  # different values of a tensor that is stored as indices
MOST_ENTRIES = 1 << 26  # in all tensors of a file: 320 MB as values and masks
MOST_COLUMNS = 1 << 17  # in all masks of a file: each takes about 0.1 ms, or more with many rows
MOST_ROWS = 1 << 18  # in a mask: each takes 100 bytes while it is read
MOST_HEADER = 1 << 20  # bytes of its JSON
_LARGEST_HALF = 65504
_SIZES = struct.Struct("<3I")
_BLOCK = 256  # indices that are coded with the same probabilities
_CONTEXTS = (9, 64)  # of a bit: how many neighbours survive, and the size of the estimate
_PRIOR = 2.0  # how many counted weights the estimate is worth
_LEAST = 2e-5  # probability that any bit keeps
_survives = constriction.stream.model.Bernoulli(perfect=False)  # the same on all machines

Stride = Annotated[int, Field(ge=0, lt=1 << 20)]


class _Entry(BaseModel):
    """What the header says of a tensor."""

    name: str
    shape: Annotated[list[Annotated[int, Field(ge=0)]], Field(max_length=8)]
    values: Literal["float32", "float16"] | Annotated[int, Field(ge=0, le=MOST_SHARED)]
    half: bool = False  # whether they are float16, where their number is given
    mask: Stride | None = None  # of its mask

    @property
    def kind(self) -> np.dtype[Any]:
        """Of the values in the file."""
        return KINDS["float16" if self.half or self.values == "float16" else "float32"]

    @property
    def size(self) -> int:
        """How many weights it has, pruned ones included."""
        return prod(self.shape)

    @property
    def columns(self) -> int:
        """How many columns its mask has, as a matrix."""
        return self.size // self.shape[0] if self.mask is not None and self.size else 0


class _Header(BaseModel):
    tensors: list[_Entry]
    metadata: dict[str, Any]


class _MaskModel:
    """The probability that each weight of the next column of a matrix survives.

    Columns are what a layer reads, rows its units. The estimate is the share of survivors among
    nearby inputs, times that of the unit against the average; it is corrected by what was counted
    where the estimate was about the same and as many neighbours survived. Only operations that
    give the same bits on every machine are used.

    Args:
        stride: If not 0, columns are the values of images of this width, in rows.
    """

    def __init__(self, rows: int, columns: int, stride: int) -> None:
        self.stride, self.number = stride, 0
        self.seen = np.zeros((columns, rows), dtype=bool)
        self.survivors = [0] * columns
        self.total = 0
        self.found, self.expected = np.zeros(rows), np.zeros(rows)  # survivors of each row
        self.ones, self.zeros = np.zeros(_CONTEXTS), np.zeros(_CONTEXTS)

    def probabilities(self) -> NDArray[np.float64]:
        """Float64 [rows]."""
        rows = self.seen.shape[1]
        near, weight = 0.5 * (self.total + 1) / (self.number + 2), 0.5
        around = np.zeros(rows, dtype=np.int64)
        for column, share in self._neighbours():
            near += share * self.survivors[column]
            weight += share
            around += share * self.seen[column]
        self.rate = near / weight / rows
        odds = self.rate * ((self.found + 3.0) / (self.expected + 3.0))
        estimate = odds / (1.0 + odds)
        mantissa, exponent = np.frexp(estimate)
        level = np.clip(2 * exponent + (mantissa >= 0.70703125) + 40, 0, _CONTEXTS[1] - 1)
        self.context = np.minimum(around, _CONTEXTS[0] - 1), level
        ones, zeros = self.ones[self.context], self.zeros[self.context]
        chances = (ones + _PRIOR * estimate) / (ones + zeros + _PRIOR)
        clipped: NDArray[np.float64] = np.clip(chances, _LEAST, 1 - _LEAST)
        return clipped

    def _neighbours(self) -> list[tuple[int, int]]:
        """Columns that are known, and how much each counts."""
        number, stride = self.number, self.stride
        if not stride:
            return []
        y, x = divmod(number, stride)
        near = [(0, 1, 2), (1, 0, 2), (1, 1, 1), (1, -1, 1), (0, 2, 1), (2, 0, 1)]
        return [
            (number - up * stride - left, share)
            for up, left, share in near
            if up <= y and 0 <= x - left < stride
        ]

    def update(self, column: NDArray[np.bool_]) -> None:
        """Tell which weights of the column survive, bool [rows]."""
        np.add.at(self.ones, self.context, column)
        np.add.at(self.zeros, self.context, ~column)
        self.seen[self.number] = column
        self.survivors[self.number] = count = int(column.sum())
        self.total += count
        self.found += column
        self.expected += self.rate
        self.number += 1


def save_packed(
    path: str | os.PathLike[str],
    state: State,
    masks: Masks,
    metadata: Mapping[str, Any],
    values: str = "float32",
    image_width: int = 0,
) -> int:
    """Write a masked network to `path`, all or nothing; returns the file size in bytes.

    Args:
        state: All tensors of the network, float32; pruned weights must be zero.
        masks: Bool, one for each prunable tensor, True = survives.
        metadata: Any JSON value.
        values: float32; float16, which rounds; or shared, for tensors that have few values.
        image_width: Of the images that a linear layer reads, flattened; it makes files smaller.

    Raises:
        ValueError: If a pruned weight is not zero, a tensor does not suit `values`, the network is
            too large, or `metadata` is not JSON.
        OSError: If the file cannot be written.
    """
    encoder = constriction.stream.queue.RangeEncoder()
    entries, stored = [], []
    for name, tensor in sorted(state.items()):
        if tensor.dtype != torch.float32:
            raise ValueError(f"{name} must be float32 to be packed, got {tensor.dtype}")
        array = tensor.detach().cpu().contiguous().numpy()
        entry = _Entry(name=name, shape=list(array.shape), values="float32")
        survivors = array.ravel()
        if name in masks:
            mask = masks[name].cpu().numpy()
            if array[~mask].any():
                raise ValueError(f"pruned weights of {name} must be zero: apply the masks first")
            entry.mask = _best_stride(mask, image_width)
            _write_mask(encoder, mask, entry.mask)
            survivors = array[mask]
        if values == SHARED:
            few = np.unique(survivors)
            if len(few) > MOST_SHARED or not np.isfinite(few).all():
                raise ValueError(
                    f"{name} has {len(few)} different values, more than {MOST_SHARED}, or one that "
                    "is not finite: it cannot be packed as shared values"
                )
            entry.values, entry.half = len(few), _fits_half(few)
            _write_indices(encoder, np.searchsorted(few, survivors), len(few))
            survivors = few
        elif values == "float16":
            entry.values = "float16"
            if np.abs(survivors[np.isfinite(survivors)]).max(initial=0) > _LARGEST_HALF:
                raise ValueError(f"{name} has values too large for float16: use float32")
        elif values != "float32":
            raise ValueError(f"values must be float32, float16 or shared, got {values}")
        entries.append(entry)
        stored.append(survivors.astype(entry.kind).tobytes())
    _check_size(entries)
    layout = [entry.model_dump(exclude_defaults=True) for entry in entries]
    text = json.dumps(
        {"tensors": layout, "metadata": dict(metadata)}, separators=(",", ":"), allow_nan=False
    )
    header, raw = zlib.compress(text.encode(), 9), b"".join(stored)
    body = header + raw + encoder.get_compressed().astype("<u4").tobytes()
    content = MAGIC + _SIZES.pack(len(header), len(raw), zlib.crc32(body)) + body
    write_whole(Path(path), content)
    return len(content)


def load_packed(path: str | os.PathLike[str]) -> Checkpoint:
    """Read what `save_packed` wrote: the same masks, values and metadata.

    Values are float32; those of float16 files are as they were rounded.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is truncated, altered, foreign, or needs too much memory.
    """
    content = read_whole(path)
    try:
        return _unpack(content)
    except ValueError as error:
        raise ValueError(f"{path} {error}") from None


def is_packed(path: str | os.PathLike[str]) -> bool:
    """Whether a file begins as a packed file does."""
    if not Path(path).is_file():
        return False
    with Path(path).open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def _unpack(content: bytes) -> Checkpoint:
    start = len(MAGIC) + _SIZES.size
    if not content.startswith(MAGIC) or len(content) < start:
        raise ValueError("is not a packed file that this version reads")
    header_size, raw_size, check = _SIZES.unpack_from(content, len(MAGIC))
    body = memoryview(content)[start:]
    words_size = len(body) - header_size - raw_size
    if words_size < 0 or words_size % 4 or zlib.crc32(body) != check:
        raise ValueError("has been altered or truncated: its checksum is wrong")
    header = _read_header(body[:header_size])
    raw = body[header_size : header_size + raw_size]
    words = np.frombuffer(body[header_size + raw_size :], dtype="<u4").astype(np.uint32)
    decoder = constriction.stream.queue.RangeDecoder(words)
    state, masks, used = {}, {}, 0
    for entry in header.tensors:
        mask = np.ones(entry.shape, dtype=bool)
        if entry.mask is not None:
            mask = _read_mask(decoder, entry)
            masks[entry.name] = torch.from_numpy(mask)
        count = int(mask.sum())
        stored = entry.values if isinstance(entry.values, int) else count
        end = used + stored * entry.kind.itemsize
        if end > raw_size:
            raise ValueError(f"is damaged: values of {entry.name} are missing")
        if isinstance(entry.values, int):
            indices = _read_indices(decoder, count, entry.values)
        values = np.frombuffer(raw[used:end], entry.kind).astype(np.float32)
        full = np.zeros(entry.shape, dtype=np.float32)
        full[mask] = values[indices] if isinstance(entry.values, int) else values
        state[entry.name], used = torch.from_numpy(full), end
    if used != raw_size or not decoder.maybe_exhausted():
        raise ValueError("is damaged: it has more content than its header says")
    return Checkpoint(state, masks, header.metadata)


def _read_header(code: memoryview) -> _Header:
    unpack = zlib.decompressobj()
    try:
        text = unpack.decompress(code, MOST_HEADER)
        if not unpack.eof or unpack.unused_data:
            raise ValueError("has an invalid header")
        header = _Header.model_validate_json(text)
    except (zlib.error, ValidationError):
        raise ValueError("has an invalid header") from None
    if len({entry.name for entry in header.tensors}) < len(header.tensors):
        raise ValueError("has an invalid header: a tensor is in it twice")
    _check_size(header.tensors)
    return header


def _check_size(entries: list[_Entry]) -> None:
    if any(entry.mask is not None and not entry.shape for entry in entries):
        raise ValueError("has a mask of a single number")
    if (
        sum(max(entry.size, prod(max(1, side) for side in entry.shape)) for entry in entries)
        > MOST_ENTRIES
    ):
        raise ValueError(f"has more than {MOST_ENTRIES} weights")
    if sum(entry.columns for entry in entries) > MOST_COLUMNS:
        raise ValueError(f"has masks with more than {MOST_COLUMNS} columns")
    if any(entry.shape[0] > MOST_ROWS for entry in entries if entry.mask is not None):
        raise ValueError(f"has a mask with more than {MOST_ROWS} rows")


def _fits_half(values: NDArray[np.float32]) -> bool:
    """Whether float16 holds all values exactly."""
    if np.abs(values).max(initial=0) > _LARGEST_HALF:
        return False
    return bool((values.astype(np.float16).astype(np.float32) == values).all())


def _best_stride(mask: NDArray[np.bool_], image_width: int) -> int:
    """The stride with which the mask takes the fewest bits."""
    columns = mask.size // len(mask) if mask.size else 0
    kernel = mask.shape[-1] if mask.ndim > 2 else 0
    wide = image_width if image_width and columns % image_width == 0 else 0
    strides = sorted({0, kernel, wide})
    return min(strides, key=lambda stride: _bits(mask, stride)) if len(strides) > 1 else 0


def _bits(mask: NDArray[np.bool_], stride: int) -> float:
    total = 0.0
    for column, chances in _modelled(mask, stride):
        total -= np.log2(np.where(column, chances, 1 - chances)).sum()
    return total


def _modelled(
    mask: NDArray[np.bool_], stride: int
) -> Iterator[tuple[NDArray[np.bool_], NDArray[np.float64]]]:
    """Each column of a mask, and the probabilities that the model gave its weights before."""
    if mask.size:
        matrix = mask.reshape(len(mask), -1)
        model = _MaskModel(*matrix.shape, stride)
        for column in matrix.T:
            yield column, model.probabilities()
            model.update(column)


def _write_mask(encoder: Any, mask: NDArray[np.bool_], stride: int) -> None:
    for column, chances in _modelled(mask, stride):
        encoder.encode(column.astype(np.int32), _survives, chances)


def _read_mask(decoder: Any, entry: _Entry) -> NDArray[np.bool_]:
    if not entry.size:
        return np.zeros(entry.shape, dtype=bool)
    assert entry.mask is not None
    model = _MaskModel(entry.shape[0], entry.columns, entry.mask)
    for _ in range(entry.columns):
        model.update(_decoded(decoder, _survives, model.probabilities()).astype(bool))
    return np.ascontiguousarray(model.seen.T).reshape(entry.shape)


def _blocks(count: int, number: int) -> Iterator[tuple[slice, Any, NDArray[np.int64]]]:
    """Blocks of `count` indices below `number`: where, their model, and counts to be updated."""
    counts, start = np.ones(number, dtype=np.int64), 0
    while start < count:
        block = slice(start, min(count, start + min(_BLOCK, 16 + start)))
        chances = counts / counts.sum()
        yield block, constriction.stream.model.Categorical(chances, perfect=False), counts
        start = block.stop


def _write_indices(encoder: Any, indices: NDArray[np.int64], number: int) -> None:
    for block, model, counts in _blocks(len(indices), number) if number > 1 else ():
        encoder.encode(indices[block].astype(np.int32), model)
        counts += np.bincount(indices[block], minlength=number)


def _read_indices(decoder: Any, count: int, number: int) -> NDArray[np.int64]:
    if count and not number:
        raise ValueError("is damaged: a tensor has survivors but no values")
    indices = np.zeros(count, dtype=np.int64)
    for block, model, counts in _blocks(count, number) if number > 1 else ():
        indices[block] = _decoded(decoder, model, block.stop - block.start)
        counts += np.bincount(indices[block], minlength=number)
    return indices


def _decoded(decoder: Any, model: Any, what: Any) -> NDArray[np.int32]:
    try:
        symbols: NDArray[np.int32] = decoder.decode(model, what)
    except (AssertionError, ValueError) as error:
        raise ValueError(f"is damaged: {error}") from None
    return symbols
