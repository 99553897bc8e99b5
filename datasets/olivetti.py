"""Olivetti: ten portraits each of 40 people, through scikit-learn, downloaded once.

Samaria & Harter 1994: the ORL faces, in Sam Roweis' version of 64x64 pixels with the eyes roughly
aligned. They are enlarged to the size of `faces` and used like them.
"""

import hashlib
import sys
import warnings
from contextlib import redirect_stdout
from http.client import HTTPException
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from datasets.mnist import socket_timeout
from datasets.photographs import CROP, SIDE
from datasets.splits import DataUnavailableError, Images

FILE = "olivettifaces.mat"  # Roweis' file, as scikit-learn downloads it
PICKLED = "olivetti_py3.pkz"  # scikit-learn's copy, which older versions read
URL = "https://ndownloader.figshare.com/files/5976027"
SHA256 = "b612fb967f2dc77c9c62d3e1266e0c73d5fca46a4b8906c18e454d41af987794"
MOST_BYTES = 100_000_000  # of a file that is read at all
EACH = 10  # portraits per person
VALID, TEST = 2, 1  # of these


def olivetti(root: Path) -> Images:
    """The Olivetti faces: for each person 7 for training, 2 for validation, 1 for testing.

    Reads only the original file, which SHA256 identifies: scikit-learn's own copy is a
    pickle, which can contain code.

    Raises:
        DataUnavailableError: If they are damaged, or neither on disk nor downloadable.
    """
    path = root / FILE
    if not path.exists():
        _download(root)
    try:  # reading a pipe may not end
        content = path.read_bytes() if path.is_file() and path.stat().st_size <= MOST_BYTES else b""
    except OSError as error:
        raise DataUnavailableError(
            f"the Olivetti faces cannot be read ({error}): make {path} readable, or delete it"
        ) from None
    if hashlib.sha256(content).hexdigest() != SHA256:
        raise DataUnavailableError(
            f"{path} is not the original file, or is damaged: delete it to download it again"
        )
    return as_images(portraits_of(content), str(path))


def _download(root: Path) -> None:
    from sklearn.datasets import fetch_file  # here: slow to import

    try:
        with socket_timeout(), redirect_stdout(sys.stderr), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # for each attempt; the last failure is reported below
            root.mkdir(parents=True, exist_ok=True)
            fetch_file(URL, root, FILE, SHA256)
    except (OSError, HTTPException) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        also = f" ({PICKLED}, which can contain code, is not read)" * (root / PICKLED).exists()
        raise DataUnavailableError(
            f"the Olivetti faces are not in {root} and cannot be downloaded ({reason}): put "
            f"{FILE} from {URL} there{also}, or use another data_root or dataset"
        ) from None


def portraits_of(content: bytes) -> NDArray[np.float32]:
    """The portraits in a MATLAB file, float32 [10 * people, 64, 64] in [0, 1]."""
    from scipy.io import loadmat  # type: ignore[import-untyped]

    columns: NDArray[np.float32] = loadmat(BytesIO(content), variable_names=["faces"])[
        "faces"
    ].T.astype(np.float32)
    columns -= columns.min()
    columns /= columns.max()
    return columns.reshape(-1, 64, 64).transpose(0, 2, 1)  # MATLAB stores columns first


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
