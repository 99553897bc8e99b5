"""Manifest: what became of every photograph, and why.

A pure function of what was found in the photographs, what was asked for, what a person has thrown
out, and the manifest before: `judged`. One row a photograph, or with `which_face=all` a row a face.
"""

import hashlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any

import pandas as pd

from datasets.assignment import assign
from datasets.detection import Face
from datasets.duplicates import find_duplicates
from datasets.face_options import FaceOptions
from datasets.files import file_name
from datasets.findings import Facts
from datasets.splits import DataUnavailableError

MANIFEST = "manifest.csv"
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
SIZES = ("width", "height")  # every row has them, but not one that is cut off
COLUMNS = (
    *("source", "label", "outcome", "crop", "split", "confidence"),
    *("reason", "duplicate_of", *BOX, *LANDMARKS, *SIZES),
)
TEXTS = ("source", "label", "outcome", "crop", "split", "reason", "duplicate_of")
TYPES = {name: str if name in TEXTS else int if name in SIZES else float for name in COLUMNS}
NOT_A_NUMBER = {name: [""] for name in COLUMNS if name not in TEXTS}


@dataclass
class Row:
    """One row of the manifest; empty is what does not apply."""

    source: str
    label: str
    outcome: str
    reason: str = ""
    crop: str = ""
    face: Face | None = None
    split: str = ""
    duplicate_of: str = ""


def judge(facts: Facts, options: FaceOptions) -> list[Row]:
    """What becomes of one photograph, seen by itself; kept faces have the paths of their crops."""
    start = facts.source, facts.label
    if facts.problem:
        return [Row(*start, "unreadable", facts.problem)]
    rows = [Row(*start, *_grade(face, options), face=face) for face in facts.faces]
    rows = rows or [Row(*start, "no_face", "MTCNN found no face")]
    if options.which_face == "most_confident":
        rows.sort(key=lambda row: -row.face.confidence if row.face else 0)
    if options.which_face != "all":
        rows = sorted(rows, key=lambda row: OUTCOMES.index(row.outcome))[:1]
    for number, row in enumerate(rows, start=1):
        if row.outcome == KEPT:
            row.crop = _crop_path(facts, number)
    return rows


def _grade(face: Face, options: FaceOptions) -> tuple[str, str]:
    if face.confidence < options.min_confidence:
        return "low_confidence", f"{face.confidence:.3f}, less than {options.min_confidence:g}"
    if face.size < options.min_size:
        return "too_small", f"{face.size:.2f} pixels, less than {options.min_size:g}"
    return KEPT, ""


def _crop_path(facts: Facts, number: int) -> str:
    """Unique whatever the photographs are called, and the same whichever others there are."""
    digest = hashlib.blake2b(facts.source.encode(), digest_size=4).hexdigest()
    stem = PurePosixPath(facts.source).stem[:40]
    face = f"_{number}" if number > 1 else ""
    return f"crops/{file_name(facts.label)}/{stem}-{digest}{face}.png"


def judged(
    found: Sequence[Facts], options: FaceOptions, excluded: Collection[str], places: dict[str, str]
) -> pd.DataFrame:
    """The manifest.

    Args:
        found: All photographs, in the order in which the first of several duplicates is kept.
        options: What was asked for.
        excluded: Sources, or crops, that a person has thrown out.
        places: Part of the split by source, of the photographs that were kept before.
    """
    by_source = {facts.source: judge(facts, options) for facts in found}
    rows = list(chain.from_iterable(by_source.values()))
    for row in rows:
        if not row.label:
            _reject(row, "excluded", "lies in no class folder")
        for name in sorted({row.source, row.crop} & set(excluded)):
            _reject(row, "excluded", excluded_as(name))
    kept = {row.source for row in rows if row.outcome == KEPT}
    _reject_duplicates(rows, [facts for facts in found if facts.source in kept], places)
    _split(rows, {facts.source: facts.digest for facts in found}, options, places)
    sizes = {facts.source: (facts.width, facts.height) for facts in found}
    cells = [_cells(row, *sizes[row.source]) for row in rows]
    return pd.DataFrame(cells, columns=list(COLUMNS))


def excluded_as(name: str) -> str:
    """The reason of what a person has thrown out by this name."""
    return f"exclude.txt names {name}"


def _reject(row: Row, outcome: str, reason: str) -> None:
    row.outcome, row.reason, row.crop = outcome, reason, ""


def _reject_duplicates(rows: list[Row], kept: list[Facts], places: dict[str, str]) -> None:
    order = sorted((facts.source for facts in kept), key=lambda source: source not in places)
    same = find_duplicates({facts.source: facts.hashes for facts in kept}, order)
    labels = {facts.source: facts.label for facts in kept}
    for row in rows:
        first = same.get(row.source)
        if first and row.outcome == KEPT:
            other = f", of class {labels[first]}" if labels[first] != row.label else ""
            row.duplicate_of = first
            _reject(row, "duplicate", f"the same picture as {first}{other}")


def _split(
    rows: list[Row], digests: dict[str, str], options: FaceOptions, places: dict[str, str]
) -> None:
    kept = [row for row in rows if row.outcome == KEPT]
    chosen: dict[str, str] = {}
    for label in sorted({row.label for row in kept}):
        mine = {row.source: digests[row.source] for row in kept if row.label == label}
        chosen |= assign(mine, places, options.shares, options.seed)
    for row in kept:
        row.split = chosen[row.source]


def _cells(row: Row, width: int, height: int) -> dict[str, Any]:
    cells: dict[str, Any] = {
        name: getattr(row, name)
        for name in ("source", "label", "outcome", "crop", "split", "reason", "duplicate_of")
    }
    cells |= {"width": width, "height": height}
    if row.face:
        cells["confidence"] = round(row.face.confidence, 6)
        cells |= _numbers(BOX, row.face.box)
        cells |= _numbers(LANDMARKS, chain.from_iterable(row.face.landmarks))
    return cells


def _numbers(names: Sequence[str], values: Any) -> Iterator[tuple[str, float]]:
    return ((name, round(value, 2)) for name, value in zip(names, values, strict=True))


def read_manifest(path: Path) -> pd.DataFrame:
    """A manifest as it was written: text, where nothing applies "", and numbers.

    Raises:
        DataUnavailableError: If it is not there, or damaged.
    """
    try:
        return parse_manifest(path.read_bytes())
    except FileNotFoundError:
        raise DataUnavailableError(f"{path} is not there: run prepare_faces first") from None
    except (ValueError, KeyError) as error:  # pandas' own errors are of these kinds
        reason = " ".join(str(error).split())
        raise DataUnavailableError(
            f"{path} is damaged ({reason}): delete it, and run prepare_faces again"
        ) from None


def parse_manifest(content: bytes) -> pd.DataFrame:
    """The same of a file's content; whatever is wrong with it is a ValueError or a KeyError."""
    table = pd.read_csv(
        BytesIO(content), dtype=TYPES, keep_default_na=False, na_values=NOT_A_NUMBER
    )
    table[list(COLUMNS)]
    if unknown := set(table["outcome"]) - set(OUTCOMES):
        raise ValueError(f"no outcome: {', '.join(sorted(map(str, unknown)))}")
    return table
