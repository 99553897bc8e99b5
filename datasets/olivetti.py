"""Olivetti: ten portraits each of 40 people, through scikit-learn, downloaded once.

Samaria & Harter 1994: the ORL faces, in Sam Roweis' version of 64x64 pixels with the eyes roughly
aligned. They are enlarged to the size of `faces` and used like them.
"""

import sys
import warnings
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from datasets.mnist import socket_timeout
from datasets.photographs import CROP, SIDE
from datasets.splits import DataUnavailableError, Images

FILE = "olivetti_py3.pkz"  # the name that scikit-learn uses
EACH = 10  # portraits per person
VALID, TEST = 2, 1  # of these


def olivetti(root: Path) -> Images:
    """The Olivetti faces: for each person 7 for training, 2 for validation, 1 for testing.

    Raises:
        DataUnavailableError: If they are damaged, or neither on disk nor downloadable.
    """
    from sklearn.datasets import fetch_olivetti_faces  # here: slow to import

    try:
        with socket_timeout(), redirect_stdout(sys.stderr), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # for each attempt; the last failure is reported below
            bunch = fetch_olivetti_faces(data_home=root)
    except Exception as error:  # networks and damaged files can raise anything
        reason = " ".join(str(error).split()) or type(error).__name__
        if (root / FILE).exists():
            raise DataUnavailableError(
                f"{root / FILE} is damaged ({reason}): delete it to download it again"
            ) from None
        raise DataUnavailableError(
            f"the Olivetti faces are not in {root} and cannot be downloaded ({reason}): put "
            f"scikit-learn's {FILE} there, or use another data_root or dataset"
        ) from None
    return as_images(bunch.images, str(root / FILE))


def as_images(portraits: np.ndarray, source: str) -> Images:
    """The data set from portraits [10 * people, 64, 64] in [0, 1], ordered by person."""
    pixels = torch.from_numpy(portraits).float().mul(255).unsqueeze(1)
    enlarged = F.interpolate(pixels, (SIDE, SIDE), mode="bicubic", align_corners=False)
    images = enlarged.round().clamp(0, 255).byte().view(-1, EACH, SIDE, SIDE)
    people = torch.arange(len(images))
    order = np.random.default_rng(0).permuted(np.tile(np.arange(EACH), (len(people), 1)), axis=1)
    images = images[people[:, None], torch.from_numpy(order)]  # [people, 10, SIDE, SIDE]
    train, valid, test = (
        (part.flatten(0, 1).contiguous(), people.repeat_interleave(part.shape[1]))
        for part in torch.split(images, [EACH - VALID - TEST, VALID, TEST], dim=1)
    )
    return Images(
        source=source,
        white=255,
        train=train,
        test=test,
        valid=valid,
        crop=CROP,
        classes=tuple(f"person {number + 1}" for number in range(len(people))),
    )
