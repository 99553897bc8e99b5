"""Correct answers: which test images the network of a round classifies correctly.

`correct/round_03.bits` holds a bit for each test image, in the order of the data, packed eight to a
byte (`numpy.packbits`), and nothing else. Together, the files of several networks show how
much a difference depends on the choice of test images.
"""

from math import ceil

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

FOLDER = "correct"  # artifact folder of a run


def path_of(number: int) -> str:
    """The artifact of a round."""
    return f"{FOLDER}/round_{number:02d}.bits"


def to_bits(correct: Tensor) -> bytes:
    """The content of a file, from bool [N]."""
    return np.packbits(correct.numpy()).tobytes()


def from_bits(content: bytes, images: int) -> NDArray[np.bool_]:
    """What `to_bits` packed: bool [images].

    Raises:
        ValueError: If the content is not of that many images.
    """
    if len(content) != ceil(images / 8):
        raise ValueError(f"it has {len(content)} bytes, {images} images need {ceil(images / 8)}")
    bits = np.unpackbits(np.frombuffer(content, np.uint8)).astype(bool)
    if bits[images:].any():
        raise ValueError(f"it has a bit after those of its {images} images")
    return bits[:images]
