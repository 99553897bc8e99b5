import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image

from datasets.photographs.manifest import KEPT, OUTCOMES, read_manifest
from datasets.photographs.options import FaceOptions
from datasets.photographs.prepare import prepare
from datasets.splits import DataUnavailableError
from tests.messy import copied, messy_folder, outcomes, rows, run, tree
from tests.portraits import folder, portrait, scene

ROOT = Path(__file__).parent.parent
NOWHERE = "no device"  # not a torch device: detection on it fails
ODD = [
    "a,b",
    'q"uote',
    "new\nline",
    "return\rhere",
    "-x",
    "NA",
    "1",
    "ünï 日本",
    "L" * 250,
    "b\\xff",
]


@pytest.fixture(scope="module")
def messy(tmp_path_factory):
    return messy_folder(tmp_path_factory)


@pytest.fixture
def own(messy, tmp_path):
    return copied(messy, tmp_path)


def test_the_manifest_has_the_outcome_of_every_photograph(messy):
    table = read_manifest(messy / "out/manifest.csv")
    expected = {f"ann/{number}.png": KEPT for number in range(12)}
    expected |= {f"bob/{number}.png": KEPT for number in range(10)}
    expected |= {f"ann/{name}.jpg": "unreadable" for name in ("empty", "text", "corrupt")}
    expected |= {"ann/flower.jpg": "no_face", "ann/tiny.png": "too_small"}
    expected |= {"ann/tilted.png": "low_confidence", "ann/copy of 3.jpg": "duplicate"}
    expected |= {"bob/half of 3.png": "duplicate", "loose.png": "excluded"}
    expected |= {"ann/unwanted.png": "excluded"}
    assert outcomes(table) == expected
    assert set(expected.values()) == set(OUTCOMES)
    assert table[table["outcome"] != KEPT]["reason"].all()
    assert rows(table)["ann/copy of 3.jpg"]["duplicate_of"] == "ann/3.png"
    assert rows(table)["bob/half of 3.png"]["duplicate_of"] == "bob/3.png"
    counts = table.groupby(["label", "split"]).size()
    assert counts["bob"][["train", "valid", "test"]].tolist() == [7, 2, 1]


def test_exactly_the_kept_faces_have_crops(messy):
    crops = {name for name in tree(messy / "out") if name.startswith("crops/")}
    assert crops == set(read_manifest(messy / "out/manifest.csv")["crop"]) - {""}
    for name in crops:
        with Image.open(messy / "out" / name) as crop:
            assert (crop.format, crop.mode, crop.size) == ("PNG", "L", (144, 144))
            assert np.asarray(crop).std() > 20


def test_every_class_has_a_contact_sheet(messy):
    pages = sorted(path.name for path in (messy / "out/contact_sheets").iterdir())
    assert pages == ["(no class).1.jpg", "ann.1.jpg", "bob.1.jpg"]
    for page in pages:
        with Image.open(messy / "out/contact_sheets" / page) as image:
            image.load()


def test_large_classes_have_several_pages_and_surplus_pages_are_removed(tmp_path):
    folder(tmp_path / "source", a=2)
    (tmp_path / "source/b").mkdir()
    for number in range(81):
        (tmp_path / f"source/b/{number}.jpg").touch()
    run(tmp_path)
    assert sheets(tmp_path) == ["a.1.jpg", "b.1.jpg", "b.2.jpg"]
    (tmp_path / "source/b/80.jpg").unlink()
    run(tmp_path)
    assert sheets(tmp_path) == ["a.1.jpg", "b.1.jpg"]


def sheets(root):
    return sorted(path.name for path in (root / "out/contact_sheets").iterdir())


def test_other_options_or_another_source_are_rejected(own):
    before = tree(own / "out")
    with pytest.raises(ValueError, match=r"was made with min_size=20, seed=0: use another out"):
        run(own, min_size=30, seed=1)
    shutil.copytree(own / "source", own / "moved")
    with pytest.raises(ValueError, match=r"was made with source=.*/source: use another out"):
        prepare(own / "moved", own / "out", FaceOptions(), "cpu")
    assert tree(own / "out") == before


def test_a_folder_with_other_files_is_left_alone(tmp_path):
    folder(tmp_path / "out/crops", ann=1)
    folder(tmp_path / "source", ann=1)
    with pytest.raises(ValueError, match="source must not be inside out"):
        prepare(tmp_path / "out/crops", tmp_path / "out", FaceOptions(), NOWHERE)
    with pytest.raises(ValueError, match="has files that prepare_faces has not written"):
        run(tmp_path, NOWHERE)
    assert (tmp_path / "out/crops/ann/0.png").exists()


def test_out_must_be_writable_and_outside_source(tmp_path):
    source = folder(tmp_path / "source", ann=1)
    for out in (source, source / "out", tmp_path / "x/../source/ann"):
        with pytest.raises(ValueError, match="out must not be inside source"):
            prepare(source, out, FaceOptions(), NOWHERE)
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file/out"):
        with pytest.raises(ValueError, match=r"out is not writable \(.+\), got "):
            prepare(source, out, FaceOptions(), NOWHERE)
    assert sorted(path.name for path in source.rglob("*")) == ["0.png", "ann"]


def test_two_processes_cannot_prepare_the_same_folder(own):
    before = tree(own / "out")
    with FileLock(own / "out/.lock"), pytest.raises(ValueError, match="another process is prep"):
        run(own)
    assert tree(own / "out") == before
    run(own)


def test_a_missing_source_creates_no_folder(tmp_path):
    with pytest.raises(DataUnavailableError, match="is not a folder"):
        run(tmp_path)
    assert not (tmp_path / "out").exists()


def test_a_very_wide_panorama_is_processed(tmp_path):
    wide = Image.new("RGB", (20_000, 300), "grey")
    wide.paste(portrait(240), (9000, 10))
    folder(tmp_path / "source", ann=1)
    wide.save(tmp_path / "source/ann/wide.png")
    row = rows(run(tmp_path))["ann/wide.png"]
    assert (row["outcome"], row["width"]) == (KEPT, 20_000)
    assert 9000 < row["left"] < row["left_eye_x"] < row["right_eye_x"] < row["right"] < 9240


def test_without_alignment_the_box_and_margin_are_cropped(tmp_path):
    folder(tmp_path / "source", ann=1)
    row = rows(run(tmp_path, align=False, margin=0.5))["ann/0.png"]
    side = 1.5 * (row["bottom"] - row["top"])
    left, top = ((row[a] + row[b] - side) / 2 for a, b in (("left", "right"), ("top", "bottom")))
    shown = scene(0).convert("L").crop((left, top, left + side, top + side)).resize((144, 144))
    with Image.open(tmp_path / "out" / row["crop"]) as crop:
        assert np.abs(np.subtract(crop, shown, dtype=float))[20:-20, 20:-20].mean() < 6


def test_with_all_faces_each_gets_a_crop(tmp_path):
    both = Image.new("RGB", (400, 240), "grey")
    both.paste(portrait(100), (10, 20))
    both.paste(portrait(180), (190, 10))
    (tmp_path / "source/ann").mkdir(parents=True)
    both.save(tmp_path / "source/ann/both.png")
    table = run(tmp_path, which_face="all")
    assert list(table["outcome"]) == [KEPT, KEPT]
    assert table["split"].nunique() == 1
    assert table["left"][0] > 190 > table["right"][1]
    large, small = (Image.open(tmp_path / "out" / crop) for crop in table["crop"])
    with large, small:
        likeness = np.corrcoef(np.ravel(large), np.ravel(small))[0, 1]
    assert 0.7 < likeness < 0.999  # the same person twice


def test_unusual_names_of_classes_and_photographs_stay_distinct(tmp_path):
    for number, name in enumerate(ODD):
        (tmp_path / "source" / name).mkdir(parents=True)
        scene(number).save(tmp_path / "source" / name / f"{name[:200]}.png")
    raw = os.fsdecode(b"b\xff")
    (tmp_path / "source" / raw).mkdir()
    scene(len(ODD)).save(tmp_path / "a.png")
    (tmp_path / "a.png").rename(tmp_path / "source" / raw / f"{raw}.png")
    table = run(tmp_path)
    assert len(table) == len(ODD) + 1 == table["label"].nunique()
    assert set(table["outcome"]) == {KEPT}
    assert "return\\rhere/return\\rhere.png" in set(table["source"])
    assert read_manifest(tmp_path / "out/manifest.csv").equals(table)
    assert all((tmp_path / "out" / crop).is_file() for crop in table["crop"])
    assert len(list((tmp_path / "out/contact_sheets").iterdir())) == len(ODD) + 1
    (tmp_path / "out/exclude.txt").write_text("return\\rhere/return\\rhere.png\n")
    assert list(outcomes(run(tmp_path)).values()).count("excluded") == 1


def test_pipes_and_broken_links_are_unreadable_and_never_block(own):
    os.mkfifo(own / "source/ann/pipe.jpg")
    (own / "source/ann/link.jpg").symlink_to(own / "source/ann/pipe.jpg")
    (own / "source/ann/nowhere.jpg").symlink_to(own / "gone.jpg")
    table = rows(run(own))
    reasons = {name: table[f"ann/{name}.jpg"]["reason"] for name in ("pipe", "link", "nowhere")}
    assert reasons == {"pipe": "not a file", "link": "not a file", "nowhere": "broken link"}
