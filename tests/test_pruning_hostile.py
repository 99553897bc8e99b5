"""Altered checkpoints with a matching digest: each is an error in one line, or sound."""

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load, save

from pruning import checkpoint
from pruning.checkpoint import FORMAT, load_checkpoint, save_checkpoint
from pruning.masks import apply_masks
from tests.conftest import ROOT
from tests.hostile import altered, forged, memory_limit

GOLDEN = Path(__file__).parent / "golden"
HUGE = 10**9


def header(shape=(4, 4), encoding="bits", **others):
    return {
        "format": FORMAT,
        "masks": {"w": {"shape": shape, "encoding": encoding}},
        "metadata": {},
    } | others


def holding(text):
    """A header with some JSON in its metadata."""
    return json.dumps(header(metadata=0) | {"digest": ""}).replace("0", text)


def codes(*numbers):
    return np.array(numbers, dtype=np.uint8)


def raw(header):
    """A safetensors file without data."""
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text


def empty(shape):
    return {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}


VALUES = np.ones(16, dtype=np.float32)
BITS = codes(255, 255)
WHOLE = {"w": VALUES, "w.mask": BITS}
MASK = {"shape": [4, 4], "encoding": "bits"}
DEEP = "[" * 100_000 + "]" * 100_000
HOSTILE = {
    "a huge shape without survivors": forged(
        {"w": VALUES[:0], "w.mask": codes()}, header([HUGE], "gaps")
    ),
    "a huge shape of bits": forged(WHOLE, header([HUGE])),
    "an empty shape with huge sides": forged(
        {"w": VALUES[:0], "w.mask": codes()}, header([0, HUGE, HUGE, HUGE])
    ),
    "a shape beyond all numbers": forged(WHOLE, header([10**30])),
    "a shape of many sides": forged(WHOLE, header([1] * 99)),
    "a shape without sides": forged({"w": VALUES[:1], "w.mask": codes(128)}, header([])),
    "a negative side": forged(WHOLE, header([-4, -4])),
    "a side that is no number": forged(WHOLE, header(["4", 4])),
    "a side that is a fraction": forged(WHOLE, header([4.0, 4])),
    "a shape that is no list": forged(WHOLE, header(16)),
    "one value for all survivors": forged({"w": VALUES[:1], "w.mask": BITS}, header()),
    "too few values": forged({"w": VALUES[:15], "w.mask": BITS}, header()),
    "values in two dimensions": forged({"w": VALUES.reshape(4, 4), "w.mask": BITS}, header()),
    "a value without dimensions": forged({"w": VALUES[0], "w.mask": codes(128, 0)}, header()),
    "a mask without values": forged({"w.mask": BITS}, header()),
    "values without a mask": forged({"w": VALUES}, header()),
    "a mask of a mask": forged(
        WHOLE | {"w.mask.mask": BITS}, header(masks={"w.mask": MASK, "w": MASK})
    ),
    "no bits": forged({"w": VALUES, "w.mask": codes()}, header()),
    "too many bits": forged({"w": VALUES, "w.mask": codes(255, 255, 255)}, header()),
    "bits as numbers": forged({"w": VALUES, "w.mask": VALUES[:2]}, header()),
    "bits in two dimensions": forged({"w": VALUES, "w.mask": BITS[None]}, header()),
    "a gap beyond the end": forged({"w": VALUES[:1], "w.mask": codes(16)}, header([4, 4], "gaps")),
    "gaps far beyond the end": forged(
        {"w": VALUES[:1], "w.mask": np.append(np.full(99_999, 255, np.uint8), codes(0))},
        header([4, 4], "gaps"),
    ),
    "a gap without an end": forged({"w": VALUES[:0], "w.mask": codes(255)}, header([999], "gaps")),
    "bits of an unknown encoding": forged(WHOLE, header(encoding="pickle")),
    "gaps of an unknown encoding": forged(
        {"w": VALUES, "w.mask": codes(*[0] * 16)}, header(encoding="pickle")
    ),
    "no masks": forged(WHOLE, {"format": FORMAT, "metadata": {}}),
    "no metadata": forged(WHOLE, {"format": FORMAT, "masks": {}}),
    "metadata that are a list": forged(WHOLE, header(metadata=[])),
    "no format": forged(WHOLE, {"masks": {}, "metadata": {}}),
    "a format that is a list": forged(WHOLE, header(format=["x"] * 99)),
    "a header that is a list": save({"w": torch.ones(1)}, {"weight_loss": "[]"}),
    "a header that is no JSON": save({"w": torch.ones(1)}, {"weight_loss": "{"}),
    "deep JSON": save({"w": torch.ones(1)}, {"weight_loss": DEEP}),
    "deep metadata": save({"w": torch.ones(1)}, {"weight_loss": holding(DEEP)}),
    "a number of 5,000 digits": save({"w": torch.ones(1)}, {"weight_loss": holding("9" * 5000)}),
    "a huge header": (1 << 60).to_bytes(8, "little") + b"{}",
    "no metadata at all": raw({"__metadata__": None}),
    "a size beyond 64 bits": raw({"w": empty([0, 1 << 62, 1 << 62])}),
    "a side beyond 63 bits": raw({"w": empty([0, 1 << 63])}),
    "nothing": b"",
    "a pickle": b"\x80\x04\x95\x1f\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix",
}


TOO_LARGE = "has masks of more than 67,108,864 weights"
INVALID = "has been altered: its header is invalid"
NOT_EACH = "is damaged: w does not have one value for each weight in its mask"
MISFIT = "is damaged: the mask of w does not fit its shape "
FOREIGN = "is truncated or not a safetensors file ("
MESSAGES = {
    "a huge shape without survivors": TOO_LARGE,
    "a huge shape of bits": TOO_LARGE,
    "an empty shape with huge sides": TOO_LARGE,
    "a shape beyond all numbers": TOO_LARGE,
    "one value for all survivors": NOT_EACH,
    "too few values": NOT_EACH,
    "values in two dimensions": NOT_EACH,
    "a value without dimensions": NOT_EACH,
    "a mask without values": "is damaged: the values of w are missing",
    "values without a mask": MISFIT,
    "a mask of a mask": "is damaged: the values of w.mask are missing",
    "no bits": MISFIT,
    "too many bits": MISFIT,
    "bits as numbers": MISFIT,
    "bits in two dimensions": MISFIT,
    "a gap beyond the end": MISFIT,
    "gaps far beyond the end": MISFIT,
    "a gap without an end": MISFIT,
    "a huge header": FOREIGN,
    "no metadata at all": "is a safetensors file, but not a Weight Loss checkpoint",
    "a size beyond 64 bits": FOREIGN,
    "a side beyond 63 bits": FOREIGN,
    "nothing": FOREIGN,
    "a pickle": FOREIGN,
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_file_is_an_error_of_one_line(what, tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(HOSTILE[what])
    with memory_limit(), pytest.raises(ValueError, match=r"^[^\n]*$") as error:
        load_checkpoint(path)
    assert str(error.value).startswith(f"{path} {MESSAGES.get(what, INVALID)}")


# Reads files with 256 MB of memory, PyTorch's included.
READ_ALL = """
import resource, sys
from pathlib import Path
from pruning.checkpoint import load_checkpoint

size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + (256 << 20), resource.RLIM_INFINITY))
for path in sys.argv[1:]:
    try:
        load_checkpoint(path)
    except ValueError:
        print(path)
"""


def test_hostile_files_take_little_memory(tmp_path):
    paths = [tmp_path / str(number) for number in range(len(HOSTILE))]
    for path, content in zip(paths, HOSTILE.values(), strict=True):
        path.write_bytes(content)
    words = [sys.executable, "-c", READ_ALL, *map(str, paths)]
    done = subprocess.run(
        words, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.stdout.split() == [*map(str, paths)], done.stderr


def test_the_forged_file_is_read_if_nothing_is_wrong_with_it(tmp_path):
    """So the errors above are about what they say, not about the digest."""
    path = tmp_path / "x"
    path.write_bytes(forged(WHOLE, header()))
    found = load_checkpoint(path)
    assert found.state["w"].tolist() == np.ones((4, 4)).tolist()
    assert found.masks["w"].all()


@pytest.mark.parametrize("density", [0.05, 0.4])
def test_mutations_with_a_digest_that_fits_are_sound_or_an_error(tmp_path, density):
    generator = torch.Generator().manual_seed(0)
    masks = {"w": torch.rand(30, 20, generator=generator) < density}
    state = apply_masks({"w": torch.randn(30, 20, generator=generator), "b": torch.ones(3)}, masks)
    path = tmp_path / "x.safetensors"
    save_checkpoint(path, state, masks, {"a": [1, {"b": "c"}]})
    intact, dice, read = path.read_bytes(), random.Random(density), 0
    size = int.from_bytes(intact[:8], "little")
    text = json.loads(intact[8 : 8 + size])["__metadata__"]["weight_loss"]
    for number in range(2000):
        path.write_bytes(altered(load(intact), text, dice, in_header=number % 2 == 0))
        try:
            with memory_limit():
                found = load_checkpoint(path)
        except ValueError as error:
            assert str(error).startswith(f"{path} ")  # noqa: PT017
            assert "\n" not in str(error)  # noqa: PT017
            continue
        read += 1
        for name, mask in found.masks.items():
            assert mask.shape == found.state[name].shape
            assert not found.state[name][~mask].any()
    assert 100 < read < 1900


def test_what_was_read_stays_when_the_file_changes(tmp_path):
    path = tmp_path / "x"
    state = {"w": torch.ones(4), "b": torch.arange(10_000.0)}
    save_checkpoint(path, state, {"w": torch.ones(4, dtype=torch.bool)}, {})
    found = load_checkpoint(path)
    other = tmp_path / "other"
    state["b"] = torch.zeros(10_000)
    save_checkpoint(other, state, {"w": torch.ones(4, dtype=torch.bool)}, {})
    shutil.copyfile(other, path)  # writes into the same file, as `cp` does
    assert found.state["b"].equal(torch.arange(10_000.0))
    os.truncate(path, 0)
    assert found.state["b"].sum() == 49_995_000


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
        load_checkpoint(path)


def test_a_file_that_is_too_large_is_not_read(tmp_path):
    path = tmp_path / "x"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with memory_limit(), pytest.raises(ValueError, match=r"x has more than [0-9,]* bytes"):
        load_checkpoint(path)


def test_a_large_file_may_have_many_weights_and_a_small_one_may_not(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "MOST_WEIGHTS", 10_000)
    path = tmp_path / "x"
    for size, fits in ((9_000, True), (11_000, True), (10_000_000, False)):
        path.write_bytes(forged({"w": VALUES[:0], "w.mask": codes()}, header([size], "gaps")))
        if fits:
            assert load_checkpoint(path).masks["w"].numel() == size
        else:
            with pytest.raises(ValueError, match=r"has masks of more than [0-9,]* weights"):
                load_checkpoint(path)


@pytest.mark.skipif(sys.byteorder == "big", reason="the golden files are little-endian")
@pytest.mark.parametrize("encoding", ["bits", "gaps"])
def test_files_of_every_released_format_are_read(encoding):
    """Written by the version that introduced the format; see golden/README.md."""
    found = load_checkpoint(GOLDEN / f"{encoding}.safetensors")
    number = torch.arange(12 * 20)
    mask = (number % (3 if encoding == "bits" else 97) == 0).reshape(12, 20)
    assert found.masks["fc.weight"].equal(mask)
    assert found.state["fc.weight"].equal((number / 8 + 1).reshape(12, 20) * mask)
    assert found.state["fc.bias"].tolist() == [0.5, -1.0, 0.0]
    assert found.state["steps"].tolist() == 7
    assert found.metadata == {"round": 3, "metrics": {"loss": 0.1 + 0.2}}
