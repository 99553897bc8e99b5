"""Pictures: any photograph as upright 8-bit RGB and grey, or why it cannot be read."""

import hashlib
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path
from threading import Condition

import imagehash
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

HASH_SIDE = 24  # bits along a side of the perceptual hash
SHORT_SIDE = 160  # small pictures are enlarged by an integer to at least this before detection ...
MAX_ENLARGEMENT = 4  # ... but by no more than this
MAX_BYTES = 1 << 29  # of a file
MAX_PIXELS = 1_500_000  # larger pictures are reduced to this, which bounds time and memory
LARGE = 50_000_000  # pixels that are decoded at a time; larger pictures are reduced
# Pillow passes others, such as PostScript, to other programs.
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "BMP", "PPM", "TIFF", "GIF", "AVIF")


class UnreadableError(ValueError):
    """A file cannot be read as a picture. The message says why."""


@dataclass(frozen=True)
class Picture:
    """A decoded photograph, upright."""

    grey: Image.Image  # 8 bits, to cut crops from; full resolution up to `LARGE` pixels
    resized: Image.Image  # RGB, enlarged or reduced, to detect faces in
    digest: str  # of the file's bytes
    hashes: tuple[str, ...]  # perceptual hashes of the picture and of its mirror image


def read_picture(path: Path) -> Picture:
    """Read a photograph: first frame, rotated as EXIF says, transparency over white.

    Raises:
        UnreadableError: If the file is empty, damaged, too large, or not a picture.
    """
    try:
        content = _read_bytes(path)
        image = Image.open(BytesIO(content), formats=_formats())
        with image, _decoding.reserved(image.width * image.height):
            rgb = _to_rgb(ImageOps.exif_transpose(_reduced(image)))
        grey = rgb.convert("L")
        hashes = _hash(grey), _hash(ImageOps.mirror(grey))
        return Picture(grey, _resize(rgb), content_digest(content), hashes)
    except UnreadableError:
        raise
    except Exception as error:  # each decoder raises its own exceptions
        raise UnreadableError(_reason(error)) from None


def _read_bytes(path: Path) -> bytes:
    if not path.is_file():  # reading a pipe may block forever
        raise UnreadableError("not a file" if path.exists() else "broken link")
    if path.stat().st_size > MAX_BYTES:
        raise UnreadableError(f"more than {MAX_BYTES:,} bytes")
    content = path.read_bytes()
    if not content:
        raise UnreadableError("the file is empty")
    return content


def content_digest(content: bytes) -> str:
    """BLAKE2b digest of a file's bytes, 32 hexadecimal digits."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


@contextmanager
def ignore_decoder_warnings() -> Iterator[None]:
    """Silence Pillow's warnings about files that it reads anyway."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


@cache
def _formats() -> tuple[str, ...]:
    """Those of `FORMATS` that this Pillow decodes."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


class _Decoding:
    """The pixels that are being decoded, by all threads; at most `LARGE`, or one picture."""

    def __init__(self) -> None:
        self.pixels, self.changed = 0, Condition()

    @contextmanager
    def reserved(self, pixels: int) -> Iterator[None]:
        """Wait until there is room for these pixels."""
        with self.changed:
            self.changed.wait_for(lambda: not self.pixels or self.pixels + pixels <= LARGE)
            self.pixels += pixels
        try:
            yield
        finally:
            with self.changed:
                self.pixels -= pixels
                self.changed.notify_all()


_decoding = _Decoding()


def _reduced(image: Image.Image) -> Image.Image:
    """The picture, reduced by an integer factor if it has more than `LARGE` pixels."""
    wanted = math.ceil(math.sqrt(image.width * image.height / LARGE))
    if wanted == 1:
        return image
    image.draft(None, (image.width // wanted, image.height // wanted))  # JPEG: decoded reduced
    factor = math.ceil(math.sqrt(image.width * image.height / LARGE))
    if image.mode.startswith("I;"):
        image = image.convert("I")
    elif image.mode in ("1", "P"):
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    return image.reduce(factor) if factor > 1 else image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F" or image.mode.startswith("I"):
        return Image.fromarray(_to_8_bits(np.asarray(image))).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image).convert("RGB")


def _to_8_bits(values: np.ndarray) -> np.ndarray:
    """Deeper grey; white is the largest number with as many bits as the largest value needs."""
    largest = float(values.max(initial=0, where=np.isfinite(values)))
    white = 1.0 if largest <= 1 else float((1 << max(8, int(largest).bit_length())) - 1)
    levels = np.empty(values.shape, dtype=np.uint8)
    for row, line in enumerate(values):  # one row at a time: float64 takes up to 8 times the memory
        finite = np.nan_to_num(line.astype(np.float64), posinf=0).clip(min=0)
        levels[row] = np.rint(finite * (255 / white)).clip(0, 255)
    return levels


def _resize(rgb: Image.Image) -> Image.Image:
    width, height = rgb.size
    enlargement = min(MAX_ENLARGEMENT, math.ceil(SHORT_SIDE / min(width, height)))
    factor = min(enlargement, math.sqrt(MAX_PIXELS / (width * height)))
    size = max(1, round(factor * width)), max(1, round(factor * height))
    return rgb.resize(size, Image.Resampling.BICUBIC, reducing_gap=2.0)


def _hash(grey: Image.Image) -> str:
    return str(imagehash.phash(grey, hash_size=HASH_SIDE))


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "unknown image format"
    if isinstance(error, Image.DecompressionBombError):
        return (
            f"more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels, possibly a decompression bomb"
        )
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__
