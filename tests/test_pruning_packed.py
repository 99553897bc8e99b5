"""Packed files: exact, small, and safe to open whatever they hold."""

import json
import os
import random
import struct
import zlib
from math import log2

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pruning.masks import apply_masks
from pruning.packed import MAGIC, is_packed, load_packed, save_packed
from tests.hostile import memory_limit, mutate

SIZES = struct.Struct("<3I")


def masked(shapes, density, seed=0):
    generator = torch.Generator().manual_seed(seed)
    state = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    masks = {
        name: torch.rand(value.shape, generator=generator) < density
        for name, value in state.items()
        if name.endswith("weight")
    }
    return apply_masks(state, masks), masks


LENET = {
    "fc1.weight": (300, 784),
    "fc1.bias": (300,),
    "fc2.weight": (100, 300),
    "fc2.bias": (100,),
    "fc3.weight": (10, 100),
    "fc3.bias": (10,),
}
SMALL = {"a.weight": (6, 20), "a.bias": (6,), "b.weight": (3, 6, 2, 3)}


def same(tensors, others):
    return tensors.keys() == others.keys() and all(
        value.dtype == others[name].dtype and value.equal(others[name])
        for name, value in tensors.items()
    )


@given(
    st.integers(0, 12),
    st.lists(st.integers(0, 5), min_size=1, max_size=4),
    st.integers(0, 100),
    st.integers(0, 2**31),
    st.integers(0, 6),
)
def test_what_is_read_is_what_was_written(tmp_path_factory, rows, rest, density, seed, width):
    path = tmp_path_factory.mktemp("packed") / "x.wlp"
    state, masks = masked(
        {"weight": (rows, *rest), "bias": (rows,), "one": ()}, density / 100, seed
    )
    size = save_packed(path, state, masks, {"rows": rows}, image_width=width)
    read = load_packed(path)
    assert size == path.stat().st_size
    assert same(state, read.state)
    assert same(masks, read.masks)
    assert read.metadata == {"rows": rows}


@pytest.mark.parametrize("density", [1.0, 0.211, 0.036, 0.012, 0.0])
def test_a_lenet_takes_little_more_than_the_entropy_of_its_masks(density, tmp_path):
    state, masks = masked(LENET, density)
    size = save_packed(tmp_path / "x.wlp", state, masks, {}, image_width=28)
    read = load_packed(tmp_path / "x.wlp")
    assert same(state, read.state)
    assert same(masks, read.masks)
    survivors = sum(int(mask.sum()) for mask in masks.values())
    assert size <= 1.01 * (entropy(masks) + 4 * survivors + 4 * 410) + 220
    assert size >= 4 * survivors


def entropy(masks):
    """In bytes; every weight of a layer alike."""
    bits = 0.0
    for mask in masks.values():
        share = float(mask.double().mean())
        if 0 < share < 1:
            bits -= mask.numel() * (share * log2(share) + (1 - share) * log2(1 - share))
    return bits / 8


def test_survivors_that_lie_together_take_fewer_bytes(tmp_path):
    """As pixels in the middle of images do."""
    state, masks = masked({"fc1.weight": (300, 784)}, 1.0)
    middle = torch.zeros(28, 28, dtype=torch.bool)
    middle[8:20, 10:18] = True
    masks["fc1.weight"] = (torch.rand(300, 784) < 0.3) & middle.flatten()
    state = apply_masks(state, masks)
    inside = 300 * 96 * entropy({"": torch.arange(10) < 3}) / 10  # that is what is random
    size = save_packed(tmp_path / "x.wlp", state, masks, {}, image_width=28)
    code = size - 4 * int(masks["fc1.weight"].sum())
    assert inside < code < 0.6 * entropy(masks)


def test_whole_units_take_nearly_nothing(tmp_path):
    state, masks = masked(LENET, 1.0)
    masks["fc1.weight"] = masks["fc1.weight"] & (torch.arange(300) % 3 == 0)[:, None]
    state = apply_masks(state, masks)
    size = save_packed(tmp_path / "x.wlp", state, masks, {}, image_width=28)
    survivors = sum(int(mask.sum()) for mask in masks.values())
    assert size - 4 * (survivors + 410) < 1000 < 0.05 * entropy(masks)


def test_float16_rounds(tmp_path):
    state, masks = masked(SMALL, 0.5)
    size = save_packed(tmp_path / "x.wlp", state, masks, {}, values="float16")
    read = load_packed(tmp_path / "x.wlp")
    assert same(masks, read.masks)
    assert same({name: value.half().float() for name, value in state.items()}, read.state)
    assert size < save_packed(tmp_path / "y.wlp", state, masks, {})
    state["a.bias"][0] = 70000
    with pytest.raises(ValueError, match=r"^a\.bias has values too large for float16"):
        save_packed(tmp_path / "x.wlp", state, masks, {}, values="float16")


@pytest.mark.parametrize("number", [1, 2, 16, 700])
def test_shared_values_take_the_entropy_of_their_indices(number, tmp_path):
    state, masks = masked({"fc1.weight": (100, 400), "bias": (7,)}, 0.5)
    values = torch.randn(number)
    shares = torch.rand(number) + 0.01
    drawn = torch.multinomial(shares, 40_000, replacement=True).view(100, 400)
    state["fc1.weight"] = torch.where(masks["fc1.weight"], values[drawn], 0.0)
    size = save_packed(tmp_path / "x.wlp", state, masks, {}, values="shared")
    read = load_packed(tmp_path / "x.wlp")
    assert same(state, read.state)
    assert same(masks, read.masks)
    _, counts = state["fc1.weight"][masks["fc1.weight"]].unique(return_counts=True)
    parts = counts / counts.sum()
    bits = -(parts * parts.log2()).sum() * counts.sum()
    learned = 2 * number  # bytes that it takes to learn how frequent each value is
    assert size < 1.02 * (entropy(masks) + float(bits) / 8) + 4 * number + learned + 250
    state["fc1.weight"] = state["fc1.weight"].half().float()
    half = save_packed(tmp_path / "x.wlp", state, masks, {}, values="shared")
    assert same(state, load_packed(tmp_path / "x.wlp").state)
    assert half < size - 1.5 * number + 20


@pytest.mark.parametrize(
    ("change", "values", "message"),
    [
        ({"a.weight": torch.ones(6, 20)}, "float32", "^pruned weights of a.weight must be zero"),
        ({"a.bias": torch.zeros(6).double()}, "float32", "^a.bias must be float32 to be packed"),
        ({"a.bias": torch.tensor([torch.nan])}, "shared", "^a.bias has 1 different values"),
        ({"a.bias": torch.arange(5000.0)}, "shared", "^a.bias has 5000 different values"),
        ({}, "float8", "^values must be float32, float16 or shared, got float8"),
        ({"big": torch.zeros(()).expand(9000, 9000)}, "float32", "more than 67108864 weights"),
    ],
)
def test_what_cannot_be_packed_is_an_error(change, values, message, tmp_path):
    state, masks = masked(SMALL, 0.5)
    with pytest.raises(ValueError, match=message):
        save_packed(tmp_path / "x.wlp", state | change, masks, {}, values=values)
    with pytest.raises(ValueError, match="JSON"):
        save_packed(tmp_path / "x.wlp", state, masks, {"x": float("nan")})
    assert not list(tmp_path.iterdir())


def test_nan_and_infinity_are_kept(tmp_path):
    state = {"bias": torch.tensor([torch.nan, torch.inf, -torch.inf, -0.0])}
    save_packed(tmp_path / "x.wlp", state, {}, {})
    read = load_packed(tmp_path / "x.wlp").state["bias"]
    assert read.view(torch.int32).equal(state["bias"].view(torch.int32))


def rebuilt(header, raw=b"", words=b"", level=9):
    """A file whose checksum is right."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    code = zlib.compress(text, level)
    body = code + raw + words
    return MAGIC + SIZES.pack(len(code), len(raw), zlib.crc32(body)) + body


def tensors(**entry):
    whole = {"name": "w", "shape": [2, 2], "values": "float32", "mask": 0} | entry
    return {"tensors": [whole], "metadata": {}}


ZERO = struct.pack("<4f", 0, 0, 0, 0)
HOSTILE = {
    "a huge tensor": rebuilt(tensors(shape=[10**9])),
    "a huge product": rebuilt(tensors(shape=[10**9] * 8)),
    "a number of a million digits": rebuilt(b'{"tensors":[{"shape":[' + b"9" * 10**6 + b"]}]}"),
    "a shape of many zeros": rebuilt(tensors(shape=[0, 10**18])),
    "a mask with many columns": rebuilt(tensors(shape=[1, 10**7])),
    "a mask with many rows": rebuilt(tensors(shape=[6291456, 1])),
    "metadata of many objects": rebuilt(
        b'{"tensors":[],"metadata":{"a":[' + b"{}," * 10**6 + b"{}]}}"
    ),
    "a negative shape": rebuilt(tensors(shape=[-2, 2])),
    "a shape of many dimensions": rebuilt(tensors(shape=[1] * 9)),
    "a mask without dimensions": rebuilt(tensors(shape=[])),
    "survivors without values": rebuilt(tensors(values=0, mask=None)),
    "missing values": rebuilt(tensors(mask=None)),
    "too many values": rebuilt(tensors(mask=None), ZERO + b"1234"),
    "too many words": rebuilt(tensors(mask=None), ZERO, ZERO),
    "unknown values": rebuilt(tensors(values="pickle")),
    "a tensor twice": rebuilt({"tensors": tensors()["tensors"] * 2, "metadata": {}}),
    "no tensors": rebuilt({"metadata": {}}),
    "no metadata": rebuilt({"tensors": []}),
    "deep JSON": rebuilt(
        b'{"tensors":[],"metadata":' + b'{"a":' * 10**5 + b"1" + b"}" * 10**5 + b"}"
    ),
    "a header that is a bomb": rebuilt(b" " * (1 << 27)),
    "a header that is not JSON": rebuilt(b"\x80\x04."),
    "a header that is not compressed": MAGIC + SIZES.pack(2, 0, zlib.crc32(b"{}")) + b"{}",
    "sizes beyond the file": MAGIC + SIZES.pack(2**32 - 1, 2**32 - 1, zlib.crc32(b"")),
    "nothing": b"",
    "the first half of the magic": MAGIC[:4],
    "the magic alone": MAGIC,
    "a later version": b"WLPACK2\n" + bytes(12),
    "a pickle": b"\x80\x04\x95\x1f\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix",
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_file_is_an_error_that_takes_little_memory(what, tmp_path):
    path = tmp_path / "x.wlp"
    path.write_bytes(HOSTILE[what])
    with memory_limit(), pytest.raises(ValueError, match=r"x\.wlp (is|has) "):
        load_packed(path)


@pytest.mark.parametrize("values", ["float32", "float16", "shared"])
@pytest.mark.parametrize("checksum", ["wrong", "right"])
def test_a_thousand_mutations_are_read_or_are_an_error(values, checksum, tmp_path):
    """With a wrong checksum none is read; with a right one what is read has the shapes it says."""
    state, masks = masked(SMALL, 0.4)
    state = {name: (value * 4).round() / 4 for name, value in state.items()}
    path = tmp_path / "x.wlp"
    save_packed(path, state, masks, {"a": [1, {"b": "c"}]}, values=values)
    intact = path.read_bytes()
    dice = random.Random(values + checksum)
    read = 0
    for _ in range(1000):
        content = mutate(bytearray(intact), dice)
        if checksum == "right":
            content[16:20] = zlib.crc32(content[20:]).to_bytes(4, "little")
        if content == intact:
            continue
        path.write_bytes(content)
        try:
            with memory_limit():
                found = load_packed(path)
        except ValueError as error:
            assert str(error).startswith(f"{path} ")  # noqa: PT017
        else:
            assert checksum == "right"
            read += 1
            for name, mask in found.masks.items():
                assert mask.shape == found.state[name].shape
                assert not found.state[name][~mask].any()
    assert (read > 0) == (checksum == "right")


def test_a_mutated_header_is_read_or_is_an_error(tmp_path):
    """The JSON itself is changed and compressed again."""
    state, masks = masked(SMALL, 0.4)
    path = tmp_path / "x.wlp"
    save_packed(path, state, masks, {"a": 1})
    content = path.read_bytes()
    header, raw, _ = SIZES.unpack_from(content, len(MAGIC))
    start = len(MAGIC) + SIZES.size
    text = zlib.decompress(content[start : start + header])
    rest = content[start + header :]
    dice, errors = random.Random(1), 0
    for _ in range(1000):
        path.write_bytes(rebuilt(bytes(mutate(bytearray(text), dice)), rest[:raw], rest[raw:]))
        try:
            with memory_limit():
                load_packed(path)
        except ValueError:
            errors += 1
    assert errors > 500


@pytest.mark.parametrize("what", ["folder", "fifo", "/dev/zero"])
def test_what_is_not_a_file_is_an_error(what, tmp_path):
    path = tmp_path / "x"
    if what == "folder":
        path.mkdir()
    elif what == "fifo":
        os.mkfifo(path)
    else:
        path.symlink_to(what)
    with pytest.raises(ValueError, match="x is not a regular file"):
        load_packed(path)
    assert not is_packed(path)
    with pytest.raises(FileNotFoundError):
        load_packed(tmp_path / "missing")


def test_the_bytes_of_a_file_are_those_of_the_first_version(tmp_path):
    """A later version must still read them: the model of the masks is part of the format."""
    rows, columns = 5, 12
    mask = (torch.arange(rows * columns).view(rows, columns) * 7 % 11) < 3
    state = {"w": torch.where(mask, torch.arange(60.0).view(rows, columns) % 4 - 1.5, 0.0)}
    save_packed(tmp_path / "x.wlp", state, {"w": mask}, {"v": 1}, values="shared", image_width=4)
    header, _, _ = SIZES.unpack_from(bytes.fromhex(GOLDEN), len(MAGIC))
    coded = bytes.fromhex(GOLDEN)[len(MAGIC) + SIZES.size + header :]
    assert (tmp_path / "x.wlp").read_bytes().endswith(coded)  # zlib's versions differ in the header
    (tmp_path / "y.wlp").write_bytes(bytes.fromhex(GOLDEN))
    read = load_packed(tmp_path / "y.wlp")
    assert same(state, read.state)
    assert np.array_equal(mask, read.masks["w"])


GOLDEN = (
    "574c5041434b310a5900000008000000d9cc090e78da0dca310e80200c46e1bbfc73178d2ebd0a71"
    "68620d898086020e84bbcbf6f2f275144df66403bb8e2451c1f840302fef6cb7d3b21e8426a1ea44"
    "1bc14bb8c025572544b17bce3145d422a714017734f032c60f56e01d4b00be00b80038003e9d33d8"
    "ef23c5deabe4b2c6e3"
)
