"""Crops: cutting a face out of a photograph, 144x144 and grey.

The geometry is LightCNN's (Wu et al. 2018, arXiv:1511.02683): the eyes on the line y=48, the
midpoint between them at x=72, and the midpoint between the corners of the mouth 48 pixels away.
Outside the photograph the crop is black, as in the paper.
"""

import math
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from datasets.photographs import SIDE
from datasets.photographs.detection import Face
from datasets.photographs.files import read_regular_file, write_atomically
from datasets.photographs.options import FaceOptions
from datasets.splits import DataUnavailableError

EYES_Y = 48  # pixels from the crop's top edge to the eyes
EYES_TO_MOUTH = 48  # pixels between the two midpoints
MOST_BYTES = 1 << 20  # of a crop's file
MOST_SIDE = 12_000  # pixels of the photograph around a face, black edges included
MIN_DISTANCE = 1.0  # pixels in the photograph; keeps the scale finite for degenerate faces


def align_transform(face: Face) -> np.ndarray:
    """The similarity transform that puts the eyes and mouth where LightCNN expects them.

    Returns:
        [2, 3]: maps a point (x, y, 1) of the photograph to a point of the crop. The rotation levels
            the eyes only, so that a face in half profile keeps its mouth off centre.
    """
    points = np.array(face.landmarks)  # [5, 2]
    eyes, mouth = points[:2].mean(0), points[3:].mean(0)
    (right, down) = points[1] - points[0]
    angle = math.atan2(down, right)
    scale = EYES_TO_MOUTH / max(MIN_DISTANCE, math.dist(eyes, mouth))
    rotation = scale * np.array(
        [[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]]
    )
    target = np.array([SIDE / 2, EYES_Y])
    return np.column_stack([rotation, target - rotation @ eyes])


def box_transform(face: Face, margin: float) -> np.ndarray:
    """The transform that fits a face's box into the crop, neither rotated nor distorted.

    Args:
        face: Its box is extended to a square on the longer side, around the same centre.
        margin: Share of that side to add, half of it on each side.

    Returns:
        [2, 3], as `align_transform`.
    """
    left, top, right, bottom = face.box
    side = max(MIN_DISTANCE, (1 + margin) * max(right - left, bottom - top))
    scale = SIDE / side
    corner = np.array([(left + right - side) / 2, (top + bottom - side) / 2])
    return np.column_stack([scale * np.eye(2), -scale * corner])


def cut_crop(picture: Image.Image, transform: np.ndarray) -> Image.Image:
    """Apply `align_transform` or `box_transform`: SIDE x SIDE pixels, 8-bit grey.

    A face larger than the crop is first reduced with averaging, to avoid aliasing.
    """
    linear, shift = transform[:, :2], transform[:, 2]
    inverse = np.linalg.inv(linear)
    corners = (np.array([[0, 0], [SIDE, 0], [0, SIDE], [SIDE, SIDE]]) - shift) @ inverse.T
    low, high = np.floor(corners.min(0)) - 2, np.ceil(corners.max(0)) + 2
    if not max(high - low) < MOST_SIDE:
        raise DataUnavailableError("a detected face is larger than any photograph")
    region = picture.crop((low[0], low[1], high[0], high[1])).convert("L")  # black outside
    size = high - low
    reduced = np.maximum(1, np.rint(size * min(1, math.sqrt(np.linalg.det(linear)))))
    if (reduced < size).any():
        region = region.resize((int(reduced[0]), int(reduced[1])), Image.Resampling.BICUBIC)
    ratio = (reduced / size)[:, None]
    matrix = np.column_stack([ratio * inverse, ratio[:, 0] * (-inverse @ shift - low)])
    return region.transform(
        (SIDE, SIDE), Image.Transform.AFFINE, tuple(matrix.ravel()), Image.Resampling.BICUBIC
    )


def cut_face(picture: Image.Image, face: Face, options: FaceOptions) -> Image.Image:
    """The crop of a face, as the options say: SIDE x SIDE pixels, 8-bit grey."""
    if options.align:
        return cut_crop(picture, align_transform(face))
    return cut_crop(picture, box_transform(face, options.margin))


def write_image(image: Image.Image, path: Path, **options: Any) -> None:
    """Write a crop or a page, as its suffix says and with Pillow's `options`."""
    content = BytesIO()
    image.save(content, Image.registered_extensions()[path.suffix], **options)
    write_atomically(path, content.getvalue())


def read_crop(path: Path) -> np.ndarray:
    """A crop that `write_image` has written: [SIDE, SIDE] uint8.

    Raises:
        DataUnavailableError: If it is missing or damaged.
    """
    reason = "damaged"
    try:
        content = read_regular_file(path, MOST_BYTES)
        with Image.open(BytesIO(content), formats=("PNG",)) as crop:
            if (crop.mode, crop.size) == ("L", (SIDE, SIDE)):
                return np.asarray(crop)
    except FileNotFoundError:
        reason = "missing"
    except Exception:  # the decoder raises many types
        pass
    raise DataUnavailableError(f"{path} is {reason}: run prepare_faces again")
