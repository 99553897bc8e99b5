"""Photographs: which ones are there, and what do they show the right way up?

Whatever a camera, a scanner or the web leaves in a folder becomes 8-bit RGB, or is said to be
unreadable and why.
"""

import hashlib
import math
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import imagehash
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from datasets.files import text_of
from datasets.splits import DataUnavailableError

# Phones' .heic is named so that it is reported as unreadable, and not passed over.
SUFFIXES = (
    *(".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".pgm", ".ppm", ".pnm", ".tif", ".tiff"),
    *(".gif", ".avif", ".heic", ".heif"),
)
HASH_SIDE = 24  # bits along a side of the perceptual hash
SHORT_SIDE = 160  # faces are looked for in pictures enlarged by a whole factor to at least this ...
MOST_ENLARGED = 4  # ... but not by more than this
MOST_BYTES = 1 << 29  # of a file
MOST_PIXELS = 1_500_000  # and reduced to at most this, which bounds time and memory


class UnreadableError(ValueError):
    """A file is not a picture that can be read. The message says why."""


@dataclass(frozen=True)
class Photograph:
    """A file that should be a picture; `label` is "" where it lies in no class folder."""

    source: str  # path below the folder of class folders, with "/" between its parts
    label: str
    path: Path
    stamp: tuple[int, ...]  # changes when the file is touched, moved, or another in its place


@dataclass(frozen=True)
class Picture:
    """What a photograph shows, upright."""

    grey: Image.Image  # 8 bits, every pixel, to cut crops from
    view: Image.Image  # RGB, enlarged or reduced, to find faces in
    digest: str  # of the file's bytes
    hashes: tuple[str, ...]  # perceptual, of it and of its mirror image; near are nearly equal


def find_photographs(source: Path) -> list[Photograph]:
    """All photographs below a folder, sorted by path; hidden files and folders are passed over.

    Raises:
        DataUnavailableError: If it is no folder, or no photograph is in it.
    """
    if not source.is_dir():
        raise DataUnavailableError(f"{source} is not a folder of class folders of photographs")
    found = []
    for path in _files(source):
        relative = path.relative_to(source)
        status = path.stat() if path.exists() else path.lstat()  # a link to nothing
        stamp = status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino
        label = relative.parts[0] if len(relative.parts) > 1 else ""
        found.append(Photograph(text_of(relative), text_of(label), path, stamp))
    if not found:
        raise DataUnavailableError(f"{source} has no photographs ({', '.join(SUFFIXES)})")
    if not any(photograph.label for photograph in found):
        raise DataUnavailableError(
            f"{source} has photographs but no class folders: "
            "put those of each class into a folder of its own"
        )
    return sorted(found, key=lambda photograph: photograph.source)


def _files(source: Path) -> Iterator[Path]:
    """Links to folders are followed, but no folder is entered a second time."""
    seen = set()
    for folder, below, names in os.walk(source, onerror=_refuse, followlinks=True):
        status = Path(folder).stat()
        seen.add((status.st_dev, status.st_ino))
        below[:] = [name for name in below if name[0] != "." and not _known(folder, name, seen)]
        paths = (Path(folder, name) for name in names if name[0] != ".")
        yield from (path for path in paths if path.suffix.lower() in SUFFIXES)


def _refuse(error: OSError) -> None:
    raise error


def _known(folder: str, name: str, seen: set[tuple[int, int]]) -> bool:
    status = Path(folder, name).stat()
    return (status.st_dev, status.st_ino) in seen


def read_picture(path: Path) -> Picture:
    """Read a photograph: its first frame, turned as its EXIF says, transparency over white.

    Raises:
        UnreadableError: If it is empty, damaged, too large, or not a picture.
    """
    try:
        content = _content(path)
        with Image.open(BytesIO(content)) as image:
            rgb = _rgb(ImageOps.exif_transpose(image))
        hashes = _hash(rgb), _hash(ImageOps.mirror(rgb))
        return Picture(rgb.convert("L"), _view(rgb), digest_of(content), hashes)
    except UnreadableError:
        raise
    except Exception as error:  # each decoder has errors of its own
        raise UnreadableError(_reason(error)) from None


def _content(path: Path) -> bytes:
    if not path.is_file():  # to read a pipe may take for ever
        raise UnreadableError("not a file" if path.exists() else "a link to nothing")
    if path.stat().st_size > MOST_BYTES:
        raise UnreadableError(f"more than {MOST_BYTES:,} bytes")
    content = path.read_bytes()
    if not content:
        raise UnreadableError("the file is empty")
    return content


def digest_of(content: bytes) -> str:
    """Of a file's bytes."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


@contextmanager
def quiet_decoders() -> Iterator[None]:
    """Pillow's complaints about what it can read nevertheless are of no use to anybody."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # twice that is an error
        yield


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F" or image.mode.startswith("I"):
        return Image.fromarray(_eight_bits(np.asarray(image, dtype=np.float64))).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image).convert("RGB")


def _eight_bits(values: np.ndarray) -> np.ndarray:
    """Grey of more than 8 bits; white is the largest number of as many bits as the values take."""
    values = np.nan_to_num(values, posinf=0).clip(min=0)
    most = float(values.max())
    white = 1.0 if most <= 1 else float((1 << max(8, int(most).bit_length())) - 1)
    return np.rint(values * (255 / white)).clip(0, 255).astype(np.uint8)


def _view(rgb: Image.Image) -> Image.Image:
    width, height = rgb.size
    enlarged = min(MOST_ENLARGED, math.ceil(SHORT_SIDE / min(width, height)))
    factor = min(enlarged, math.sqrt(MOST_PIXELS / (width * height)))
    size = max(1, round(factor * width)), max(1, round(factor * height))
    return rgb.resize(size, Image.Resampling.BICUBIC, reducing_gap=2.0)


def _hash(rgb: Image.Image) -> str:
    return str(imagehash.phash(rgb, hash_size=HASH_SIDE))


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "not a picture of a known kind"
    if isinstance(error, Image.DecompressionBombError):
        return f"more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels, may be a bomb"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__
