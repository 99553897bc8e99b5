import numpy as np
import pandas as pd
import pytest

from datasets.photographs.detection import Detection, Face
from datasets.photographs.manifest import (
    COLUMNS,
    KEPT,
    OUTCOMES,
    build_manifest,
    classify,
    read_manifest,
)
from datasets.photographs.options import FaceOptions
from datasets.photographs.pictures import HASH_SIDE
from datasets.splits import DataUnavailableError


def face(size, confidence=0.99):
    left_to_right = ((1.0, 2.0), (3.0, 2.0), (2.0, 3.0), (1.0, 4.0), (3.0, 4.0))
    return Face((10, 20, 10 + size, 20 + size + 5), left_to_right, confidence)


def detection(source, *faces, like="", **changes):
    """What could have been found; photographs `like` the same are duplicates."""
    label = source.partition("/")[0] if "/" in source else ""
    random = np.random.default_rng(list((like or source).encode()))
    look = random.bytes(HASH_SIDE**2 // 8).hex()
    return Detection(
        source, label, (1,), f"digest of {source}", (look,), 640, 480, faces, **changes
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
def test_every_photograph_has_an_outcome_and_says_why(found, outcome, reason):
    [row] = classify(found, FaceOptions())
    assert (row.outcome, row.reason) == (outcome, reason)
    assert bool(row.crop) == (outcome == KEPT)


def test_which_face_chooses_among_those_that_are_good_enough():
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


def test_all_faces_have_outcomes_and_crops_of_their_own():
    found = detection("a/1.png", face(60), face(50, 0.5), face(40), face(10))
    rows = classify(found, FaceOptions(which_face="all"))
    assert [row.outcome for row in rows] == [KEPT, "low_confidence", KEPT, "too_small"]
    first, third = (row.crop for row in rows if row.crop)
    assert third == first.replace(".png", "_3.png")


def test_crops_of_photographs_of_like_names_have_different_paths():
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


def test_photographs_in_no_class_folder_are_excluded():
    [row] = manifest(detection("1.png", face(50))).to_dict("records")
    assert (row["outcome"], row["reason"]) == ("excluded", "lies in no class folder")


def test_one_face_of_several_can_be_excluded_by_its_crop():
    found = detection("a/1.png", face(60), face(50))
    first, second = manifest(found, which_face="all")["crop"]
    table = manifest(found, which_face="all", excluded={first})
    assert list(table["outcome"]) == ["excluded", KEPT]
    assert list(table["crop"]) == ["", second]


def test_all_faces_of_a_photograph_are_in_one_part():
    found = [detection(f"a/{number}.png", face(60), face(50), face(40)) for number in range(10)]
    table = manifest(*found, which_face="all")
    parts = table.groupby("source")["split"].agg(set)
    assert all(len(part) == 1 for part in parts)
    assert parts.map(min).value_counts().to_dict() == {"train": 7, "valid": 2, "test": 1}


def test_seven_classes_of_ten_are_split_seven_two_one_each():
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


def test_a_photograph_that_had_a_place_is_no_duplicate_of_a_newcomer():
    old, new = (
        detection("b/old.png", face(50), like="same"),
        detection("a/new.png", face(50), like="same"),
    )
    assert outcomes(manifest(new, old)) == {"a/new.png": KEPT, "b/old.png": "duplicate"}
    table = manifest(new, old, split_of={"b/old.png": "test"})
    assert outcomes(table) == {"a/new.png": "duplicate", "b/old.png": KEPT}
    assert splits(table) == {"b/old.png": "test"}
    assert table["reason"][0] == "the same picture as b/old.png, of class b"


def test_the_copy_of_a_photograph_that_is_not_kept_stays():
    copy = detection("a/copy.png", face(50), like="same")
    for other in (detection("a/0.png", like="same"), detection("a/0.png", face(9), like="same")):
        assert outcomes(manifest(other, copy))["a/copy.png"] == KEPT
    shown = detection("a/0.png", face(50), like="same")
    assert outcomes(manifest(shown, copy, excluded={"a/0.png"}))["a/copy.png"] == KEPT


def test_unreadable_photographs_are_no_duplicates_of_each_other():
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
    table.to_csv(tmp_path / "manifest.csv", index=False)
    again = read_manifest(tmp_path / "manifest.csv")
    pd.testing.assert_frame_equal(again, table, check_dtype=False)
    assert list(again["source"]) == [*names, "None/1.png"]


def test_no_manifest_says_what_to_do(tmp_path):
    with pytest.raises(DataUnavailableError, match="is not there: run prepare_faces first"):
        read_manifest(tmp_path / "manifest.csv")


@pytest.mark.parametrize(
    "damage", ["empty", "binary", "half a row", "columns", "outcome", "number"]
)
def test_a_damaged_manifest_says_what_to_do(tmp_path, damage):
    path = tmp_path / "manifest.csv"
    text = manifest(detection("a/1.png", face(50)), detection("a/2.png", face(50))).to_csv(
        index=False
    )
    damaged = {
        "empty": "",
        "binary": "\x00\xff",
        "half a row": text[:-30],
        "columns": text.replace("outcome", "result"),
        "outcome": text.replace(",kept,", ",fine,"),
        "number": text.replace("0.99,", "sure,"),
    }
    path.write_bytes(damaged[damage].encode("latin-1"))
    with pytest.raises(DataUnavailableError, match=r"is damaged \(.+\): delete it, and") as error:
        read_manifest(path)
    assert "\n" not in str(error.value)
