"""Looking: what faces are in photographs, some of them at a time."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from datasets.detection import Detector
from datasets.findings import Facts
from datasets.photographs import Photograph, Picture, UnreadableError, read_picture

WINDOW = 16  # photographs in memory at once; as many again are being read meanwhile


def look(
    photographs: Sequence[Photograph], device: str
) -> Iterator[list[tuple[Facts, Picture | None]]]:
    """What is found in some photographs at a time, and what they show where they can be read.

    The next ones are being read meanwhile. `device` is one of torch's.
    """
    if not photographs:
        return
    detector = Detector(device)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        reading = [pool.submit(_read, one) for one in photographs[:WINDOW]]
        for start in range(0, len(photographs), WINDOW):
            end = start + WINDOW
            following = [pool.submit(_read, one) for one in photographs[end : end + WINDOW]]
            read = [future.result() for future in reading]
            yield _find(photographs[start:end], read, detector)
            reading = following


def _read(photograph: Photograph) -> Picture | str:
    """The picture, or why there is none."""
    try:
        return read_picture(photograph.path)
    except UnreadableError as error:
        return str(error)


def _find(
    photographs: Sequence[Photograph], read: Sequence[Picture | str], detector: Detector
) -> list[tuple[Facts, Picture | None]]:
    found = iter(detector.find([one.view for one in read if not isinstance(one, str)]))
    answers: list[tuple[Facts, Picture | None]] = []
    for photograph, picture in zip(photographs, read, strict=True):
        start = photograph.source, photograph.label, photograph.stamp
        if isinstance(picture, str):
            answers.append((Facts(*start, problem=picture), None))
        else:
            scale = np.divide(picture.grey.size, picture.view.size)
            faces = tuple(face.scaled(*scale.tolist()) for face in next(found))
            width, height = picture.grey.size
            content = Facts(*start, picture.digest, picture.hashes, width, height, faces)
            answers.append((content, picture))
    return answers
