"""Hostile files: damaged and forged ones in every reader, with little memory and little time."""

import json
import os
import resource
import shutil
import signal
import struct
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from math import inf, isfinite
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load

from pruning.checkpoint import Checkpoint
from pruning.packed import _SIZES, MAGIC
from tests.chaos.faults import WRITES
from tests.hostile import altered, mutate, too_long
from tests.portraits import portrait

MEMORY = 1 << 30  # bytes that a reader may take more than the process had
SECONDS = 20  # for one file
EACH = 200  # files between two reports
IMAGES = struct.pack(">4I", 0x803, 3, 28, 28) + bytes(range(256)) * 9 + bytes(48)  # as MNIST's
LABELS = struct.pack(">2I", 0x801, 3) + bytes((0, 4, 9))
READ_ERRORS = (ValueError, OSError)
STARTS = (
    *("os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "subprocess.Popen"),
    *("pickle.find_class", "ctypes.dlopen", "socket.connect"),
)


@dataclass(frozen=True)
class Reader:
    """A function that reads files, and files that it can read.

    `read` may raise `errors` in one line; it asserts that what it has read is sound.
    """

    name: str
    read: Callable[[Path], None]
    intact: list[bytes]
    change: Callable[[bytes, Random], bytes]
    errors: tuple[type[Exception], ...] = READ_ERRORS


def _mutated(content: bytes, dice: Random) -> bytes:
    changed = bytearray(content)
    for _ in range(dice.choice((1, 1, 1, 2, 5))):
        changed = mutate(changed, dice) or bytearray(b"\0")
    return bytes(changed)


def _forged(content: bytes, dice: Random) -> bytes:
    """A checkpoint that is damaged, half of the time with a matching digest."""
    if dice.random() < 0.5:
        return _mutated(content, dice)
    size = int.from_bytes(content[:8], "little")
    text = json.loads(content[8 : 8 + size])["__metadata__"]["weight_loss"]
    return altered(load(content), text, dice, in_header=dice.random() < 0.5)


def _packed_forged(content: bytes, dice: Random) -> bytes:
    """A packed file that is damaged, half of the time with a matching checksum."""
    changed = _mutated(content, dice)
    start = len(MAGIC) + _SIZES.size
    if dice.random() < 0.5 or len(changed) < start:
        return changed
    sizes = _SIZES.unpack_from(changed, len(MAGIC))[:2]
    return MAGIC + _SIZES.pack(*sizes, zlib.crc32(changed[start:])) + changed[start:]


def _without_checksums(content: bytes) -> bytes:
    """A manifest or a cache as older versions wrote it, of which every change is believed."""
    lines = content.splitlines()
    if b"\t" in content:
        return b"\n".join(line.rpartition(b"\t")[0] or line for line in lines)
    return b"\n".join(line.rpartition(b",")[0] for line in lines)


def _checkpoint(path: Path) -> None:
    from pruning.checkpoint import load_checkpoint

    _open(load_checkpoint(path), path)


def _packed(path: Path) -> None:
    from pruning.packed import load_packed

    _open(load_packed(path), path)


def _open(found: Checkpoint, path: Path) -> None:
    from experiments.rounds.network import open_network

    for name, mask in found.masks.items():
        assert mask.shape == found.state[name].shape
        assert not found.state[name][~mask].any()
    open_network(found, str(path))


def _manifest(path: Path) -> None:
    from datasets.photographs.manifest import OUTCOMES, read_manifest

    table = read_manifest(path)
    assert {*table["outcome"]} <= {*OUTCOMES}
    for crop in table["crop"]:
        inside = os.path.normpath(Path("/out", crop)).startswith("/out/crops/")
        assert not crop or inside, f"the crop {crop} is outside"
    assert not [label for label in table["label"] if "/" in label or label[:1] == "."]


def _detections(path: Path) -> None:
    from datasets.photographs.detection import read_detections

    for source, found in read_detections(path).items():
        assert source == found.source
        assert found.width >= 0
        assert found.height >= 0


def _options(path: Path) -> None:
    from datasets.photographs.loading import read_options
    from datasets.photographs.options import FaceOptions

    shutil.copyfile(path, path.with_name("options.json"))
    found = read_options(path.parent)
    assert FaceOptions.model_validate(found.model_dump()) == found


def _mnist(path: Path) -> None:
    from datasets import mnist

    folder, hostile = path.parent / "MNIST/raw", path.read_bytes()
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("train", "t10k"):
        images, labels = (hostile, LABELS) if len(hostile) > 2 * len(LABELS) else (IMAGES, hostile)
        (folder / f"{name}-images-idx3-ubyte").write_bytes(images)
        (folder / f"{name}-labels-idx1-ubyte").write_bytes(labels)
    processed = path.parent / "MNIST/processed"
    processed.mkdir(exist_ok=True)
    for name in ("training.pt", "test.pt"):
        (processed / name).write_bytes(hostile)
    found = mnist(path.parent)
    for images, labels in (found.train, found.test):
        assert images.shape == (len(labels), 28, 28)
        assert images.dtype == torch.uint8
        assert 0 <= int(labels.min()) <= int(labels.max()) <= 9


def _picture(path: Path) -> None:
    from datasets.photographs.pictures import LARGE, MAX_PIXELS, read_picture
    from datasets.photographs.pictures import ignore_decoder_warnings as quiet

    with quiet():
        found = read_picture(path)
    assert (found.grey.mode, found.resized.mode) == ("L", "RGB")
    assert found.grey.width * found.grey.height <= LARGE + found.grey.width + found.grey.height
    assert found.resized.width * found.resized.height <= 1.1 * MAX_PIXELS


def _space(path: Path) -> None:
    from experiments.config.space import Range, parse_space

    for rule in parse_space(str(path)).values():
        if isinstance(rule, Range):
            assert isfinite(rule.low)
            assert rule.low < rule.high < inf
        else:
            assert rule.values


def _published(path: Path) -> None:
    from models.published import load_published

    initial = {"fc.weight": torch.zeros(3, 4), "fc.bias": torch.zeros(3)}
    found = load_published(path, initial, "fc.weight")
    for name, value in initial.items():
        assert found[name].shape == value.shape
        assert found[name].dtype == value.dtype


def readers(made: Path) -> list[Reader]:
    """All readers of files that somebody else may have made.

    Args:
        made: The folder of the undisturbed jobs, whose files are the intact ones.
    """
    published = BytesIO()
    torch.save({"fc.weight": torch.ones(3, 4), "fc.bias": torch.ones(3)}, published)
    pictures = []
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM"):
        pictures.append(BytesIO())
        portrait(96).save(pictures[-1], kind)
    pictures.append(BytesIO())
    Image.fromarray(np.full((40, 40), 999, dtype=np.uint16)).save(pictures[-1], "PNG")
    space = b"prune_rate: {low: 0.1, high: 0.6, log: true}\nretrain_epochs: [1, 2, 4]\n"

    def found(pattern: str) -> list[bytes]:
        contents = [path.read_bytes() for path in sorted(made.glob(pattern))]
        assert contents, f"no {pattern} in {made}"
        return contents

    def both(pattern: str) -> list[bytes]:
        contents = found(pattern)
        return contents + [_without_checksums(content) for content in contents]

    return [
        Reader("checkpoint", _checkpoint, found("run/**/round_*.safetensors"), _forged),
        Reader("packed", _packed, found("export/made/*.wlp"), _packed_forged),
        Reader("compact", _checkpoint, found("export/made/compact.safetensors"), _forged),
        Reader("manifest", _manifest, both("prepare_faces/out/manifest.csv"), _mutated),
        Reader("detections", _detections, both("prepare_faces/out/found.jsonl"), _mutated),
        Reader("options", _options, found("prepare_faces/out/options.json"), _mutated),
        Reader("MNIST", _mnist, [IMAGES, LABELS], _mutated),
        Reader("picture", _picture, [file.getvalue() for file in pictures], _mutated),
        Reader("search file", _space, [space], _mutated),
        Reader("published network", _published, [published.getvalue()], _mutated),
    ]


def _watch(place: str) -> list[str]:
    """What this process does from now on that no file may cause."""
    caused: list[str] = []

    def hook(name: str, args: tuple[Any, ...]) -> None:
        writes = name == "open" and isinstance(args[0], str) and args[2] & WRITES
        if name in STARTS or (writes and not args[0].startswith(f"{place}/")):
            caused.append(f"{name} {args}")

    sys.addaudithook(hook)
    return caused


def read_hostile(made: Path, seed: int) -> Iterator[tuple[int, str]]:
    """Read damaged files one by one, in this process; yields how many, and a problem or "".

    No file may start a process, reach Python's unpickler or the network, or cause a write to
    another folder.
    """
    dice, known, total = Random(seed), readers(made), 0
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, resource.RLIM_INFINITY))
    signal.signal(signal.SIGALRM, too_long)
    with tempfile.TemporaryDirectory() as place:
        path = Path(place, "file.yaml")
        for reader in known:  # imports what is imported late
            path.write_bytes(reader.intact[0])
            reader.read(path)
        caused = _watch(place)
        while True:
            reader, problem = dice.choice(known), ""
            for number in range(EACH):
                path.write_bytes(reader.change(dice.choice(reader.intact), dice))
                caused.clear()
                total += 1
                signal.alarm(SECONDS)
                try:
                    reader.read(path)
                except reader.errors as error:
                    if "\n" in str(error).strip() and not isinstance(error, OSError):
                        problem = f"an error of several lines: {error}"
                except MemoryError:
                    problem = "more memory than it may take"
                except BaseException as error:  # a problem whatever it is, also TooLongError
                    problem = f"{type(error).__name__}: {error}"
                finally:
                    signal.alarm(0)
                if caused:
                    problem = f"it causes what no file may: {caused[0]}"
                if problem:
                    kept = Path(os.environ.get("TMPDIR", "/tmp"), f"hostile-{seed}-{total}")
                    kept.write_bytes(path.read_bytes())
                    yield number + 1, f"{reader.name}: {problem[:500]} (the file is {kept})"
                    break
            else:
                yield EACH, ""
