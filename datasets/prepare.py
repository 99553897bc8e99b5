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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock, Timeout
from PIL import Image
from pydantic import TypeAdapter, ValidationError
from tqdm import tqdm

from datasets.alignment import align, cut, frame, is_crop
from datasets.assignment import PARTS
from datasets.contact_sheets import draw_contact_sheets
from datasets.face_options import FaceOptions
from datasets.files import text_of, write_whole
from datasets.findings import Facts, add_findings, findings_text, read_findings
from datasets.looking import look
from datasets.manifest import KEPT, MANIFEST, judge, judged, parse_manifest, read_manifest
from datasets.photographs import (
    Photograph,
    Picture,
    digest_of,
    find_photographs,
    quiet_decoders,
    read_picture,
)

FINDINGS, EXCLUDE, OPTIONS = "found.jsonl", "exclude.txt", "options.json"


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
    if source.resolve().is_relative_to(out.resolve()):
        raise ValueError(f"source must not lie inside out, got {source}")
    photographs = find_photographs(source)
    with _sole_writer(out), quiet_decoders():
        _check_same(source, out, options)
        before = read_manifest(out / MANIFEST) if (out / MANIFEST).exists() else None
        found = _look(photographs, out, options, device)
        table = judged(found, options, read_exclude(out), _places(before))
        paths = {photograph.source: photograph.path for photograph in photographs}
        _write_missing_crops(table, found, paths, out, options)
        content = table.to_csv(index=False).encode()
        table = parse_manifest(content)
        draw_contact_sheets(table, before, paths, out)  # again, unless the manifest is written
        write_whole(out / MANIFEST, content)
        _remove_stale_crops(table, out)
        write_whole(out / FINDINGS, findings_text(found))
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
    try:
        lines = path.read_text("utf-8-sig").splitlines() if path.exists() else []
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8 text: save it as that") from None
    return {line.strip() for line in lines if line.strip() and line.strip()[0] != "#"}


def _check_same(source: Path, out: Path, options: FaceOptions) -> None:
    """One folder is made of one source in one way."""
    path = out / OPTIONS
    wanted = {"source": text_of(source.resolve())} | options.model_dump()
    if not path.exists():
        there = {entry.name for entry in out.iterdir()} - {EXCLUDE}
        if any(name[0] != "." for name in there):  # what is not in the manifest would be removed
            raise ValueError(f"{out} has files that are not from here: name another out")
        write_whole(path, json.dumps(wanted, indent=2).encode())
        return
    try:
        made = TypeAdapter(dict[str, Any]).validate_json(path.read_bytes())
    except ValidationError:
        raise ValueError(f"{path} is damaged: name another out, or delete all of {out}") from None
    other = [f"{name}={made.get(name)}" for name in wanted if made.get(name) != wanted[name]]
    if other:
        raise ValueError(f"{out} was made with {', '.join(other)}: name another out, or delete it")


def _look(
    photographs: Sequence[Photograph], out: Path, options: FaceOptions, device: str
) -> list[Facts]:
    """What was found in all photographs; those that are new or changed are looked at now."""
    known = read_findings(out / FINDINGS)
    facts = {
        photograph.source: same
        for photograph in photographs
        if (same := _unchanged(photograph, known.get(photograph.source)))
    }
    new = [photograph for photograph in photographs if photograph.source not in facts]
    with tqdm(total=len(new), desc="faces", unit="photo", disable=None) as bar:
        for window in look(new, device):
            for one, picture in window:
                facts[one.source] = one
                if picture:
                    _write_crops(one, picture, out, options)
            add_findings(out / FINDINGS, (one for one, _ in window))
            bar.update(len(window))
    return [facts[photograph.source] for photograph in photographs]


def _unchanged(photograph: Photograph, facts: Facts | None) -> Facts | None:
    """What is known of it, unless it has changed; what could not be read is tried again."""
    if facts is None or facts.problem or photograph.stamp == facts.stamp:
        return None if facts is None or facts.problem else facts
    if photograph.path.is_file() and digest_of(photograph.path.read_bytes()) == facts.digest:
        return replace(facts, stamp=photograph.stamp)
    return None


def _write_crops(facts: Facts, picture: Picture, out: Path, options: FaceOptions) -> None:
    for row in judge(facts, options):
        if row.outcome == KEPT and row.label and row.face:
            transform = align(row.face) if options.align else frame(row.face, options.margin)
            _save(cut(picture.grey, transform), out / row.crop)


def _write_missing_crops(
    table: pd.DataFrame,
    found: Sequence[Facts],
    paths: Mapping[str, Path],
    out: Path,
    options: FaceOptions,
) -> None:
    """Those of faces that were left out before, and those that somebody has removed or damaged."""
    kept = table[table["outcome"] == KEPT]
    missing = {
        source
        for source, crop in zip(kept["source"], kept["crop"], strict=True)
        if not is_crop(out / crop)
    }
    for facts in found:
        if facts.source in missing:
            _write_crops(facts, read_picture(paths[facts.source]), out, options)


def _remove_stale_crops(table: pd.DataFrame, out: Path) -> None:
    wanted = {out / crop for crop in table["crop"] if crop}
    for path in sorted((out / "crops").rglob("*"), reverse=True):  # what is in a folder before it
        if path.is_dir():
            with suppress(OSError):  # not empty
                path.rmdir()
        elif path not in wanted and path.suffix in (".png", ".partial"):
            path.unlink()


def _places(before: pd.DataFrame | None) -> dict[str, str]:
    if before is None:
        return {}
    kept = before[before["split"].isin(PARTS)]
    return dict(zip(kept["source"], kept["split"], strict=True))


def _save(image: Image.Image, path: Path) -> None:
    content = BytesIO()
    image.save(content, "PNG")
    write_whole(path, content.getvalue())
