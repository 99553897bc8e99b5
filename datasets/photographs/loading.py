"""Loading: the images of a prepared folder; photographs that are not prepared are prepared first.

They are prepared with the default options into a cache, and again when photographs are added.
"""

import hashlib
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from filelock import FileLock
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from datasets.photographs import CROP, MANIFEST, OPTIONS, SIDE, SPLIT_NAMES
from datasets.photographs.crops import read_crop
from datasets.photographs.files import find_photographs, read_regular_file
from datasets.photographs.manifest import KEPT, read_manifest
from datasets.photographs.options import FaceOptions
from datasets.splits import DataUnavailableError, Images

MAPPED_BYTES = 2 << 30  # more than this is mapped from a file instead of read into memory


def load_faces(root: Path) -> Images:
    """See `datasets.faces.faces`. Classes are sorted by name, the images of a split by path."""
    if (root / OPTIONS).exists() and not (root / MANIFEST).exists():
        raise DataUnavailableError(f"{root} is only partly prepared: run prepare_faces again")
    folder = root if (root / MANIFEST).exists() else _prepare_into_cache(root)
    read_options(folder)  # checkpoints need them: an error comes before training
    table = read_manifest(folder / MANIFEST)
    kept = table[table["outcome"] == KEPT].sort_values("crop")
    classes = tuple(sorted(set(kept["label"])))
    parts = [kept[kept["split"] == split] for split in SPLIT_NAMES]
    _check(folder, kept, classes, parts)
    rows = pd.concat(parts)
    images, mapped = _read_crops(folder, rows["crop"].tolist())
    numbers = {label: number for number, label in enumerate(classes)}
    labels = torch.tensor([numbers[label] for label in rows["label"]])
    sizes = [len(part) for part in parts]
    splits = zip(torch.split(images, sizes), torch.split(labels, sizes), strict=True)
    train, valid, test = splits
    return Images(
        source=str(folder),
        white=255,
        train=train,
        test=test,
        valid=valid,
        crop=CROP,
        classes=classes,
        mapped=mapped,
    )


def read_options(folder: Path) -> FaceOptions:
    """How the crops of a prepared folder were cut.

    Raises:
        DataUnavailableError: If the folder does not say.
    """
    path = folder / OPTIONS
    if not path.exists():
        raise DataUnavailableError(
            f"{path} is missing, so that nothing says how its faces were cut: put it back, or run "
            "prepare_faces into another folder"
        )
    try:
        found = TypeAdapter(dict[str, Any]).validate_json(read_regular_file(path))
        return FaceOptions(**{name: found[name] for name in FaceOptions.model_fields})
    except (ValidationError, KeyError):
        raise DataUnavailableError(
            f"{path} is damaged: run prepare_faces into another folder"
        ) from None


def _check(
    folder: Path, kept: pd.DataFrame, classes: Sequence[str], parts: Sequence[pd.DataFrame]
) -> None:
    if len(classes) < 2:
        raise DataUnavailableError(
            f"{folder} must have kept faces of at least two classes, got {len(classes)}: "
            f"see the outcome of every photograph in its {MANIFEST}"
        )
    if sum(map(len, parts)) != len(kept):
        raise DataUnavailableError(
            f"{folder / MANIFEST} is damaged (the split of a kept face must be one of "
            f"{', '.join(SPLIT_NAMES)}): delete it and run prepare_faces again"
        )
    for name, part in zip(SPLIT_NAMES, parts, strict=True):
        if part.empty:
            raise DataUnavailableError(
                f"{folder} has no {name} images: add photographs, three or more to a class"
            )


def _prepare_into_cache(root: Path) -> Path:
    """The folder that holds the prepared photographs of `root`."""
    from datasets.photographs.prepare import prepare  # here: a prepared folder does not need it

    digest = hashlib.blake2b(os.fsencode(root.resolve()), digest_size=8).hexdigest()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "weight-loss")
    folder = cache / f"faces-{digest}"
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        find_photographs(root)  # an error comes before anything is printed or written
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):  # other processes wait, then find it prepared
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
    """All crops [N, SIDE, SIDE] uint8, and whether they are memory-mapped."""
    size = len(crops) * SIDE * SIDE
    if size <= MAPPED_BYTES:
        images = np.empty((len(crops), SIDE, SIDE), dtype=np.uint8)
        _fill(images, folder, crops)
        return torch.from_numpy(images), False
    path = folder / f"crops.{_state_digest(folder, crops)}.bin"
    with FileLock(folder / ".crops.lock"):
        if path.is_symlink() or not path.is_file() or path.stat().st_size != size:
            for old in folder.glob("crops.*.bin"):
                old.unlink()
            partial = folder / ".crops.partial"
            partial.unlink(missing_ok=True)  # it could be a link to another file
            with partial.open("xb") as file:
                file.truncate(size)
            _fill(np.memmap(partial, np.uint8, "r+", shape=(len(crops), SIDE, SIDE)), folder, crops)
            partial.rename(path)
    mapped = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)
    return mapped.view(-1, SIDE, SIDE), True


def _fill(images: np.ndarray, folder: Path, crops: Sequence[str]) -> None:
    def read(row: int) -> None:
        images[row] = read_crop(folder / crops[row])

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(read, range(len(crops))):
            pass


def _state_digest(folder: Path, crops: Sequence[str]) -> str:
    """A digest that changes when a crop does."""
    digest = hashlib.blake2b(digest_size=8)
    for crop in crops:
        path = folder / crop
        if not path.exists():
            raise DataUnavailableError(f"{path} is missing: run prepare_faces again")
        status = path.stat()
        digest.update(f"{crop}\0{status.st_size}\0{status.st_mtime_ns}\0".encode())
    return digest.hexdigest()
