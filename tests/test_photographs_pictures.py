import os
import struct
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from threading import Lock

import numpy as np
import pytest
from PIL import Image

from datasets.photographs import pictures
from datasets.photographs.pictures import (
    MAX_PIXELS,
    UnreadableError,
    ignore_decoder_warnings,
    read_picture,
)
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
def test_common_formats_and_modes_are_read(tmp_path, name, mode):
    picture = portrait().quantize() if mode == "P" else portrait().convert(mode)
    picture.save(tmp_path / name)
    assert difference(tmp_path / name, portrait()) < 3


@pytest.mark.parametrize("bits", [8, 10, 12, 16])
def test_the_bit_depth_of_deep_grey_is_inferred_from_its_values(tmp_path, bits):
    levels = np.asarray(portrait().convert("L"), dtype=float) / 255
    deep = np.rint(levels * (2**bits - 1)).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "a.png")
    assert difference(tmp_path / "a.png", portrait()) < 1


def test_floating_point_grey_is_read(tmp_path):
    levels = np.asarray(portrait().convert("L"), dtype=np.float32) / 255
    Image.fromarray(levels).save(tmp_path / "a.tiff")
    assert difference(tmp_path / "a.tiff", portrait()) < 1


def test_the_exif_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees
    lying = portrait().transpose(Image.Transpose.ROTATE_90)
    lying.save(tmp_path / "a.png", exif=exif)
    assert difference(tmp_path / "a.png", portrait()) == 0


def test_transparency_becomes_white(tmp_path):
    picture = portrait().convert("RGBA")
    picture.putalpha(0)
    picture.save(tmp_path / "a.png")
    assert difference(tmp_path / "a.png", Image.new("L", picture.size, 255)) == 0


def test_the_first_frame_of_an_animation_is_read(tmp_path):
    dark = portrait().point(lambda value: value // 3)
    portrait().save(tmp_path / "a.webp", save_all=True, append_images=[dark], lossless=True)
    assert difference(tmp_path / "a.webp", portrait()) < 1


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        *(("a.png", mode) for mode in ("RGB", "RGBA", "LA", "L", "P", "1", "I;16")),
        *(("a.jpg", mode) for mode in ("RGB", "L", "CMYK")),
    ],
)
def test_very_large_pictures_are_reduced_when_they_are_read(tmp_path, monkeypatch, name, mode):
    path, picture = tmp_path / name, portrait().resize((800, 800))
    if mode == "I;16":
        deep = np.asarray(picture.convert("L")).astype(np.uint16) * 257
        picture = Image.fromarray(deep)
    else:
        picture = picture.quantize() if mode == "P" else picture.convert(mode)
    picture.save(path)
    whole = read_picture(path)
    assert whole.grey.size == (800, 800)
    monkeypatch.setattr(pictures, "LARGE", 50_000)
    reduced = read_picture(path)
    assert reduced.grey.size == (200, 200)
    expected = np.asarray(whole.grey.resize(reduced.grey.size, Image.Resampling.BOX), dtype=float)
    assert np.abs(np.asarray(reduced.grey, dtype=float) - expected).mean() < 2
    assert (reduced.digest, reduced.resized.size) == (whole.digest, reduced.grey.size)


def test_no_other_program_reads_a_picture(tmp_path, monkeypatch):
    """Pillow would pass PostScript to Ghostscript, which executes it."""
    called = tmp_path / "called"
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {called}\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    path = tmp_path / "x.jpg"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    with pytest.raises(UnreadableError, match="unknown image format"):
        read_picture(path)
    with suppress(Exception), Image.open(path) as image:
        image.load()
    assert called.exists()  # the trap was real


def test_few_pixels_are_decoded_at_a_time(monkeypatch):
    monkeypatch.setattr(pictures, "LARGE", 100)
    most, lock, decoding = [0], Lock(), pictures._Decoding()

    def decode(pixels):
        with decoding.reserved(pixels):
            with lock:
                most.append(decoding.pixels)
            time.sleep(0.001)

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(decode, [10, 60, 100, 5, 40] * 20))
    assert 60 < max(most) <= 100
    assert decoding.pixels == 0


def test_only_one_very_large_picture_is_read_at_a_time(tmp_path, monkeypatch):
    portrait().resize((800, 800)).save(tmp_path / "large.png")
    portrait(96).save(tmp_path / "small.png")
    monkeypatch.setattr(pictures, "LARGE", 50_000)
    with ThreadPoolExecutor(1) as pool:
        with pictures._decoding.reserved(10_000):
            read_picture(tmp_path / "small.png")
            other = pool.submit(read_picture, tmp_path / "large.png")
            with pytest.raises(TimeoutError):
                other.result(timeout=0.5)
        assert other.result(timeout=30).grey.size == (200, 200)


def test_small_pictures_are_enlarged_and_large_ones_reduced_for_detection(tmp_path):
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
    """A small file that claims to have 3,600,000,000 pixels."""

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
def test_unreadable_files_have_a_reason(tmp_path, content, reason):
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(UnreadableError, match=reason) as error:
        read_picture(tmp_path / "a.jpg")
    assert "\n" not in str(error.value)


def test_a_truncated_picture_is_unreadable(tmp_path):
    portrait().save(tmp_path / "a.jpg")
    content = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(content[: len(content) // 2])
    with pytest.raises(UnreadableError, match="truncated"):
        read_picture(tmp_path / "a.jpg")
