"""Odd names, odd files, and folders that somebody has damaged."""

import os

import pytest

from datasets.photographs.files import LONGEST_NAME, path_text, short_name
from datasets.photographs.manifest import KEPT, read_manifest
from datasets.photographs.options import FaceOptions
from datasets.photographs.prepare import prepare
from tests.messy import copied, messy_folder, outcomes, rows, run, tree
from tests.portraits import folder, scene

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
    return messy_folder(tmp_path_factory.mktemp("messy"))


@pytest.fixture
def own(messy, tmp_path):
    return copied(messy, tmp_path)


def test_any_name_of_a_class_or_a_photograph_is_told_apart(tmp_path):
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


def test_names_of_files_are_short_and_stay_different():
    assert short_name("ann") == "ann"
    long = [short_name("é" * 60 + end) for end in "ab"]
    assert long[0] != long[1]
    assert all(len(name.encode()) <= LONGEST_NAME + 9 for name in long)
    assert path_text("a/b\\n") != path_text("a/b\n")


def test_what_is_no_file_is_unreadable_and_not_waited_for(own):
    os.mkfifo(own / "source/ann/pipe.jpg")
    (own / "source/ann/link.jpg").symlink_to(own / "source/ann/pipe.jpg")
    (own / "source/ann/nowhere.jpg").symlink_to(own / "gone.jpg")
    table = rows(run(own))
    reasons = {name: table[f"ann/{name}.jpg"]["reason"] for name in ("pipe", "link", "nowhere")}
    assert reasons == {"pipe": "not a file", "link": "not a file", "nowhere": "a link to nothing"}


def test_photographs_that_change_places_change_crops(tmp_path):
    """Though neither their size nor their time tells."""
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


def test_damaged_crops_are_made_again(own):
    before = tree(own / "out")
    paths = sorted((own / "out/crops").rglob("*.png"))
    paths[0].write_bytes(paths[0].read_bytes()[:100])
    paths[1].write_bytes(b"")
    run(own)
    assert tree(own / "out") == before


def test_a_split_that_is_none_is_given_anew(own):
    path = own / "out/manifest.csv"
    before = path.read_text()
    path.write_text(before.replace(",train,", ",foo,"))
    assert set(run(own)["split"]) == {"", "train", "valid", "test"}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("options.json", b"[]", r"options\.json is damaged: name another out, or delete"),
        ("options.json", b"{", r"options\.json is damaged: name another out, or delete"),
        ("exclude.txt", b"\xff\xfea", r"exclude\.txt is not UTF-8 text"),
        ("manifest.csv", b"x", r"manifest\.csv is damaged .*: delete it"),
    ],
)
def test_damaged_files_are_named(own, name, content, message):
    (own / "out" / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        run(own)


def test_findings_that_make_no_sense_are_found_anew(own):
    before, path = tree(own / "out"), own / "out/found.jsonl"
    lines = path.read_bytes().splitlines()
    lines[1] = lines[1].replace(b'"hashes":["', b'"hashes":["zz')
    lines[2] = b"[]"
    path.write_bytes(b"\n".join(lines))
    prepare(own / "source", own / "out", FaceOptions(), "cpu")
    after = tree(own / "out")
    assert {name for name in before if before[name] != after[name]} <= {"found.jsonl"}
