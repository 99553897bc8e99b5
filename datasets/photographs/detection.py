"""Detection: the faces in each photograph, with their eyes, noses and mouths.

The detector is MTCNN (Zhang et al. 2016, arXiv:1604.02878) from facenet-pytorch, with its weights.
Results are cached in a file, so that every photograph is processed once. Each photograph adds a
line as soon as it is processed: JSON, a tab and a checksum. If a photograph has several lines, the
last one counts.
"""

import os
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, cast

import numpy as np
import torch
from PIL import Image
from pydantic import FiniteFloat, StringConstraints, TypeAdapter, ValidationError

from datasets.photographs.files import Photograph, read_regular_file
from datasets.photographs.pictures import HASH_SIDE, Picture, UnreadableError, read_picture

MIN_FACE = 20  # pixels along a side of the smallest face that MTCNN detects
BATCH_PIXELS = 3_000_000  # in one call of MTCNN
WINDOW = 16  # photographs in memory at once; the next window is read at the same time

Point = tuple[FiniteFloat, FiniteFloat]
Landmarks = tuple[Point, Point, Point, Point, Point]
Hash = Annotated[str, StringConstraints(pattern=rf"^[0-9a-f]{{{HASH_SIDE**2 // 4}}}$")]


@dataclass(frozen=True)
class Face:
    """A face in a picture, in the picture's pixels: x to the right, y down."""

    box: tuple[FiniteFloat, FiniteFloat, FiniteFloat, FiniteFloat]  # left, top, right, bottom
    landmarks: Landmarks  # left eye, right eye, nose, left and right corner of the mouth
    confidence: FiniteFloat  # in [0, 1]

    @property
    def size(self) -> float:
        """The shorter side of the box."""
        left, top, right, bottom = self.box
        return min(right - left, bottom - top)

    @property
    def area(self) -> float:
        """The area of the box."""
        left, top, right, bottom = self.box
        return (right - left) * (bottom - top)

    def scaled(self, across: float, down: float) -> "Face":
        """The same face after the picture is resized by these factors."""
        left, top, right, bottom = self.box
        box = left * across, top * down, right * across, bottom * down
        landmarks = tuple((x * across, y * down) for x, y in self.landmarks)
        return Face(box, cast(Landmarks, landmarks), self.confidence)


@dataclass(frozen=True)
class Detection:
    """What is detected in a photograph, independent of the options."""

    source: str
    label: str
    stamp: tuple[int, ...]
    digest: str = ""
    hashes: tuple[Hash, ...] = ()
    width: int = 0
    height: int = 0
    faces: tuple[Face, ...] = ()
    problem: str = ""  # why it is unreadable


class Detector:
    """MTCNN on a torch device."""

    def __init__(self, device: str) -> None:
        from facenet_pytorch import MTCNN  # here: slow, and prepared data sets do without it

        self.mtcnn = MTCNN(keep_all=True, min_face_size=MIN_FACE, device=torch.device(device))

    def find(self, pictures: Sequence[Image.Image]) -> list[tuple[Face, ...]]:
        """The faces in each RGB picture, largest first; pictures of one size form a batch."""
        found: list[tuple[Face, ...]] = [()] * len(pictures)
        for rows in _batches([picture.size for picture in pictures]):
            boxes, confidences, points = self.mtcnn.detect([pictures[row] for row in rows], True)
            for row, *output in zip(rows, boxes, confidences, points, strict=True):
                found[row] = _faces(*output)
        return found


@cache
def _detector(device: str) -> Detector:
    return Detector(device)  # a server that answers many requests loads it once


def _batches(sizes: Sequence[tuple[int, int]]) -> Iterator[list[int]]:
    """Rows of pictures of the same size; pictures too small for a face are skipped."""
    by_size = defaultdict(list)
    for row, size in enumerate(sizes):
        if min(size) >= MIN_FACE:
            by_size[size].append(row)
    for (width, height), rows in by_size.items():
        count = max(1, BATCH_PIXELS // (width * height))
        yield from (rows[start : start + count] for start in range(0, len(rows), count))


def _faces(boxes: Any, confidences: Sequence[float], points: Any) -> tuple[Face, ...]:
    if boxes is None:
        return ()
    corners = np.asarray(boxes, dtype=float).tolist()
    landmarks = np.asarray(points, dtype=float).tolist()
    faces = [
        Face(tuple(box), cast(Landmarks, tuple(map(tuple, five))), float(confidence))
        for box, five, confidence in zip(corners, landmarks, confidences, strict=True)
    ]
    return tuple(sorted(faces, key=lambda face: -face.area))


def detect_faces(
    photographs: Sequence[Photograph], device: str
) -> Iterator[list[tuple[Detection, Picture | None]]]:
    """Detections of one window of photographs after another, with their pictures if readable.

    The next window is read in the background. `device` is a torch device.
    """
    if not photographs:
        return
    detector = _detector(device)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        reading = [pool.submit(_read, one) for one in photographs[:WINDOW]]
        for start in range(0, len(photographs), WINDOW):
            end = start + WINDOW
            following = [pool.submit(_read, one) for one in photographs[end : end + WINDOW]]
            pictures = [future.result() for future in reading]
            yield _detect(photographs[start:end], pictures, detector)
            reading = following


def _read(photograph: Photograph) -> Picture | str:
    """The picture, or why it is unreadable."""
    try:
        return read_picture(photograph.path)
    except UnreadableError as error:
        return str(error)


def _detect(
    photographs: Sequence[Photograph], pictures: Sequence[Picture | str], detector: Detector
) -> list[tuple[Detection, Picture | None]]:
    found = iter(detector.find([one.resized for one in pictures if not isinstance(one, str)]))
    detections: list[tuple[Detection, Picture | None]] = []
    for photograph, picture in zip(photographs, pictures, strict=True):
        start = photograph.source, photograph.label, photograph.stamp
        if isinstance(picture, str):
            detections.append((Detection(*start, problem=picture), None))
        else:
            scale = np.divide(picture.grey.size, picture.resized.size)
            faces = tuple(face.scaled(*scale.tolist()) for face in next(found))
            width, height = picture.grey.size
            detection = Detection(*start, picture.digest, picture.hashes, width, height, faces)
            detections.append((detection, picture))
    return detections


_detection = TypeAdapter(Detection)


def read_detections(path: Path) -> dict[str, Detection]:
    """The cached detections by source; lines that are truncated or damaged are skipped."""
    if not path.exists():
        return {}
    detections = {}
    for line in read_regular_file(path).splitlines():
        content, tab, check = line.partition(b"\t")
        if tab and check != _checksum(content):  # older versions wrote none
            continue
        try:
            detection = _detection.validate_json(content)
        except ValidationError:
            continue  # this photograph is processed again
        detections[detection.source] = detection
    return detections


def detection_lines(detections: Iterable[Detection]) -> bytes:
    """Lines for the cache; the first is empty, in case the file ends with half a line."""
    lines = [_detection.dump_json(detection) for detection in detections]  # JSON escapes tabs
    return b"\n" + b"".join(line + b"\t" + _checksum(line) + b"\n" for line in lines)


def _checksum(content: bytes) -> bytes:
    return f"{zlib.crc32(content):08x}".encode()
