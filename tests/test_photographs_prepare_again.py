"""Preparing a folder a second time: changed photographs, interruptions."""

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import ImageOps

from datasets.photographs.detection import Detector
from datasets.photographs.manifest import KEPT, read_manifest
from datasets.photographs.options import FaceOptions
from datasets.photographs.prepare import prepare
from tests.messy import copied, messy_folder, outcomes, rows, run, splits, tree
from tests.portraits import flower, folder, scene

ROOT = Path(__file__).parent.parent
NOWHERE = "no device"  # of torch's: who looks for faces on it fails


@pytest.fixture(scope="module")
def messy(tmp_path_factory):
    return messy_folder(tmp_path_factory.mktemp("messy"))


@pytest.fixture
def own(messy, tmp_path):
    return copied(messy, tmp_path)


def test_the_same_again_changes_nothing(own):
    made = [path for path in (own / "out").glob("c*/**/*") if path.is_file()]
    before, times = tree(own / "out"), [path.stat().st_mtime_ns for path in made]
    run(own)
    assert len(made) == 22 + 3  # crops and contact sheets
    assert tree(own / "out") == before
    assert [path.stat().st_mtime_ns for path in made] == times


def test_no_face_is_looked_for_twice(own):
    for name in ("empty", "text", "corrupt"):  # these are tried again
        (own / f"source/ann/{name}.jpg").unlink()
    with pytest.raises(RuntimeError, match="device"):
        Detector(NOWHERE)
    assert len(run(own, NOWHERE)) == 29


def test_photographs_that_come_leave_the_places_of_the_others(own):
    before = splits(read_manifest(own / "out/manifest.csv"))
    for number in range(10):
        scene(61 + number).save(own / f"source/bob/ {number}.png")
    scene(3).save(own / "source/ann/ a copy that comes first.png")
    folder(own / "source", cid=3)
    scene(71).save(own / "source/cid/0.png")  # of another photograph than ann's first
    table = run(own)
    after = splits(table)
    assert {source: after[source] for source in before} == before
    assert outcomes(table)["ann/ a copy that comes first.png"] == "duplicate"
    bob = table[(table["label"] == "bob") & (table["outcome"] == KEPT)]["split"].value_counts()
    assert bob.to_dict() == {"train": 14, "valid": 4, "test": 2}
    assert (own / "out/contact_sheets/cid.1.jpg").exists()


def test_a_changed_photograph_is_looked_at_again(own):
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


def test_a_photograph_that_is_gone_takes_its_crop_along(own):
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


def test_what_is_excluded_goes_and_can_be_taken_back(own):
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


def test_a_crop_that_somebody_has_removed_is_made_again(own):
    before = tree(own / "out")
    shutil.rmtree(own / "out/crops/ann")
    run(own)
    assert tree(own / "out") == before


@pytest.mark.parametrize("keep", [0.0, 0.1, 0.5, 0.9999])
def test_what_an_interruption_has_cut_off_is_done_again(own, keep):
    before, found = tree(own / "out"), own / "out/found.jsonl"
    found.write_bytes(before["found.jsonl"][: int(keep * len(before["found.jsonl"]))])
    (own / "out/manifest.csv").unlink()
    shutil.rmtree(own / "out/contact_sheets")
    crops = sorted((own / "out/crops").rglob("*.png"))
    for crop in crops[int(keep * len(crops)) :]:
        crop.unlink()
    run(own)
    assert same(tree(own / "out"), before)


def same(one, other):
    """Byte for byte, but what was found: in a batch of another size it may differ by rounding."""
    found, expected = one.pop("found.jsonl"), other.pop("found.jsonl")
    return one == other and len(found.splitlines()) == len(expected.splitlines())


def test_a_killed_run_goes_on_to_the_same_result(messy, tmp_path):
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


def test_contact_sheets_that_could_not_be_drawn_are_drawn_the_next_time(own):
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
