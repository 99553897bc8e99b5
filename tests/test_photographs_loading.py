import os
import shutil
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from datasets import load_splits
from datasets.faces import faces
from datasets.photographs import loading
from datasets.photographs.manifest import KEPT, read_manifest
from datasets.photographs.options import FaceOptions
from datasets.photographs.prepare import prepare
from datasets.splits import DataUnavailableError
from tests.portraits import flower, folder

PARTS = ("train", "valid", "test")


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Three classes; the last one has no face."""
    root = folder(tmp_path_factory.mktemp("photographs"), bob=6, Ann=10, zoe=0)
    flower().save(root / "zoe/flower.png")
    return root


@pytest.fixture(scope="module")
def prepared(photographs, tmp_path_factory):
    out = tmp_path_factory.mktemp("prepared") / "out"
    prepare(photographs, out, FaceOptions(), "cpu")
    return out


@pytest.fixture
def own(prepared, tmp_path):
    return shutil.copytree(prepared, tmp_path / "own")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/weight-loss"


def tensors(images):
    return [tensor for part in PARTS for tensor in getattr(images, part)]


def equal(one, other):
    return all(torch.equal(*pair) for pair in zip(tensors(one), tensors(other), strict=True))


def edit_manifest(folder, change):
    table = read_manifest(folder / "manifest.csv")
    change(table).to_csv(folder / "manifest.csv", index=False)


def first_crop(folder):
    return sorted((folder / "crops/Ann").iterdir())[0]


def test_images_and_labels_follow_the_manifest(prepared):
    images = faces(prepared)
    table = read_manifest(prepared / "manifest.csv")
    table = table[table["outcome"] == KEPT].sort_values("crop")
    assert images.classes == ("Ann", "bob")
    assert (images.white, images.crop, images.mapped) == (255, 128, False)
    for part in PARTS:
        pixels, labels = getattr(images, part)
        rows = table[table["split"] == part]
        assert pixels.dtype == torch.uint8
        assert pixels.shape == (len(rows), 144, 144)
        assert [images.classes[label] for label in labels] == list(rows["label"])
        for crop, tensor in zip(rows["crop"], pixels, strict=True):
            with Image.open(prepared / crop) as image:
                assert np.array_equal(image, tensor)
    assert images.train[1].bincount().tolist() == [7, 4]
    assert images.valid[1].bincount().tolist() == [2, 1]
    assert images.test[1].bincount().tolist() == [1, 1]


def test_the_split_is_that_of_the_manifest_for_every_seed(prepared):
    splits, _ = load_splits("faces", str(prepared), seed=0)
    other, _ = load_splits("faces", str(prepared), seed=1)
    assert splits.digest == other.digest
    assert (len(splits.train), len(splits.valid), len(splits.test)) == (11, 3, 2)
    assert (splits.classes, splits.class_names) == (2, ("Ann", "bob"))
    assert splits.image_shape == (1, 128, 128)


def test_photographs_are_prepared_once_into_the_cache(photographs, prepared, cache, capsys):
    images = faces(photographs)
    [made] = [path for path in cache.iterdir() if path.is_dir()]
    assert images.source == str(made)
    assert equal(images, faces(prepared))
    assert f"preparing the photographs in {photographs}" in capsys.readouterr().err
    times = {path: path.stat().st_mtime_ns for path in made.rglob("*.png")}
    assert equal(faces(photographs), images)
    assert {path: path.stat().st_mtime_ns for path in made.rglob("*.png")} == times
    assert not {path.name for path in photographs.iterdir()} - {"Ann", "bob", "zoe"}


def test_added_photographs_are_prepared(photographs, cache, tmp_path):
    root = shutil.copytree(photographs, tmp_path / "photographs")
    shutil.rmtree(root / "Ann")
    shutil.rmtree(root / "zoe")
    with pytest.raises(DataUnavailableError, match="faces of at least two classes, got 1"):
        faces(root)
    (root / "Ann").mkdir()
    for number in range(3):
        shutil.copy(photographs / f"Ann/{number}.png", root / "Ann")
    assert faces(root).classes == ("Ann", "bob")


def test_an_unwritable_cache_is_an_error_that_says_what_to_do(photographs, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(
        DataUnavailableError, match=r"cannot be prepared into .*: run prepare_faces"
    ):
        faces(photographs)


@pytest.mark.parametrize("files", [None, [], ["loose.png"], ["notes/read.me"]])
def test_other_folders_and_files_are_rejected_as_data_root(tmp_path, cache, files, capsys):
    root = tmp_path / "root"
    for name in files or []:
        (root / name).parent.mkdir(parents=True)
        (root / name).touch()
    if files == []:
        root.mkdir()
    with pytest.raises(DataUnavailableError, match=r"^data_root: .* (photographs|folder)"):
        faces(root)
    assert capsys.readouterr().err == ""  # not "preparing the photographs"
    assert not cache.exists()


def test_a_partly_prepared_folder_is_rejected(own):
    (own / "manifest.csv").unlink()
    with pytest.raises(DataUnavailableError, match="is only partly prepared: run prepare_faces"):
        faces(own)


@pytest.mark.parametrize(
    ("content", "message"), [(None, "is missing, so that"), ("{}", "is damaged: run prepare_faces")]
)
def test_a_folder_that_does_not_say_how_its_faces_were_cut_is_rejected(own, content, message):
    (own / "options.json").unlink()
    if content:
        (own / "options.json").write_text(content)
    with pytest.raises(DataUnavailableError, match=rf"/options\.json {message}"):
        faces(own)


def test_a_damaged_manifest_is_rejected(own):
    (own / "manifest.csv").write_text("source,label\n")
    with pytest.raises(DataUnavailableError, match=r"manifest\.csv is damaged"):
        faces(own)


def test_a_kept_face_with_an_unknown_split_is_rejected(own):
    edit_manifest(own, lambda table: table.replace({"split": {"test": "tset"}}))
    with pytest.raises(DataUnavailableError, match="split of a kept face must be one of train, va"):
        faces(own)


@pytest.mark.parametrize("part", ["train", "valid", "test"])
def test_an_empty_split_is_rejected(own, part):
    other = {"train": "test", "valid": "test", "test": "train"}[part]
    edit_manifest(own, lambda table: table.replace({"split": {part: other}}))
    with pytest.raises(DataUnavailableError, match=f"has no {part} images: add photographs"):
        faces(own)


@pytest.mark.parametrize("mapped_bytes", [0, 2 << 30])
def test_a_missing_crop_is_reported(own, monkeypatch, mapped_bytes):
    monkeypatch.setattr(loading, "MAPPED_BYTES", mapped_bytes)
    first_crop(own).unlink()
    with pytest.raises(DataUnavailableError, match=r"\.png is missing: .*run prepare_faces again"):
        faces(own)


@pytest.mark.parametrize("damage", ["empty", "half", "text", "size", "pixel", "RGB", "P"])
@pytest.mark.parametrize("mapped_bytes", [0, 2 << 30])
def test_a_damaged_crop_is_reported(own, monkeypatch, damage, mapped_bytes):
    monkeypatch.setattr(loading, "MAPPED_BYTES", mapped_bytes)
    path = first_crop(own)
    content = path.read_bytes()
    if damage in ("RGB", "P"):
        Image.new(damage, (144, 144)).save(path)
    elif damage in ("size", "pixel"):
        Image.new("L", (1, 1) if damage == "pixel" else (144, 128)).save(path)
    else:
        half = content[: len(content) // 2]
        path.write_bytes({"empty": b"", "half": half, "text": b"no picture"}[damage])
    with pytest.raises(DataUnavailableError, match=r"\.png is damaged: run prepare_faces again"):
        faces(own)
    assert not list(own.glob("crops.*.bin"))


@pytest.mark.parametrize("mapped_bytes", [0, 2 << 30])
@pytest.mark.parametrize("what", ["pipe", "device", "bomb", "GIF"])
def test_what_is_no_crop_is_reported_at_once(own, monkeypatch, what, mapped_bytes):
    monkeypatch.setattr(loading, "MAPPED_BYTES", mapped_bytes)
    path = first_crop(own)
    path.unlink()
    if what == "pipe":
        os.mkfifo(path)
    elif what == "device":
        path.symlink_to("/dev/zero")
    elif what == "bomb":
        header = struct.pack(">4sIIBBBBB", b"IHDR", 30_000, 30_000, 8, 0, 0, 0, 0)
        chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk)
    else:
        Image.new("L", (144, 144)).save(path, what)
    with pytest.raises(DataUnavailableError, match=r"\.png is damaged: run prepare_faces again"):
        faces(own)


@pytest.mark.parametrize("name", [".crops.partial", "crops"])
def test_a_memory_map_is_never_written_through_a_link(own, tmp_path, monkeypatch, name):
    """Of a folder that someone else has made."""
    monkeypatch.setattr(loading, "MAPPED_BYTES", 0)
    precious = tmp_path / "precious"
    precious.write_bytes(b"12345")
    if name == "crops":
        faces(own)
        (path,) = own.glob("crops.*.bin")
        path.unlink()
        path.symlink_to(precious)
    else:
        (own / name).symlink_to(precious)
    assert faces(own).mapped
    assert precious.read_bytes() == b"12345"
    (path,) = own.glob("crops.*.bin")
    assert not path.is_symlink()


def test_memory_mapped_images_equal_images_in_memory(prepared, own, monkeypatch):
    monkeypatch.setattr(loading, "MAPPED_BYTES", 0)
    images = faces(own)
    assert images.mapped
    [path] = own.glob("crops.*.bin")
    assert path.stat().st_size == 16 * 144 * 144
    made = path.stat().st_mtime_ns
    assert equal(images, faces(own))
    assert path.stat().st_mtime_ns == made
    monkeypatch.undo()
    assert equal(images, faces(prepared))
    assert not faces(prepared).mapped


def test_the_memory_map_is_rebuilt_when_a_crop_changes_or_disappears(own, monkeypatch):
    monkeypatch.setattr(loading, "MAPPED_BYTES", 0)
    before = faces(own)
    status = first_crop(own).stat()
    Image.new("L", (144, 144), 77).save(first_crop(own))
    os.utime(first_crop(own), ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    after = faces(own)
    changed = [
        (pixels == 77).all((1, 2)).sum() for pixels, _ in (after.train, after.valid, after.test)
    ]
    assert sum(changed) == 1
    assert not equal(before, after)
    edit_manifest(own, lambda table: table.drop(index=table.index[table["split"] == "train"][0]))
    assert len(faces(own).train[0]) == len(after.train[0]) - 1
    assert len(list(own.glob("crops.*.bin"))) == 1
