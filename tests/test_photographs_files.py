import pytest

from datasets.photographs.files import (
    LONGEST_NAME,
    NO_CLASS,
    find_photographs,
    path_text,
    short_name,
)
from datasets.splits import DataUnavailableError


def test_photographs_are_found_at_any_depth_in_sorted_order(tmp_path):
    names = ["b/1.JPG", "a/x/y/2.png", "a/1.heic", "loose.jpg", "a/notes.txt", ".hidden/1.jpg"]
    for name in [*names, "a/.hidden.jpg", "NA/1.jpg"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "a/x/loop").symlink_to(tmp_path / "a", target_is_directory=True)
    (tmp_path / "a/gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    found = [(photograph.source, photograph.label) for photograph in find_photographs(tmp_path)]
    assert found == [
        ("NA/1.jpg", "NA"),
        ("a/1.heic", "a"),
        ("a/gone.jpg", "a"),
        ("a/x/y/2.png", "a"),
        ("b/1.JPG", "b"),
        ("loose.jpg", ""),
    ]


def test_class_folders_may_be_links(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/1.jpg").touch()
    (tmp_path / "photographs").mkdir()
    (tmp_path / "photographs/a").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    assert [one.source for one in find_photographs(tmp_path / "photographs")] == ["a/1.jpg"]


def test_folders_without_photographs_are_an_error(tmp_path):
    with pytest.raises(DataUnavailableError, match="is not a folder"):
        find_photographs(tmp_path / "nowhere")
    with pytest.raises(DataUnavailableError, match="has no photographs"):
        find_photographs(tmp_path)
    (tmp_path / "1.jpg").touch()
    with pytest.raises(DataUnavailableError, match="photographs but no class folders"):
        find_photographs(tmp_path)


def test_a_class_cannot_have_the_name_of_no_class(tmp_path):
    (tmp_path / NO_CLASS).mkdir()
    (tmp_path / NO_CLASS / "1.jpg").touch()
    with pytest.raises(DataUnavailableError, match=r"/\(no class\) has a reserved name: rename"):
        find_photographs(tmp_path)


def test_file_names_are_short_and_stay_distinct():
    assert short_name("ann") == "ann"
    long = [short_name("é" * 60 + end) for end in "ab"]
    assert long[0] != long[1]
    assert all(len(name.encode()) <= LONGEST_NAME + 9 for name in long)
    assert path_text("a/b\\n") != path_text("a/b\n")
