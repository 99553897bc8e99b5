"""Manifest: the outcome of every photograph, and the split of every kept face.

`build_manifest` is a pure function of the detections, the options, the sources that the user has
excluded and the splits of the previous manifest. It has one row for each photograph, or with
`which_face=all` one row for each face.
"""

import hashlib
import zlib
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pandas as pd

from datasets.photographs import CROPS, EXCLUDED, SPLIT_NAMES
from datasets.photographs.detection import Detection, Face
from datasets.photographs.files import (
    escape_formula,
    read_regular_file,
    short_name,
    unescape_formula,
)
from datasets.photographs.options import FaceOptions
from datasets.photographs.pictures import HASH_SIDE
from datasets.splits import DataUnavailableError

KEPT = "kept"
OUTCOMES = (
    KEPT,
    "no_face",
    "too_small",
    "low_confidence",
    "unreadable",
    "duplicate",
    "excluded",
)
BOX = ("left", "top", "right", "bottom")
LANDMARKS = tuple(
    f"{name}_{axis}"
    for name in ("left_eye", "right_eye", "nose", "mouth_left", "mouth_right")
    for axis in "xy"
)
SIZES = ("width", "height")  # set in every row: a truncated row lacks them and is detected
COLUMNS = (
    *("source", "label", "outcome", "crop", "split", "confidence"),
    *("reason", "duplicate_of", *BOX, *LANDMARKS, *SIZES),
)
CHECKSUM = "checksum"  # column
TEXTS = ("source", "label", "outcome", "crop", "split", "reason", "duplicate_of")
TYPES = {name: str if name in TEXTS else int if name in SIZES else float for name in COLUMNS}
NOT_A_NUMBER = {name: [""] for name in COLUMNS if name not in TEXTS}

# Photographs whose perceptual hashes differ in at most this many of HASH_SIDE**2 = 576 bits are
# the same picture, re-encoded or resized. Measured on the ORL faces (400 portraits of 40 people in
# front of one background): two different portraits differ by at least 70 bits, a portrait and its
# copy by at most 30 (JPEG quality 50) or 12 (half the size). Mirror images count as the same, since
# training mirrors: unrelated ones differ by at least 174 bits, that of a JPEG copy by at most 26.
MAX_HASH_DISTANCE = 44


@dataclass
class Row:
    """One row of the manifest; a field that does not apply is empty."""

    source: str
    label: str
    outcome: str
    reason: str = ""
    crop: str = ""
    face: Face | None = None
    split: str = ""
    duplicate_of: str = ""


def build_manifest(
    detections: Sequence[Detection],
    options: FaceOptions,
    excluded: Collection[str],
    split_of: Mapping[str, str],
) -> pd.DataFrame:
    """The manifest.

    Args:
        detections: One for each photograph; the first of several duplicates is kept.
        options: The options of the data set.
        excluded: Sources, or crops, that the user has excluded.
        split_of: Split by source, of the photographs that were kept before.
    """
    rows = [row for detection in detections for row in classify(detection, options)]
    for row in rows:
        if not row.label:
            _reject(row, "excluded", "not in a class folder")
        for name in sorted({row.source, row.crop} & set(excluded)):
            _reject(row, "excluded", exclusion_reason(name))
    by_source = {detection.source: detection for detection in detections}
    _reject_duplicates(rows, by_source, split_of)
    _split(rows, by_source, options, split_of)
    return pd.DataFrame([_cells(row, by_source) for row in rows], columns=list(COLUMNS))


def classify(detection: Detection, options: FaceOptions) -> list[Row]:
    """The outcome of one photograph, regardless of the others; kept faces get a crop path."""
    start = detection.source, detection.label
    if detection.problem:
        return [Row(*start, "unreadable", detection.problem)]
    rows = [Row(*start, *_check_quality(face, options), face=face) for face in detection.faces]
    rows = rows or [Row(*start, "no_face", "MTCNN found no face")]
    if options.which_face == "most_confident":
        rows.sort(key=lambda row: -row.face.confidence if row.face else 0)
    if options.which_face != "all":
        rows = sorted(rows, key=lambda row: OUTCOMES.index(row.outcome))[:1]
    for number, row in enumerate(rows, start=1):
        if row.outcome == KEPT:
            row.crop = _crop_path(detection, number)
    return rows


def _check_quality(face: Face, options: FaceOptions) -> tuple[str, str]:
    if face.confidence < options.min_confidence:
        return "low_confidence", f"{face.confidence:.3f}, less than {options.min_confidence:g}"
    if face.size < options.min_size:
        return "too_small", f"{face.size:.2f} pixels, less than {options.min_size:g}"
    return KEPT, ""


def _crop_path(detection: Detection, number: int) -> str:
    """Unique for any source, and independent of the other photographs."""
    digest = hashlib.blake2b(detection.source.encode(), digest_size=4).hexdigest()
    stem = PurePosixPath(detection.source).stem[:40]
    face = f"_{number}" if number > 1 else ""
    return f"{CROPS}/{short_name(detection.label)}/{stem}-{digest}{face}.png"


def exclusion_reason(name: str) -> str:
    """The reason in the manifest for a source or crop that the user has excluded."""
    return f"{EXCLUDED} names {name}"


def _reject(row: Row, outcome: str, reason: str) -> None:
    row.outcome, row.reason, row.crop = outcome, reason, ""


def _reject_duplicates(
    rows: Sequence[Row], by_source: Mapping[str, Detection], split_of: Mapping[str, str]
) -> None:
    """Photographs that already have a split come first: they are never rejected for a new one."""
    kept = {row.source for row in rows if row.outcome == KEPT}
    order = sorted((s for s in by_source if s in kept), key=lambda source: source not in split_of)
    first_of = find_duplicates({source: by_source[source].hashes for source in order}, order)
    for row in rows:
        first = first_of.get(row.source)
        if first and row.outcome == KEPT:
            label = by_source[first].label
            other = f", of class {label}" if label != row.label else ""
            row.duplicate_of = first
            _reject(row, "duplicate", f"the same picture as {first}{other}")


def find_duplicates(hashes: Mapping[str, tuple[str, ...]], order: Sequence[str]) -> dict[str, str]:
    """The duplicates, each with the most similar of the earlier pictures that are kept.

    Args:
        hashes: By name: the hash of a picture, then those of its equivalents such as the mirror
            image; HASH_SIDE**2 bits each as hexadecimal digits.
        order: All names; the first of several duplicates is kept.
    """
    kept = np.empty((len(order), HASH_SIDE**2 // 64), dtype=np.uint64)
    names: list[str] = []
    duplicates = {}
    for name in order:
        variants = [np.frombuffer(bytes.fromhex(text), dtype=np.uint64) for text in hashes[name]]
        earlier = kept[: len(names), None]
        distances = np.bitwise_count(earlier ^ np.stack(variants)).sum(2, dtype=np.int64).min(1)
        if len(names) and distances.min() <= MAX_HASH_DISTANCE:
            duplicates[name] = names[int(distances.argmin())]
        else:
            kept[len(names)] = variants[0]
            names.append(name)
    return duplicates


def _split(
    rows: Sequence[Row],
    by_source: Mapping[str, Detection],
    options: FaceOptions,
    split_of: Mapping[str, str],
) -> None:
    kept = [row for row in rows if row.outcome == KEPT]
    for label in {row.label for row in kept}:
        members = [row for row in kept if row.label == label]
        digests = {row.source: by_source[row.source].digest for row in members}
        splits = assign_splits(digests, split_of, options.shares, options.seed)
        for row in members:
            row.split = splits[row.source]


def assign_splits(
    digests: Mapping[str, str], split_of: Mapping[str, str], shares: Mapping[str, float], seed: int
) -> dict[str, str]:
    """The split of each photograph of one class.

    Photographs that have a split keep it. New ones are added in an order that depends on seed and
    content only, each to the split that is furthest below its share. If three or more are added,
    no split stays empty.

    Args:
        digests: Content digests of the photographs of the class, by name.
        split_of: Existing splits by name; names that are not in `digests` are ignored.
        shares: Share of each split, 1 in total.
        seed: Of the order.
    """
    splits = {name: split_of[name] for name in digests if name in split_of}
    counts = Counter(splits.values())

    def rank(name: str) -> bytes:
        return hashlib.blake2b(f"{seed} {digests[name]}".encode(), digest_size=16).digest()

    new = sorted(digests.keys() - splits.keys(), key=rank)
    for index, name in enumerate(new):
        empty = [split for split in SPLIT_NAMES if not counts[split]]
        choices = empty if len(empty) >= len(new) - index else SPLIT_NAMES
        split = max(choices, key=lambda split: shares[split] * len(digests) - counts[split])
        splits[name] = split
        counts[split] += 1
    return splits


def _cells(row: Row, by_source: Mapping[str, Detection]) -> dict[str, Any]:
    detection = by_source[row.source]
    cells: dict[str, Any] = {name: getattr(row, name) for name in TEXTS}
    cells |= {"width": detection.width, "height": detection.height}
    if row.face:
        cells["confidence"] = round(row.face.confidence, 6)
        pixels = *row.face.box, *chain.from_iterable(row.face.landmarks)
        names = *BOX, *LANDMARKS
        cells |= {name: round(value, 2) for name, value in zip(names, pixels, strict=True)}
    return cells


def read_manifest(path: Path) -> pd.DataFrame:
    """A manifest as it was written; a cell that does not apply is "" or NaN.

    Raises:
        DataUnavailableError: If it does not exist or is damaged.
    """
    try:
        return parse_manifest(read_regular_file(path))
    except DataUnavailableError:
        raise
    except FileNotFoundError:
        raise DataUnavailableError(f"{path} does not exist: run prepare_faces first") from None
    except (ValueError, KeyError, ArithmeticError) as error:  # pandas raises subclasses of these
        reason = " ".join(str(error).split())
        raise DataUnavailableError(
            f"{path} is damaged ({reason}): delete it and run prepare_faces again"
        ) from None


def _is_safe_crop_path(crop: str) -> bool:
    parts = crop.split("/")
    return not crop or (len(parts) == 3 and parts[0] == CROPS and all(map(_is_safe_label, parts)))


def _is_safe_label(label: str) -> bool:
    return "/" not in label and label[:1] != "."


def manifest_content(table: pd.DataFrame) -> bytes:
    """The content of a manifest's file; each row ends with a checksum.

    The checksum covers the row's other cells and the number of rows, so that it also detects a
    truncated file.
    """
    texts = {name: table[name].map(escape_formula) for name in TEXTS}
    written = table.assign(**texts).to_csv(index=False).encode()
    cells = pd.read_csv(BytesIO(written), dtype=str, keep_default_na=False)
    return cells.assign(**{CHECKSUM: _checksums(cells)}).to_csv(index=False).encode()


def _checksums(cells: pd.DataFrame) -> list[str]:
    rows = cells.itertuples(index=False, name=None)
    sums = [zlib.crc32(f"{len(cells)} {row!r}".encode()) for row in rows]
    return [f"x{each:08x}" for each in sums]  # the x keeps spreadsheets from reading a number


def parse_manifest(content: bytes) -> pd.DataFrame:
    """A manifest from a file's content.

    Raises:
        ValueError, KeyError: If the content is damaged.
    """
    cells = pd.read_csv(BytesIO(content), dtype=str, keep_default_na=False)
    checked = tuple(cells.columns) == (*COLUMNS, CHECKSUM)  # older versions wrote no checksums
    if not checked and tuple(cells.columns) != COLUMNS:
        raise ValueError("its columns are not those of a manifest")
    if checked and list(cells.pop(CHECKSUM)) != _checksums(cells):
        raise ValueError("a row does not match its checksum")
    table = pd.read_csv(
        BytesIO(content), dtype=TYPES, keep_default_na=False, na_values=NOT_A_NUMBER
    )[list(COLUMNS)]
    if checked:
        for name in TEXTS:
            table[name] = table[name].map(unescape_formula)
    if not all(map(_is_safe_crop_path, table["crop"])) or not all(
        map(_is_safe_label, table["label"])
    ):
        raise ValueError("a class or a crop is outside its folder")
    if unknown := set(table["outcome"]) - set(OUTCOMES):
        raise ValueError(f"unknown outcome: {', '.join(sorted(map(str, unknown)))}")
    return table
