"""The manifest: outcomes, duplicates and splits."""

import csv
from io import StringIO

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageOps

from datasets.photographs.detection import Detection, Face
from datasets.photographs.manifest import (
    COLUMNS,
    KEPT,
    MAX_HASH_DISTANCE,
    OUTCOMES,
    build_manifest,
    classify,
    find_duplicates,
    manifest_content,
    parse_manifest,
    read_manifest,
)
from datasets.photographs.options import FaceOptions
from datasets.photographs.pictures import HASH_SIDE, read_picture
from datasets.splits import DataUnavailableError
from tests.portraits import orl_root, scene

SHARES = {"train": 0.7, "valid": 0.2, "test": 0.1}
BITS = HASH_SIDE**2


def face(size, confidence=0.99):
    left_to_right = ((1.0, 2.0), (3.0, 2.0), (2.0, 3.0), (1.0, 4.0), (3.0, 4.0))
    return Face((10, 20, 10 + size, 20 + size + 5), left_to_right, confidence)


def detection(source, *faces, like="", **changes):
    """A detection; those with the same `like` are duplicates."""
    label = source.partition("/")[0] if "/" in source else ""
    random = np.random.default_rng(list((like or source).encode()))
    bits = random.bytes(HASH_SIDE**2 // 8).hex()
    return Detection(
        source, label, (1,), f"digest of {source}", (bits,), 640, 480, faces, **changes
    )


def manifest(*found, excluded=(), split_of=None, **options):
    return build_manifest(found, FaceOptions(**options), excluded, split_of or {})


def outcomes(table):
    return dict(zip(table["source"], table["outcome"], strict=True))


def splits(table):
    kept = table[table["outcome"] == KEPT]
    return dict(zip(kept["source"], kept["split"], strict=True))


@pytest.mark.parametrize(
    ("found", "outcome", "reason"),
    [
        (detection("a/1.png", face(50)), KEPT, ""),
        (detection("a/1.png", face(20, 0.9)), KEPT, ""),
        (detection("a/1.png"), "no_face", "MTCNN found no face"),
        (detection("a/1.png", face(19.96)), "too_small", "19.96 pixels, less than 20"),
        (detection("a/1.png", face(50, 0.8994)), "low_confidence", "0.899, less than 0.9"),
        (detection("a/1.png", face(5, 0.5)), "low_confidence", "0.500, less than 0.9"),
        (detection("a/1.png", problem="the file is empty"), "unreadable", "the file is empty"),
    ],
)
def test_every_photograph_has_an_outcome_and_a_reason(found, outcome, reason):
    [row] = classify(found, FaceOptions())
    assert (row.outcome, row.reason) == (outcome, reason)
    assert bool(row.crop) == (outcome == KEPT)


def test_which_face_chooses_among_faces_of_sufficient_quality():
    small, large, doubtful = face(30, 0.999), face(60, 0.95), face(90, 0.5)
    found = detection("a/1.png", doubtful, large, small)
    chosen = {
        which: [row.face for row in classify(found, FaceOptions(which_face=which))]
        for which in ("largest", "most_confident", "all")
    }
    assert chosen == {
        "largest": [large],
        "most_confident": [small],
        "all": [doubtful, large, small],
    }


def test_with_all_faces_each_has_its_outcome_and_crop():
    found = detection("a/1.png", face(60), face(50, 0.5), face(40), face(10))
    rows = classify(found, FaceOptions(which_face="all"))
    assert [row.outcome for row in rows] == [KEPT, "low_confidence", KEPT, "too_small"]
    first, third = (row.crop for row in rows if row.crop)
    assert third == first.replace(".png", "_3.png")


def test_photographs_with_similar_names_have_different_crop_paths():
    names = ["a/1.png", "a/1.jpg", "a/x/1.png", "b/1.png", f"a/{'long' * 50}.png"]
    crops = [
        row.crop for name in names for row in classify(detection(name, face(50)), FaceOptions())
    ]
    assert len(set(crops)) == len(names)
    assert all(
        crop.startswith(f"crops/{name[0]}/") for crop, name in zip(crops, names, strict=True)
    )
    assert all(len(crop) < 80 for crop in crops)


def test_the_manifest_has_every_outcome_in_the_order_of_the_photographs():
    table = manifest(
        detection("a/0.png", face(50)),
        detection("a/1.png"),
        detection("a/2.png", face(10)),
        detection("a/3.png", face(50, 0.5)),
        detection("a/4.png", problem="damaged"),
        detection("a/5.png", face(50), like="a/0.png"),
        detection("a/6.png", face(50)),
        excluded={"a/6.png"},
    )
    assert tuple(table["outcome"]) == OUTCOMES
    assert tuple(table.columns) == COLUMNS
    assert list(table["duplicate_of"]) == ["", "", "", "", "", "a/0.png", ""]
    assert [bool(crop) for crop in table["crop"]] == [True] + 6 * [False]
    assert list(table["left"].isna()) == [False, True, False, False, True, False, False]
    first = table.iloc[0]
    assert tuple(first[["left", "top", "right", "bottom"]]) == (10, 20, 60, 75)
    assert tuple(first[["left_eye_x", "mouth_right_y", "width", "height"]]) == (1, 4, 640, 480)


def test_photographs_outside_class_folders_are_excluded():
    [row] = manifest(detection("1.png", face(50))).to_dict("records")
    assert (row["outcome"], row["reason"]) == ("excluded", "not in a class folder")


def test_a_single_face_is_excluded_by_its_crop():
    found = detection("a/1.png", face(60), face(50))
    first, second = manifest(found, which_face="all")["crop"]
    table = manifest(found, which_face="all", excluded={first})
    assert list(table["outcome"]) == ["excluded", KEPT]
    assert list(table["crop"]) == ["", second]


def test_all_faces_of_a_photograph_are_in_the_same_split():
    found = [detection(f"a/{number}.png", face(60), face(50), face(40)) for number in range(10)]
    table = manifest(*found, which_face="all")
    parts = table.groupby("source")["split"].agg(set)
    assert all(len(part) == 1 for part in parts)
    assert parts.map(min).value_counts().to_dict() == {"train": 7, "valid": 2, "test": 1}


def test_each_class_of_ten_is_split_seven_two_one():
    found = [
        detection(f"{label}/{number}.png", face(50)) for label in "abcdefg" for number in range(10)
    ]
    counts = manifest(*found).groupby("label")["split"].value_counts().unstack()
    assert (counts == {"train": 7, "valid": 2, "test": 1}).all(axis=None)
    assert len(counts) == 7


def test_only_kept_photographs_are_split():
    found = [detection(f"a/{number}.png", face(50)) for number in range(10)]
    table = manifest(
        *found, detection("a/no.png"), detection("a/same.png", face(50), like="a/3.png")
    )
    assert sorted(splits(table)) == [one.source for one in found]
    assert not table[table["outcome"] != KEPT]["split"].any()


def test_a_photograph_with_a_split_is_never_a_duplicate_of_a_new_one():
    old, new = (
        detection("b/old.png", face(50), like="same"),
        detection("a/new.png", face(50), like="same"),
    )
    assert outcomes(manifest(new, old)) == {"a/new.png": KEPT, "b/old.png": "duplicate"}
    table = manifest(new, old, split_of={"b/old.png": "test"})
    assert outcomes(table) == {"a/new.png": "duplicate", "b/old.png": KEPT}
    assert splits(table) == {"b/old.png": "test"}
    assert table["reason"][0] == "the same picture as b/old.png, of class b"


def test_a_copy_of_a_rejected_photograph_is_kept():
    copy = detection("a/copy.png", face(50), like="same")
    for other in (detection("a/0.png", like="same"), detection("a/0.png", face(9), like="same")):
        assert outcomes(manifest(other, copy))["a/copy.png"] == KEPT
    shown = detection("a/0.png", face(50), like="same")
    assert outcomes(manifest(shown, copy, excluded={"a/0.png"}))["a/copy.png"] == KEPT


def test_unreadable_photographs_are_not_duplicates():
    broken = [detection(f"a/{number}.png", like="same", problem="damaged") for number in range(3)]
    assert set(outcomes(manifest(*broken)).values()) == {"unreadable"}


def test_a_manifest_is_read_as_it_was_written(tmp_path):
    names = [
        "NA/null.png",
        'nan/a "quoted", name.png',
        "1/007.png",
        "x/two\nlines\r.png",
        "é/ß.png",
    ]
    table = manifest(*(detection(name, face(50)) for name in names), detection("None/1.png"))
    path = tmp_path / "manifest.csv"
    for content in (manifest_content(table), table.to_csv(index=False).encode()):  # as before 1.1
        path.write_bytes(content)
        pd.testing.assert_frame_equal(read_manifest(path), table, check_dtype=False)
        assert list(read_manifest(path)["source"]) == [*names, "None/1.png"]


def test_no_name_is_a_formula_to_a_spreadsheet(tmp_path):
    names = ["=cmd|'x'!A1", "+1", "-1", "@sum", "'=quoted", "''-twice", "'plain", "\t=1"]
    table = manifest(*(detection(f"{name}/1.png", face(50)) for name in names))
    content = manifest_content(table)
    cells = csv.reader(StringIO(content.decode()))
    assert not [cell for row in cells for cell in row if cell[:1] in ("=", "+", "-", "@", "\t")]
    assert list(parse_manifest(content)["label"]) == names


def test_any_change_of_a_bit_is_noticed(tmp_path):
    table = manifest(*(detection(f"a/{number}.png", face(50)) for number in range(3)))
    content, path = manifest_content(table), tmp_path / "manifest.csv"
    for place in range(0, 8 * len(content), 7):
        changed = bytearray(content)
        changed[place // 8] ^= 1 << place % 8
        path.write_bytes(changed)
        try:
            found = read_manifest(path)
        except DataUnavailableError:
            continue
        pd.testing.assert_frame_equal(found, table, check_dtype=False)  # a bit that means nothing


def test_a_missing_manifest_is_an_error_that_says_what_to_do(tmp_path):
    with pytest.raises(DataUnavailableError, match="does not exist: run prepare_faces first"):
        read_manifest(tmp_path / "manifest.csv")


@pytest.mark.parametrize(
    "damage", ["empty", "binary", "half a row", "columns", "outcome", "number", "huge"]
)
@pytest.mark.parametrize("checked", [True, False])
def test_a_damaged_manifest_is_an_error_that_says_what_to_do(tmp_path, damage, checked):
    path = tmp_path / "manifest.csv"
    table = manifest(detection("a/1.png", face(50)), detection("a/2.png", face(50)))
    text = manifest_content(table).decode() if checked else table.to_csv(index=False)
    damaged = {
        "empty": "",
        "binary": "\x00\xff",
        "half a row": text[:-30],
        "columns": text.replace("outcome", "result"),
        "outcome": text.replace(",kept,", ",fine,"),
        "number": text.replace("0.99,", "sure,"),
        "huge": text.replace(f",{table['width'][0]},", f",{10**30},"),
    }
    path.write_bytes(damaged[damage].encode("latin-1"))
    with pytest.raises(DataUnavailableError, match=r"is damaged \(.+\): delete it and") as error:
        read_manifest(path)
    assert "\n" not in str(error.value)


def hashed(*ones):
    """A hash with ones in the given ranges: (first, number)."""
    bits = np.zeros(BITS, dtype=np.uint8)
    for first, number in ones:
        bits[first : first + number] = 1
    return (np.packbits(bits).tobytes().hex(),)


def hash_of(path):
    return read_picture(path).hashes


def test_pictures_are_duplicates_up_to_the_maximum_distance():
    hashes = {
        "a": hashed(),
        "near": hashed((100, MAX_HASH_DISTANCE)),
        "far": hashed((200, MAX_HASH_DISTANCE + 1)),
    }
    assert find_duplicates(hashes, list(hashes)) == {"near": "a"}


def test_the_first_of_several_duplicates_is_kept():
    hashes = {"a": hashed(), "b": hashed((0, 1)), "c": hashed((0, 2))}
    assert find_duplicates(hashes, ["a", "b", "c"]) == {"b": "a", "c": "a"}
    assert find_duplicates(hashes, ["c", "a", "b"]) == {"a": "c", "b": "c"}


def test_a_duplicate_names_the_most_similar_kept_picture():
    hashes = {
        "a": hashed(),
        "b": hashed((0, MAX_HASH_DISTANCE + 9)),
        "c": hashed((0, MAX_HASH_DISTANCE)),
    }
    assert find_duplicates(hashes, ["a", "b", "c"]) == {"c": "b"}


def test_duplicates_are_compared_with_kept_pictures_only():
    hashes = {
        "a": hashed(),
        "b": hashed((0, MAX_HASH_DISTANCE)),
        "c": hashed((0, 2 * MAX_HASH_DISTANCE)),
    }
    assert find_duplicates(hashes, ["a", "b", "c"]) == {"b": "a"}


def test_a_single_picture_has_no_duplicates():
    assert find_duplicates({}, []) == {}
    assert find_duplicates({"a": hashed()}, ["a"]) == {}


@pytest.mark.parametrize("side", [120, 240, 480])
@pytest.mark.parametrize("quality", [50, 95])
def test_scenes_are_distinct_and_their_copies_are_duplicates(tmp_path, side, quality):
    hashes = {}
    for seed in range(6):
        scene(seed).save(tmp_path / "a.png")
        hashes[f"scene {seed}"] = hash_of(tmp_path / "a.png")
        scene(seed).resize((side, side)).save(tmp_path / "a.1.jpg", quality=quality)
        hashes[f"copy {seed}"] = hash_of(tmp_path / "a.1.jpg")
    expected = {f"copy {seed}": f"scene {seed}" for seed in range(6)}
    assert find_duplicates(hashes, sorted(hashes, reverse=True)) == expected


@pytest.mark.real_data
@pytest.mark.skipif(orl_root() is None, reason="the ORL faces are not on this machine")
def test_orl_faces_are_distinct_and_all_their_copies_are_duplicates(tmp_path):
    originals, copies, halves, mirrored = {}, {}, {}, {}
    for path in sorted(orl_root().rglob("*.pgm")):
        name = f"{path.parent.name}/{path.stem}"
        originals[name] = hash_of(path)
        with Image.open(path) as image:
            image.save(tmp_path / "a.1.jpg", quality=50)
            ImageOps.mirror(image).save(tmp_path / "b.jpg", quality=75)
            image.resize((image.width // 2, image.height // 2)).save(tmp_path / "a.png")
        copies[f"{name} q50"] = hash_of(tmp_path / "a.1.jpg")
        mirrored[f"{name} mirrored"] = hash_of(tmp_path / "b.jpg")
        halves[f"{name} half"] = hash_of(tmp_path / "a.png")
    assert len(originals) == 400
    assert find_duplicates(originals, list(originals)) == {}
    for some in (copies, halves, mirrored):
        found = find_duplicates(originals | some, [*originals, *some])
        assert found == {name: name.rpartition(" ")[0] for name in some}
