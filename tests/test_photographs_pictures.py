import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from datasets.photographs.pictures import (
    MAX_PIXELS,
    UnreadableError,
    find_photographs,
    ignore_decoder_warnings,
    read_picture,
)
from datasets.splits import DataUnavailableError
from tests.portraits import portrait


@pytest.fixture(autouse=True)
def _quiet():
    with ignore_decoder_warnings():
        yield


def difference(path, expected):
    """Mean absolute difference in grey levels."""
    grey = np.asarray(read_picture(path).grey, dtype=float)
    return np.abs(grey - np.asarray(expected.convert("L"), dtype=float)).mean()


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("a.jpg", "RGB"),
        ("a.JPEG", "L"),
        ("a.png", "RGB"),
        ("a.webp", "RGB"),
        ("a.bmp", "RGB"),
        ("a.pgm", "L"),
        ("a.tiff", "RGB"),
        ("a.tif", "CMYK"),
        ("a.jpg", "CMYK"),
        ("a.png", "RGBA"),
        ("a.png", "LA"),
        ("a.png", "P"),
        ("a.gif", "P"),
        ("a.webp", "RGBA"),
    ],
)
def test_all_kinds_of_pictures_are_read(tmp_path, name, mode):
    picture = portrait().quantize() if mode == "P" else portrait().convert(mode)
    picture.save(tmp_path / name)
    assert difference(tmp_path / name, portrait()) < 3


@pytest.mark.parametrize("bits", [8, 10, 12, 16])
def test_the_bits_of_deep_grey_are_told_from_its_values(tmp_path, bits):
    levels = np.asarray(portrait().convert("L"), dtype=float) / 255
    deep = np.rint(levels * (2**bits - 1)).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "a.png")
    assert difference(tmp_path / "a.png", portrait()) < 1


def test_floating_point_grey_is_read(tmp_path):
    levels = np.asarray(portrait().convert("L"), dtype=np.float32) / 255
    Image.fromarray(levels).save(tmp_path / "a.tiff")
    assert difference(tmp_path / "a.tiff", portrait()) < 1


def test_a_photograph_is_turned_as_its_exif_says(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    lying = portrait().transpose(Image.Transpose.ROTATE_90)
    lying.save(tmp_path / "a.png", exif=exif)
    assert difference(tmp_path / "a.png", portrait()) == 0


def test_what_is_transparent_is_white(tmp_path):
    picture = portrait().convert("RGBA")
    picture.putalpha(0)
    picture.save(tmp_path / "a.png")
    assert difference(tmp_path / "a.png", Image.new("L", picture.size, 255)) == 0


def test_of_an_animation_the_first_frame_is_read(tmp_path):
    dark = portrait().point(lambda value: value // 3)
    portrait().save(tmp_path / "a.webp", save_all=True, append_images=[dark], lossless=True)
    assert difference(tmp_path / "a.webp", portrait()) < 1


def test_faces_are_looked_for_in_pictures_of_a_sensible_size(tmp_path):
    sizes = {}
    for size in [(92, 112), (30, 400), (160, 200), (512, 600), (6000, 900), (3000, 2), (1, 1)]:
        Image.new("L", size).save(tmp_path / "a.png")
        picture = read_picture(tmp_path / "a.png")
        assert picture.grey.size == size
        sizes[size] = picture.resized.size
    assert sizes[92, 112] == (184, 224)
    assert sizes[30, 400] == (120, 1600)
    assert sizes[160, 200] == (160, 200)
    assert sizes[512, 600] == (512, 600)
    assert abs(sizes[6000, 900][0] * sizes[6000, 900][1] / MAX_PIXELS - 1) < 0.01


def bomb() -> bytes:
    """A few bytes that say they are 3,600,000,000 pixels."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(1000)))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file is empty"),
        (b"no picture at all", "unknown image format"),
        (bomb(), "more than 178,956,970 pixels, possibly a decompression bomb"),
        (b"\xff\xd8\xff\xe0" + bytes(100), "unknown image format"),
    ],
)
def test_what_cannot_be_read_says_why(tmp_path, content, reason):
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(UnreadableError, match=reason) as error:
        read_picture(tmp_path / "a.jpg")
    assert "\n" not in str(error.value)


def test_half_a_picture_is_unreadable(tmp_path):
    portrait().save(tmp_path / "a.jpg")
    content = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(content[: len(content) // 2])
    with pytest.raises(UnreadableError, match="truncated"):
        read_picture(tmp_path / "a.jpg")


def test_photographs_are_found_at_any_depth_and_in_order(tmp_path):
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
