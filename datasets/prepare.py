"""Prepare: from a folder of photographs to a data set of faces.

    <out>/manifest.csv      what became of every photograph, and why
    <out>/crops/<label>/    the kept faces, 144x144, grey
    <out>/contact_sheets/   the same to look at, a picture or more a class
    <out>/exclude.txt       written by a person: sources or crops to leave out, one a line
    <out>/options.json      what was asked for
    <out>/found.jsonl       what was found in each photograph, so that it is looked at once

It may be interrupted and begun again at any time: what has been found is known, and all else is
made of that.
"""

import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
from filelock import FileLock, Timeout
from PIL import Image
from tqdm import tqdm

from datasets.alignment import align, cut, frame
from datasets.contact_sheets import draw_contact_sheets
from datasets.detection import Detector
from datasets.face_options import FaceOptions
from datasets.findings import Facts, add_findings, findings_text, read_findings
from datasets.manifest import KEPT, MANIFEST, judge, judged, parse_manifest, read_manifest
from datasets.photographs import (
    Photograph,
    Picture,
    UnreadableError,
    find_photographs,
    quiet_decoders,
    read_picture,
)

FINDINGS, EXCLUDE, OPTIONS = "found.jsonl", "exclude.txt", "options.json"
WINDOW = 16  # photographs in memory at once; as many again are being read meanwhile


def prepare(source: Path, out: Path, options: FaceOptions, device: str) -> pd.DataFrame:
    """Find the faces of all photographs, and write the data set; only what is new is looked at.

    Args:
        source: A folder of class folders of photographs.
        out: The folder to write to; may hold an earlier state of the same.
        options: What was asked for.
        device: One of torch's, to find faces on.

    Returns:
        The manifest, as `read_manifest`.

    Raises:
        ValueError: If `source` has no photographs, or `out` cannot be written, is being written by
            another process, or was made of something else.
    """
    if out.resolve().is_relative_to(source.resolve()):
        raise ValueError(f"out must not lie inside source, got {out}")
    photographs = find_photographs(source)
    with _sole_writer(out), quiet_decoders():
        _check_same(source, out, options)
        before = read_manifest(out / MANIFEST) if (out / MANIFEST).exists() else None
        found = _look(photographs, out, options, device)
        table = judged(found, options, read_exclude(out), _places(before))
        _write_missing_crops(table, found, photographs, out, options)
        content = table.to_csv(index=False).encode()
        table = parse_manifest(content)
        draw_contact_sheets(table, before, source, out)  # again, unless the manifest is written
        _write(out / MANIFEST, content)
        _remove_stale_crops(table, out)
        _write(out / FINDINGS, findings_text(found))
    return table


@contextmanager
def _sole_writer(out: Path) -> Iterator[None]:
    lock = FileLock(out / ".lock")
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(f"another process is preparing {out}: wait for it to end") from None
    except OSError as error:
        raise ValueError(f"out cannot be written ({error.strerror}), got {out}") from None
    try:
        yield
    finally:
        lock.release()


def read_exclude(out: Path) -> set[str]:
    """What a person has thrown out: sources, or crops; lines that begin with # are comments."""
    path = out / EXCLUDE
    lines = path.read_text("utf-8-sig").splitlines() if path.exists() else []
    return {line.strip() for line in lines if line.strip() and line.strip()[0] != "#"}


def _check_same(source: Path, out: Path, options: FaceOptions) -> None:
    """One folder is made of one source in one way."""
    path = out / OPTIONS
    wanted = {"source": str(source.resolve())} | options.model_dump()
    if not path.exists():
        if (out / "crops").exists():  # those that are not in the manifest would be removed
            raise ValueError(f"{out} has crops, but not from here: name another out")
        _write(path, json.dumps(wanted, indent=2).encode())
        return
    made = json.loads(path.read_bytes())
    other = [f"{name}={made.get(name)}" for name in wanted if made.get(name) != wanted[name]]
    if other:
        raise ValueError(f"{out} was made with {', '.join(other)}: name another out, or delete it")


def _look(
    photographs: Sequence[Photograph], out: Path, options: FaceOptions, device: str
) -> list[Facts]:
    """What was found in all photographs; those that are new or changed are looked at now."""
    known = read_findings(out / FINDINGS)
    facts = {
        photograph.source: known[photograph.source]
        for photograph in photographs
        if _unchanged(photograph, known.get(photograph.source))
    }
    new = [photograph for photograph in photographs if photograph.source not in facts]
    with tqdm(total=len(new), desc="faces", unit="photo", disable=None) as bar:
        for window in _windows(new, device):
            for one, picture in window:
                facts[one.source] = one
                if picture:
                    _write_crops(one, picture, out, options)
            add_findings(out / FINDINGS, (one for one, _ in window))
            bar.update(len(window))
    return [facts[photograph.source] for photograph in photographs]


def _unchanged(photograph: Photograph, facts: Facts | None) -> bool:
    """What could not be read is tried again: it may have been a matter of rights."""
    if facts is None or facts.problem:
        return False
    return (photograph.size, photograph.modified) == (facts.size, facts.modified)


def _windows(
    photographs: Sequence[Photograph], device: str
) -> Iterator[list[tuple[Facts, Picture | None]]]:
    """What is found in some photographs at a time; the next ones are being read meanwhile."""
    if not photographs:
        return
    detector = Detector(device)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        reading = [pool.submit(_read, one) for one in photographs[:WINDOW]]
        for start in range(0, len(photographs), WINDOW):
            end = start + WINDOW
            following = [pool.submit(_read, one) for one in photographs[end : end + WINDOW]]
            read = [future.result() for future in reading]
            yield _find(photographs[start:end], read, detector)
            reading = following


def _read(photograph: Photograph) -> Picture | str:
    """The picture, or why there is none."""
    try:
        return read_picture(photograph.path)
    except UnreadableError as error:
        return str(error)


def _find(
    photographs: Sequence[Photograph], read: Sequence[Picture | str], detector: Detector
) -> list[tuple[Facts, Picture | None]]:
    found = iter(detector.find([one.view for one in read if not isinstance(one, str)]))
    answers: list[tuple[Facts, Picture | None]] = []
    for photograph, picture in zip(photographs, read, strict=True):
        start = photograph.source, photograph.label, photograph.size, photograph.modified
        if isinstance(picture, str):
            answers.append((Facts(*start, problem=picture), None))
        else:
            content = picture.digest, picture.hash, *picture.grey.size
            scale = np.divide(picture.grey.size, picture.view.size)
            faces = tuple(face.scaled(*scale.tolist()) for face in next(found))
            answers.append((Facts(*start, *content, faces), picture))
    return answers


def _write_crops(facts: Facts, picture: Picture, out: Path, options: FaceOptions) -> None:
    for row in judge(facts, options):
        if row.outcome == KEPT and row.label and row.face:
            transform = align(row.face) if options.align else frame(row.face, options.margin)
            _save(cut(picture.grey, transform), out / row.crop)


def _write_missing_crops(
    table: pd.DataFrame,
    found: Sequence[Facts],
    photographs: Sequence[Photograph],
    out: Path,
    options: FaceOptions,
) -> None:
    """Those of faces that were left out before, and those that somebody has removed."""
    kept = table[table["outcome"] == KEPT]
    missing = {
        source
        for source, crop in zip(kept["source"], kept["crop"], strict=True)
        if not (out / crop).exists()
    }
    for photograph, facts in zip(photographs, found, strict=True):
        if photograph.source in missing:
            _write_crops(facts, read_picture(photograph.path), out, options)


def _remove_stale_crops(table: pd.DataFrame, out: Path) -> None:
    wanted = {out / crop for crop in table["crop"] if crop}
    for path in sorted((out / "crops").rglob("*"), reverse=True):  # what is in a folder before it
        if path.is_dir():
            with suppress(OSError):  # not empty
                path.rmdir()
        elif path not in wanted:
            path.unlink()


def _places(before: pd.DataFrame | None) -> dict[str, str]:
    if before is None:
        return {}
    kept = before[before["outcome"] == KEPT]
    return dict(zip(kept["source"], kept["split"], strict=True))


def _save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = BytesIO()
    image.save(content, "PNG")
    _write(path, content.getvalue())


def _write(path: Path, content: bytes) -> None:
    """All of it or nothing, whenever the process ends."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(content)
    partial.replace(path)
