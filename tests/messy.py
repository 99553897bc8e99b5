"""A folder of photographs with every outcome, and ways to inspect the result."""

import json
import os
import re
import shutil
from io import BytesIO
from pathlib import Path

import pytest
from filelock import FileLock

from datasets.photographs.options import FaceOptions
from datasets.photographs.prepare import prepare
from tests.portraits import flower, folder, portrait, scene


def run(root, device="cpu", **options):
    return prepare(root / "source", root / "out", FaceOptions(**options), device)


def messy_folder(factory: pytest.TempPathFactory) -> Path:
    """A folder with `source`, and `out` prepared from it; made once for all tests and workers."""
    base = factory.getbasetemp()
    root = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "messy"
    with FileLock(f"{root}.lock"):
        if not (root / "done").exists():
            _prepare_messy(root)
            (root / "done").touch()
    return root


def _prepare_messy(root: Path) -> None:
    source = folder(root / "source", ann=12, bob=10)
    for name, content in [("empty", b""), ("text", b"no picture"), ("corrupt", half_a_picture())]:
        (source / f"ann/{name}.jpg").write_bytes(content)
    flower().save(source / "ann/flower.jpg")
    portrait(40).save(source / "ann/tiny.png")
    portrait().rotate(65).save(source / "ann/tilted.png")
    scene(3).save(source / "ann/copy of 3.jpg", quality=50)
    scene(15).resize((120, 120)).save(source / "bob/half of 3.png")
    scene(50).save(source / "loose.png")
    scene(51).save(source / "ann/unwanted.png")
    (root / "out").mkdir()
    exclude = "# excluded by me\n\n  ann/unwanted.png \nann/not there.png\n"
    (root / "out/exclude.txt").write_text(exclude, encoding="utf-8-sig")
    run(root)


def half_a_picture():
    file = BytesIO()
    portrait().save(file, "JPEG")
    return file.getvalue()[: file.tell() // 2]


def copied(messy: Path, root: Path) -> Path:
    """A copy in another folder, to be changed."""
    shutil.copytree(messy / "source", root / "source")
    shutil.copytree(messy / "out", root / "out")
    made = json.loads((root / "out/options.json").read_text())
    made["source"] = str((root / "source").resolve())
    (root / "out/options.json").write_text(json.dumps(made))
    return root


def tree(out):
    """The content of all visible files, without modification times and checksums over them."""
    files = (path for path in out.rglob("*") if path.is_file() and path.name[0] != ".")
    contents = {str(path.relative_to(out)): path.read_bytes() for path in files}
    found = contents.get("found.jsonl", b"")
    found = re.sub(rb'"stamp":\[[^]]*\]', b'"stamp":[]', found)
    return contents | {"found.jsonl": re.sub(rb"\t[0-9a-f]{8}\n", b"\n", found)}


def rows(table):
    return {row["source"]: row for row in table.to_dict("records")}


def outcomes(table):
    return dict(zip(table["source"], table["outcome"], strict=True))


def splits(table):
    return dict(zip(table["source"], table["split"], strict=True))
