"""Detection: where are the faces in a picture, and where their eyes, nose and mouth?

MTCNN (Zhang et al. 2016, arXiv:1604.02878) as facenet-pytorch has it, weights included.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from PIL import Image

SMALLEST = 20  # side of the smallest face that MTCNN looks for, in pixels
BATCH_PIXELS = 3_000_000  # looked at together

Point = tuple[float, float]
Five = tuple[Point, Point, Point, Point, Point]


@dataclass(frozen=True)
class Face:
    """A face in a picture, in the picture's pixels: x to the right, y down."""

    box: tuple[float, float, float, float]  # left, top, right, bottom
    landmarks: Five  # left and right eye, nose, mouth's ends
    confidence: float  # in [0, 1]

    @property
    def size(self) -> float:
        """The box's shorter side."""
        left, top, right, bottom = self.box
        return min(right - left, bottom - top)

    @property
    def area(self) -> float:
        """Of the box."""
        left, top, right, bottom = self.box
        return (right - left) * (bottom - top)

    def scaled(self, across: float, down: float) -> "Face":
        """The same face where the picture is so many times as wide and as high."""
        left, top, right, bottom = self.box
        box = left * across, top * down, right * across, bottom * down
        landmarks = tuple((x * across, y * down) for x, y in self.landmarks)
        return Face(box, cast(Five, landmarks), self.confidence)


class Detector:
    """Finds faces, on a device of torch's."""

    def __init__(self, device: str) -> None:
        from facenet_pytorch import MTCNN  # here, because it takes a second to import

        self.mtcnn = MTCNN(keep_all=True, min_face_size=SMALLEST, device=torch.device(device))

    def find(self, pictures: Sequence[Image.Image]) -> list[tuple[Face, ...]]:
        """The faces of each RGB picture, the largest first; equal sizes are looked at together."""
        found: list[tuple[Face, ...]] = [()] * len(pictures)
        for rows in _batches([picture.size for picture in pictures]):
            boxes, confidences, points = self.mtcnn.detect([pictures[row] for row in rows], True)
            for row, *answer in zip(rows, boxes, confidences, points, strict=True):
                found[row] = _faces(*answer)
        return found


def _batches(sizes: Sequence[tuple[int, int]]) -> Iterator[list[int]]:
    """Rows of pictures of one size; none of those in which no face can be."""
    alike = defaultdict(list)
    for row, size in enumerate(sizes):
        if min(size) >= SMALLEST:
            alike[size].append(row)
    for (width, height), rows in alike.items():
        count = max(1, BATCH_PIXELS // (width * height))
        yield from (rows[start : start + count] for start in range(0, len(rows), count))


def _faces(boxes: Any, confidences: Sequence[float], points: Any) -> tuple[Face, ...]:
    if boxes is None:
        return ()
    corners = np.asarray(boxes, dtype=float).tolist()
    landmarks = np.asarray(points, dtype=float).tolist()
    faces = [
        Face(tuple(box), cast(Five, tuple(map(tuple, five))), float(confidence))
        for box, five, confidence in zip(corners, landmarks, confidences, strict=True)
    ]
    return tuple(sorted(faces, key=lambda face: -face.area))
