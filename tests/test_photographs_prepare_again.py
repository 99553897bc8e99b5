"""Preparing a folder again: changed photographs, interruptions and damaged files."""

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import ImageOps

from datasets.photographs.detection import Detector, detection_lines, read_detections
from datasets.photographs.manifest import KEPT, manifest_content, read_manifest
from datasets.photographs.options import FaceOptions
from datasets.photographs.prepare import prepare
from datasets.splits import DataUnavailableError
from tests.messy import copied, messy_folder, outcomes, rows, run, splits, tree
from tests.portraits import flower, folder, scene

ROOT = Path(__file__).parent.parent
NOWHERE = "no device"  # not a torch device: detection on it fails


@pytest.fixture(scope="module")
def messy(tmp_path_factory):
    return messy_folder(tmp_path_factory)


@pytest.fixture
def own(messy, tmp_path):
    return copied(messy, tmp_path)


def test_repeating_changes_nothing(own):
    made = [path for path in (own / "out").glob("c*/**/*") if path.is_file()]
    before, times = tree(own / "out"), [path.stat().st_mtime_ns for path in made]
    run(own)
    assert len(made) == 22 + 3  # crops and contact sheets
    assert tree(own / "out") == before
    assert [path.stat().st_mtime_ns for path in made] == times


def test_detection_runs_once_for_each_photograph(own):
    for name in ("empty", "text", "corrupt"):  # unreadable files are read again
        (own / f"source/ann/{name}.jpg").unlink()
    with pytest.raises(RuntimeError, match="device"):
        Detector(NOWHERE)
    assert len(run(own, NOWHERE)) == 29


def test_added_photographs_leave_existing_splits_alone(own):
    before = splits(read_manifest(own / "out/manifest.csv"))
    for number in range(10):
        scene(61 + number).save(own / f"source/bob/ {number}.png")
    scene(3).save(own / "source/ann/ a copy that comes first.png")
    folder(own / "source", cid=3)
    scene(71).save(own / "source/cid/0.png")  # same name as the first of ann, another photograph
    table = run(own)
    after = splits(table)
    assert {source: after[source] for source in before} == before
    assert outcomes(table)["ann/ a copy that comes first.png"] == "duplicate"
    bob = table[(table["label"] == "bob") & (table["outcome"] == KEPT)]["split"].value_counts()
    assert bob.to_dict() == {"train": 14, "valid": 4, "test": 2}
    assert (own / "out/contact_sheets/cid.1.jpg").exists()


def test_a_changed_photograph_is_processed_again(own):
    before = rows(read_manifest(own / "out/manifest.csv"))["ann/5.png"]
    old = tree(own / "out")
    ImageOps.mirror(scene(5)).save(own / "source/ann/5.png")
    flower().save(own / "source/ann/6.png")
    after = rows(run(own))
    assert after["ann/6.png"]["outcome"] == "no_face"
    assert after["ann/5.png"]["split"] == before["split"]
    assert abs(240 - after["ann/5.png"]["right"] - before["left"]) < 6
    changed = {name for name, content in tree(own / "out").items() if old[name] != content}
    ours = {"manifest.csv", "found.jsonl", "contact_sheets/ann.1.jpg"}
    assert changed == ours | {before["crop"]}


def test_the_crop_of_a_deleted_photograph_is_removed(own):
    before = tree(own / "out")
    crop = rows(read_manifest(own / "out/manifest.csv"))["ann/5.png"]["crop"]
    (own / "source/ann/5.png").unlink()
    shutil.rmtree(own / "source/bob")
    table = run(own)
    assert "ann/5.png" not in set(table["source"])
    assert b"ann/5.png" not in tree(own / "out")["found.jsonl"]
    gone = before.keys() - tree(own / "out").keys()
    bobs = {name for name in before if name.split("/")[1:2] == ["bob"]}
    assert gone == bobs | {crop, "contact_sheets/bob.1.jpg"}
    assert not (own / "out/crops/bob").exists()


def test_excluded_photographs_are_removed_and_can_be_restored(own):
    before, exclude = tree(own / "out"), own / "out/exclude.txt"
    crops = {row["crop"]: source for source, row in rows(run(own)).items()}
    crop = next(crop for crop in crops if crops[crop] == "bob/7.png")
    exclude.write_text(f"bob/3.png\nann/3.png\n{crop}\nann/unwanted.png")
    after = outcomes(run(own))
    assert [after[name] for name in ("bob/3.png", "ann/3.png", "bob/7.png")] == ["excluded"] * 3
    assert after["bob/half of 3.png"] == after["ann/copy of 3.jpg"] == KEPT
    assert not (own / "out" / crop).exists()
    exclude.write_text("")
    after = outcomes(run(own))
    assert after["bob/7.png"] == after["ann/unwanted.png"] == KEPT
    assert tree(own / "out")[crop] == before[crop]


def test_a_deleted_crop_is_restored(own):
    before = tree(own / "out")
    shutil.rmtree(own / "out/crops/ann")
    run(own)
    assert tree(own / "out") == before


def test_detections_in_large_pictures_of_older_versions_are_made_again(tmp_path, monkeypatch):
    source = folder(tmp_path / "source", ann=3, bob=3)
    scene(3).resize((900, 900)).save(source / "ann/large.png")
    run(tmp_path)
    shutil.rmtree(tmp_path / "out/crops")
    for module in ("pictures", "prepare"):
        monkeypatch.setattr(f"datasets.photographs.{module}.LARGE", 200_000)
    run(tmp_path)
    (tmp_path / "fresh").mkdir()
    (tmp_path / "fresh/source").symlink_to(source)
    run(tmp_path / "fresh")
    assert tree(tmp_path / "out/crops") == tree(tmp_path / "fresh/out/crops")


@pytest.mark.parametrize("name", ["found.jsonl", "crops", "crops/ann", "contact_sheets"])
def test_a_link_that_would_be_written_through_is_an_error(own, tmp_path, name):
    place = own / "out" / name
    place.rename(tmp_path / "moved")
    place.symlink_to(tmp_path / "moved")
    with pytest.raises(ValueError, match=f"symbolic links, got .*{name}: remove it"):
        run(own)


@pytest.mark.parametrize("keep", [0.0, 0.5, 0.9999])
def test_an_interrupted_preparation_continues_to_the_same_result(own, keep):
    before, found = tree(own / "out"), own / "out/found.jsonl"
    found.write_bytes(before["found.jsonl"][: int(keep * len(before["found.jsonl"]))])
    (own / "out/manifest.csv").unlink()
    shutil.rmtree(own / "out/contact_sheets")
    crops = sorted((own / "out/crops").rglob("*.png"))
    for crop in crops[int(keep * len(crops)) :]:
        crop.unlink()
    run(own)
    assert same(tree(own / "out"), before)


def test_a_forged_cache_writes_nothing_outside_the_folder(own):
    """Somebody may have sent the prepared folder together with the photographs."""
    before, path = tree(own / "out"), own / "out/found.jsonl"
    forged = [replace(each, label="../../away") for each in read_detections(path).values()]
    path.write_bytes(detection_lines(forged))
    shutil.rmtree(own / "out/crops")
    run(own)
    assert tree(own / "out") == before
    assert sorted(each.name for each in own.iterdir()) == ["out", "source"]


@pytest.mark.parametrize(
    ("column", "forged"),
    [("label", "../away"), ("label", ".."), ("crop", "crops/../../away.png"), ("crop", "/x.png")],
)
def test_a_forged_manifest_names_nothing_outside_the_folder(own, column, forged):
    path, away = own / "out/manifest.csv", own / "out/away.1.jpg"  # a page of the class ../away
    away.write_bytes(b"mine")
    table = read_manifest(path)
    table.loc[0, column] = forged
    path.write_bytes(manifest_content(table))
    with pytest.raises(DataUnavailableError, match="a class or a crop is outside its folder"):
        run(own)
    assert away.read_bytes() == b"mine"


def same(one, other):
    """Byte for byte, except for detections: another batch size can change their rounding."""
    found, expected = one.pop("found.jsonl"), other.pop("found.jsonl")
    return one == other and len(found.splitlines()) == len(expected.splitlines())


def test_a_killed_preparation_continues_to_the_same_result(messy, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    shutil.copy(messy / "out/exclude.txt", out)
    code = "import sys; from pathlib import Path; from datasets.photographs.prepare import *; "
    code += "prepare(Path(sys.argv[1]), Path(sys.argv[2]), FaceOptions(), 'cpu')"
    words = [sys.executable, "-c", code, str(messy / "source"), str(out)]
    process = subprocess.Popen(words, cwd=ROOT, stderr=subprocess.DEVNULL)
    while process.poll() is None and not (out / "found.jsonl").exists():
        time.sleep(0.002)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not (out / "manifest.csv").exists()
    prepare(messy / "source", out, FaceOptions(), "cpu")
    assert tree(out) == tree(messy / "out")


def test_contact_sheets_that_failed_are_drawn_the_next_time(own):
    (own / "out/exclude.txt").write_text("ann/0.png\nbob/0.png\nann/unwanted.png\n")
    shutil.copytree(own / "out", own / "other")
    prepare(own / "source", own / "out", FaceOptions(), "cpu")
    expected = tree(own / "out")
    shutil.rmtree(own / "out")
    (own / "other").rename(own / "out")
    page = own / "out/contact_sheets/ann.1.jpg"
    page.unlink()
    (page / "in the way").mkdir(parents=True)
    with pytest.raises(OSError, match=r"ann\.1\.jpg"):
        run(own)
    shutil.rmtree(page)
    run(own)
    assert tree(own / "out") == expected


def test_swapped_photographs_swap_their_crops(tmp_path):
    """Although size and modification time stay the same."""
    source = folder(tmp_path / "source", ann=1, bob=1)
    one, other = source / "ann/0.png", source / "bob/0.png"
    size = max(path.stat().st_size for path in (one, other))
    for path in (one, other):
        path.write_bytes(path.read_bytes().ljust(size, b" "))
        os.utime(path, ns=(0, 0))
    before = [(tmp_path / "out" / crop).read_bytes() for crop in run(tmp_path)["crop"]]
    one.rename(source / "x")
    other.rename(one)
    (source / "x").rename(other)
    after = [(tmp_path / "out" / crop).read_bytes() for crop in run(tmp_path)["crop"]]
    assert after == before[::-1]


def test_damaged_crops_are_restored(own):
    before = tree(own / "out")
    paths = sorted((own / "out/crops").rglob("*.png"))
    paths[0].write_bytes(paths[0].read_bytes()[:100])
    paths[1].write_bytes(b"")
    run(own)
    assert tree(own / "out") == before


def test_an_unknown_split_is_reassigned(own):
    path = own / "out/manifest.csv"
    table = read_manifest(path)
    path.write_bytes(manifest_content(table.replace({"split": {"train": "foo"}})))
    assert set(run(own)["split"]) == {"", "train", "valid", "test"}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("options.json", b"[]", r"options\.json is damaged: use another out, or delete"),
        ("options.json", b"{", r"options\.json is damaged: use another out, or delete"),
        ("exclude.txt", b"\xff\xfea", r"exclude\.txt is not UTF-8 text"),
        ("manifest.csv", b"x", r"manifest\.csv is damaged .*: delete it"),
    ],
)
def test_damaged_files_are_named(own, name, content, message):
    (own / "out" / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        run(own)


def test_invalid_cached_detections_are_recomputed(own):
    before, path = tree(own / "out"), own / "out/found.jsonl"
    lines = path.read_bytes().splitlines()
    lines[1] = lines[1].replace(b'"hashes":["', b'"hashes":["zz')
    lines[2] = b"[]"
    path.write_bytes(b"\n".join(lines))
    prepare(own / "source", own / "out", FaceOptions(), "cpu")
    after = tree(own / "out")
    assert {name for name in before if before[name] != after[name]} <= {"found.jsonl"}
