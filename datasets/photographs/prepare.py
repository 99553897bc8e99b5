"""Prepare: from a folder of photographs to a folder with a data set of faces.

`datasets.photographs` lists the files of the result. Preparing can be interrupted and repeated at
any time: detections are cached, and everything else is derived from them.
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock, Timeout
from pydantic import TypeAdapter, ValidationError
from tqdm import tqdm

from datasets.photographs import (
    CONTACT_SHEETS,
    CROPS,
    DETECTIONS,
    EXCLUDED,
    MANIFEST,
    OPTIONS,
    SPLIT_NAMES,
)
from datasets.photographs.contact_sheets import draw_contact_sheets
from datasets.photographs.crops import cut_face, read_crop, write_image
from datasets.photographs.detection import Detection, detect_faces, detection_lines, read_detections
from datasets.photographs.files import (
    Photograph,
    find_photographs,
    path_text,
    read_regular_file,
    unescape_formula,
    write_atomically,
)
from datasets.photographs.manifest import (
    COLUMNS,
    KEPT,
    build_manifest,
    classify,
    manifest_content,
    parse_manifest,
    read_manifest,
)
from datasets.photographs.options import FaceOptions
from datasets.photographs.pictures import (
    LARGE,
    Picture,
    content_digest,
    ignore_decoder_warnings,
    read_picture,
)
from datasets.splits import DataUnavailableError


def prepare(source: Path, out: Path, options: FaceOptions, device: str) -> pd.DataFrame:
    """Detect the faces in all photographs and write the data set; cached detections are reused.

    Args:
        source: Folder of class folders of photographs.
        out: Folder to write to; it may hold an earlier result for the same source and options.
        options: Settings that decide the crops and the splits.
        device: A torch device, to detect faces on.

    Returns:
        The manifest, as `read_manifest` returns it.

    Raises:
        ValueError: If `source` has no photographs, or `out` cannot be written, is being written by
            another process, or was made from another source or with other options.
    """
    photographs = check_folders(source, out, options)
    with _lock(out), ignore_decoder_warnings():
        _claim(source, out, options)
        before = pd.DataFrame(columns=list(COLUMNS))
        if (out / MANIFEST).exists():
            before = read_manifest(out / MANIFEST)
        detections = _detect(photographs, out, options, device)
        had_split = before[before["split"].isin(SPLIT_NAMES)]
        split_of = dict(zip(had_split["source"], had_split["split"], strict=True))
        table = build_manifest(detections, options, read_excluded(out), split_of)
        paths = {photograph.source: photograph.path for photograph in photographs}
        _write_missing_crops(table, detections, paths, out, options)
        content = manifest_content(table)
        table = parse_manifest(content)
        draw_contact_sheets(table, before, paths, out)  # before the manifest: redrawn if it fails
        write_atomically(out / MANIFEST, content)
        _remove_stale_crops(table, out)
        write_atomically(out / DETECTIONS, detection_lines(detections))
    return table


def check_folders(source: Path, out: Path, options: FaceOptions) -> list[Photograph]:
    """The photographs that `prepare` would prepare.

    Raises:
        ValueError: If `source` has no photographs, one folder is inside the other, or `out` was
            made from another source or with other options, or not by `prepare`.
    """
    if out.resolve().is_relative_to(source.resolve()):
        raise ValueError(f"out must not be inside source, got {out}")
    if source.resolve().is_relative_to(out.resolve()):
        raise ValueError(f"source must not be inside out, got {source}")
    photographs = find_photographs(source)
    _check_options(source, out, options)
    return photographs


def _lock(out: Path) -> AbstractContextManager[object]:
    """Create the folder, and hold its lock until the context ends."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        return FileLock(out / ".lock").acquire(timeout=0)
    except Timeout:
        raise ValueError(f"another process is preparing {out}: wait until it has ended") from None
    except OSError as error:
        raise ValueError(f"out is not writable ({error.strerror}), got {out}") from None


def read_excluded(out: Path) -> set[str]:
    """The sources or crops that the user has excluded; lines that start with # are comments."""
    path = out / EXCLUDED
    try:
        lines = read_regular_file(path).decode("utf-8-sig").splitlines() if path.exists() else []
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8 text: save it with that encoding") from None
    names = (line.strip() for line in lines)
    return {unescape_formula(name) for name in names if name and name[0] != "#"}


def _claim(source: Path, out: Path, options: FaceOptions) -> None:
    """Write the options, unless another process has done so since the folders were checked."""
    _check_options(source, out, options)
    if not (out / OPTIONS).exists():
        content = json.dumps(_described(source, options), indent=2)
        write_atomically(out / OPTIONS, content.encode())


def _check_options(source: Path, out: Path, options: FaceOptions) -> None:
    """Each folder belongs to one source and one set of options."""
    written = out / DETECTIONS, out / CONTACT_SHEETS, out / CROPS, *(out / CROPS).glob("*")
    if links := [path for path in written if path.is_symlink()]:  # could lead out of the folder
        raise ValueError(f"out must not contain symbolic links, got {links[0]}: remove it")
    path = out / OPTIONS
    expected = _described(source, options)
    if not path.exists():
        names = {entry.name for entry in out.iterdir()} - {EXCLUDED} if out.is_dir() else set()
        if any(name[0] != "." for name in names):  # files that preparing could overwrite or remove
            raise ValueError(f"{out} has files that prepare_faces has not written: use another out")
        return
    try:
        found = TypeAdapter(dict[str, Any]).validate_json(read_regular_file(path))
    except ValidationError:
        raise ValueError(f"{path} is damaged: use another out, or delete {out}") from None
    other = [f"{name}={found.get(name)}" for name in expected if found.get(name) != expected[name]]
    if other:
        raise ValueError(f"{out} was made with {', '.join(other)}: use another out, or delete it")


def _described(source: Path, options: FaceOptions) -> dict[str, Any]:
    return {"source": path_text(source.resolve())} | options.model_dump()


def _detect(
    photographs: Sequence[Photograph], out: Path, options: FaceOptions, device: str
) -> list[Detection]:
    """The detections of all photographs; only new or changed photographs are processed."""
    cached = read_detections(out / DETECTIONS)
    detections = {
        photograph.source: same
        for photograph in photographs
        if (same := _unchanged(photograph, cached.get(photograph.source)))
    }
    new = [photograph for photograph in photographs if photograph.source not in detections]
    with tqdm(total=len(new), desc="faces", unit="photo", disable=None) as bar:
        for window in detect_faces(new, device):
            for detection, picture in window:
                detections[detection.source] = detection
                if picture:
                    _write_crops(detection, picture, out, options)
            with (out / DETECTIONS).open("ab") as file:
                file.write(detection_lines(detection for detection, _ in window))
            bar.update(len(window))
    return [detections[photograph.source] for photograph in photographs]


def _unchanged(photograph: Photograph, cached: Detection | None) -> Detection | None:
    """The cached detection if the file is the same; unreadable files are always read again."""
    if cached is None or cached.problem:
        return None
    width, height = cached.width, cached.height
    if width * height > LARGE + width + height:  # cached before large pictures were reduced
        return None
    known = replace(cached, label=photograph.label, stamp=photograph.stamp)
    if photograph.stamp == cached.stamp:
        return known
    if photograph.path.is_file() and content_digest(photograph.path.read_bytes()) == cached.digest:
        return known
    return None


def _write_crops(detection: Detection, picture: Picture, out: Path, options: FaceOptions) -> None:
    for row in classify(detection, options):
        if row.outcome == KEPT and row.label and row.face:
            try:
                crop = cut_face(picture.grey, row.face, options)
            except DataUnavailableError as error:
                raise DataUnavailableError(
                    f"{out / DETECTIONS} is damaged ({error}): delete it"
                ) from None
            write_image(crop, out / row.crop)


def _write_missing_crops(
    table: pd.DataFrame,
    detections: Sequence[Detection],
    paths: Mapping[str, Path],
    out: Path,
    options: FaceOptions,
) -> None:
    """Crops of faces that were not kept before, and crops that were deleted or damaged."""
    kept = table[table["outcome"] == KEPT]
    missing = set()
    for source, crop in zip(kept["source"], kept["crop"], strict=True):
        try:
            read_crop(out / crop)
        except DataUnavailableError:
            missing.add(source)
    for detection in detections:
        if detection.source in missing:
            _write_crops(detection, read_picture(paths[detection.source]), out, options)


def _remove_stale_crops(table: pd.DataFrame, out: Path) -> None:
    current = {out / crop for crop in table["crop"] if crop}
    for path in sorted((out / CROPS).rglob("*"), reverse=True):  # files before their folders
        if path.is_dir():
            with suppress(OSError):  # not empty
                path.rmdir()
        elif path not in current and path.suffix in (".png", ".partial"):
            path.unlink()
