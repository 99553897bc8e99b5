"""Olivetti: ten portraits each of 40 people, through scikit-learn, downloaded once.

Samaria & Harter 1994: the ORL faces, in the 64x64 pixels that Sam Roweis made of them, with the
eyes roughly in the same places. They are enlarged to the size of `faces`, and used like those.
"""

import sys
import warnings
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from datasets.alignment import SIDE
from datasets.faces import CROP
from datasets.mnist import socket_timeout
from datasets.splits import DataUnavailableError, Images

FILE = "olivetti_py3.pkz"  # scikit-learn's name for it
EACH = 10  # portraits of a person
VALID, TEST = 2, 1  # of them


def olivetti(root: Path) -> Images:
    """The Olivetti faces: of each person seven train, two validate and one tests, always the same.

    Raises:
        DataUnavailableError: If they are neither there nor to be had, or damaged.
    """
    from sklearn.datasets import fetch_olivetti_faces  # here, because it takes a second to import

    try:
        with socket_timeout(), redirect_stdout(sys.stderr), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of each attempt; the last one is told below
            bunch = fetch_olivetti_faces(data_home=root)
    except Exception as error:  # whatever the network or a damaged file comes to
        reason = " ".join(str(error).split()) or type(error).__name__
        if (root / FILE).exists():
            raise DataUnavailableError(
                f"{root / FILE} is damaged ({reason}): delete it to fetch it anew"
            ) from None
        raise DataUnavailableError(
            f"the Olivetti faces are not in {root} and cannot be downloaded ({reason}): put "
            f"scikit-learn's {FILE} there, or name another data_root or dataset"
        ) from None
    return as_images(bunch.images, str(root / FILE))


def as_images(portraits: np.ndarray, source: str) -> Images:
    """The data set of portraits [10 * people, 64, 64] in [0, 1], person by person."""
    pixels = torch.from_numpy(portraits).float().mul(255).unsqueeze(1)
    enlarged = F.interpolate(pixels, (SIDE, SIDE), mode="bicubic", align_corners=False)
    images = enlarged.round().clamp(0, 255).byte().view(-1, EACH, SIDE, SIDE)
    people = torch.arange(len(images))
    order = np.random.default_rng(0).permuted(np.tile(np.arange(EACH), (len(people), 1)), axis=1)
    images = images[people[:, None], torch.from_numpy(order)]  # [people, 10, SIDE, SIDE]
    parts = torch.split(images, [EACH - VALID - TEST, VALID, TEST], dim=1)
    labels = [people.repeat_interleave(part.shape[1]) for part in parts]
    train, valid, test = (part.flatten(0, 1).contiguous() for part in parts)
    return Images(
        source=source,
        white=255,
        images=train,
        labels=labels[0],
        test_images=test,
        test_labels=labels[2],
        valid_images=valid,
        valid_labels=labels[1],
        crop=CROP,
        classes=tuple(f"person {number + 1}" for number in range(len(people))),
    )
