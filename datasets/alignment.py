"""Alignment: from a face in a photograph to a crop, 144x144, grey.

The geometry is LightCNN's (Wu et al. 2018, arXiv:1511.02683): the eyes lie on the line y=48, the
point midway between them at x=72, and 48 pixels from there to the point midway between the ends of
the mouth. Beyond the photograph's edge the crop is black, as theirs is.
"""

import math
from pathlib import Path

import numpy as np
from PIL import Image

from datasets.detection import Face

SIDE = 144  # pixels of a crop's side
EYES_Y = 48  # pixels from the crop's top edge to the eyes
EYES_TO_MOUTH = 48  # pixels between the two midpoints
CLOSEST = 1.0  # pixels between them in a photograph, below which a face has no direction


def align(face: Face) -> np.ndarray:
    """The similarity transform that puts a face's eyes and mouth where LightCNN wants them.

    Returns:
        [2, 3]: a photograph's point (x, y, 1) to a point of the crop. It turns by the slope of the
        line through the eyes, so that a face that looks aside keeps its mouth aside.
    """
    points = np.array(face.landmarks)  # [5, 2]
    eyes, mouth = points[:2].mean(0), points[3:].mean(0)
    (right, down) = points[1] - points[0]
    angle = math.atan2(down, right)
    scale = EYES_TO_MOUTH / max(CLOSEST, math.dist(eyes, mouth))
    turn = scale * np.array(
        [[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]]
    )
    target = np.array([SIDE / 2, EYES_Y])
    return np.column_stack([turn, target - turn @ eyes])


def frame(face: Face, margin: float) -> np.ndarray:
    """The transform that shows a face's box, upright and undistorted.

    Args:
        face: The square around the middle of its box, as wide as the longer side, is shown.
        margin: Share of that side to add to it, half on either hand.

    Returns:
        [2, 3], as `align`.
    """
    left, top, right, bottom = face.box
    side = max(CLOSEST, (1 + margin) * max(right - left, bottom - top))
    scale = SIDE / side
    corner = np.array([(left + right - side) / 2, (top + bottom - side) / 2])
    return np.column_stack([scale * np.eye(2), -scale * corner])


def cut(picture: Image.Image, transform: np.ndarray) -> Image.Image:
    """The crop, SIDE x SIDE and 8-bit grey, that a transform of `align` or `frame` shows.

    A face larger than the crop is made smaller by averaging first, so that nothing is aliased.
    """
    turn, shift = transform[:, :2], transform[:, 2]
    back = np.linalg.inv(turn)
    corners = (np.array([[0, 0], [SIDE, 0], [0, SIDE], [SIDE, SIDE]]) - shift) @ back.T
    low, high = np.floor(corners.min(0)) - 2, np.ceil(corners.max(0)) + 2
    region = picture.crop((low[0], low[1], high[0], high[1])).convert("L")  # black beyond the edge
    size = high - low
    shrunk = np.maximum(1, np.rint(size * min(1, math.sqrt(np.linalg.det(turn)))))
    if (shrunk < size).any():
        region = region.resize((int(shrunk[0]), int(shrunk[1])), Image.Resampling.BICUBIC)
    ratio = (shrunk / size)[:, None]
    matrix = np.column_stack([ratio * back, ratio[:, 0] * (-back @ shift - low)])
    return region.transform(
        (SIDE, SIDE), Image.Transform.AFFINE, tuple(matrix.ravel()), Image.Resampling.BICUBIC
    )


def read_crop(path: Path) -> np.ndarray:
    """A crop as it was written: [SIDE, SIDE] uint8.

    Raises:
        FileNotFoundError: If it is not there.
        ValueError: If it is damaged.
    """
    try:
        with Image.open(path) as crop:
            if (crop.mode, crop.size) == ("L", (SIDE, SIDE)):
                return np.asarray(crop)
    except FileNotFoundError:
        raise
    except (OSError, ValueError, SyntaxError):  # Pillow's, of pictures
        pass
    raise ValueError(f"{path} is damaged")


def is_crop(path: Path) -> bool:
    """Whether there is a crop, undamaged."""
    try:
        read_crop(path)
    except (FileNotFoundError, ValueError):
        return False
    return True
