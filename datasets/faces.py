"""Faces: a data set of one's own, as prepare_faces writes it, or photographs still to be prepared.

Photographs are prepared with the defaults, into a cache, and again when some were added.
"""

import hashlib
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from filelock import FileLock
from torch import Tensor

from datasets.alignment import SIDE, read_crop
from datasets.assignment import PARTS
from datasets.face_options import FaceOptions
from datasets.manifest import KEPT, MANIFEST, read_manifest
from datasets.prepare import OPTIONS, prepare
from datasets.splits import DataUnavailableError, Images

CROP = 128  # side of the square that a network sees (arXiv:1511.02683)
MAPPED_BYTES = 2 << 30  # more than this is not read into memory


def faces(root: Path) -> Images:
    """The kept crops of a prepared folder, or of a folder of class folders of photographs.

    They are numbered by the sorted names of their classes, and stand in the order of their paths.

    Raises:
        DataUnavailableError: If there are none, no two classes of them, or an empty part; or if the
            folder is damaged.
    """
    if (root / OPTIONS).exists() and not (root / MANIFEST).exists():
        raise DataUnavailableError(f"{root} is not prepared to the end: run prepare_faces again")
    folder = root if (root / MANIFEST).exists() else _prepared(root)
    table = read_manifest(folder / MANIFEST)
    kept = table[table["outcome"] == KEPT].sort_values("crop")
    classes = tuple(sorted(set(kept["label"])))
    parts = [kept[kept["split"] == part] for part in PARTS]
    _check(folder, kept, classes, parts)
    rows = pd.concat(parts)
    images, mapped = _read_crops(folder, rows["crop"].tolist())
    numbers = {label: number for number, label in enumerate(classes)}
    labels = torch.tensor([numbers[label] for label in rows["label"]])
    sizes = [len(part) for part in parts]
    train, valid, test = torch.split(images, sizes)
    train_labels, valid_labels, test_labels = torch.split(labels, sizes)
    return Images(
        source=str(folder),
        white=255,
        images=train,
        labels=train_labels,
        test_images=test,
        test_labels=test_labels,
        valid_images=valid,
        valid_labels=valid_labels,
        crop=CROP,
        classes=classes,
        mapped=mapped,
    )


def _check(
    folder: Path, kept: pd.DataFrame, classes: Sequence[str], parts: Sequence[pd.DataFrame]
) -> None:
    if len(classes) < 2:
        raise DataUnavailableError(
            f"{folder} has kept faces of {len(classes)} class(es), and two are the least: "
            f"its {MANIFEST} says what became of every photograph"
        )
    if sum(map(len, parts)) != len(kept):
        raise DataUnavailableError(
            f"{folder / MANIFEST} is damaged (the split of a kept face is none of "
            f"{', '.join(PARTS)}): delete it, and run prepare_faces again"
        )
    for name, part in zip(PARTS, parts, strict=True):
        if part.empty:
            raise DataUnavailableError(
                f"{folder} has no {name} images: classes of three or more photographs have some"
            )


def _prepared(root: Path) -> Path:
    """The folder that the photographs in `root` are prepared into."""
    digest = hashlib.blake2b(os.fsencode(root.resolve()), digest_size=8).hexdigest()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "weight-loss")
    folder = cache / f"faces-{digest}"
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):  # others wait, and find it done
            print(f"preparing the photographs in {root}, into {folder}", file=sys.stderr)
            prepare(root, folder, FaceOptions(), device)
    except ValueError as error:
        raise DataUnavailableError(f"data_root: {error}") from None
    except OSError as error:
        raise DataUnavailableError(
            f"{root} cannot be prepared into {folder} ({error.strerror}): run prepare_faces"
        ) from None
    return folder


def _read_crops(folder: Path, crops: Sequence[str]) -> tuple[Tensor, bool]:
    """All crops [N, SIDE, SIDE] uint8, and whether they are a file mapped into memory."""
    size = len(crops) * SIDE * SIDE
    if size <= MAPPED_BYTES:
        images = np.empty((len(crops), SIDE, SIDE), dtype=np.uint8)
        _fill(images, folder, crops)
        return torch.from_numpy(images), False
    path = folder / f"crops.{_state(folder, crops)}.bin"
    with FileLock(folder / ".crops.lock"):
        if not path.exists():
            for old in folder.glob("crops.*.bin"):
                old.unlink()
            partial = folder / ".crops.partial"
            _fill(np.memmap(partial, np.uint8, "w+", shape=(len(crops), SIDE, SIDE)), folder, crops)
            partial.rename(path)
    mapped = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)
    return mapped.view(-1, SIDE, SIDE), True


def _fill(images: np.ndarray, folder: Path, crops: Sequence[str]) -> None:
    def read(row: int) -> None:
        path = folder / crops[row]
        try:
            images[row] = read_crop(path)
        except (FileNotFoundError, ValueError) as error:
            reason = "missing" if isinstance(error, FileNotFoundError) else "damaged"
            raise DataUnavailableError(f"{path} is {reason}: run prepare_faces again") from None

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(read, range(len(crops))):
            pass


def _state(folder: Path, crops: Sequence[str]) -> str:
    """A digest that changes when a crop does."""
    digest = hashlib.blake2b(digest_size=8)
    for crop in crops:
        path = folder / crop
        if not path.exists():
            raise DataUnavailableError(f"{path} is missing: run prepare_faces again")
        status = path.stat()
        digest.update(f"{crop}\0{status.st_size}\0{status.st_mtime_ns}\0".encode())
    return digest.hexdigest()
