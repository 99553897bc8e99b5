"""Datasets: from a name to train, valid and test images as tensors.

A loader is a function `(root) -> Images` that returns the images as they are stored; `load_splits`
splits and scales them in the same way for all. To add a data set, write a loader in its own
file and add a line to `DATASETS`. Every command imports this package: a loader imports slow
libraries when it is called.
"""

from collections.abc import Callable
from pathlib import Path

from datasets.digits import digits
from datasets.faces import faces
from datasets.mnist import fashion_mnist, mnist
from datasets.olivetti import olivetti
from datasets.splits import (
    PIXELS,
    DataUnavailableError,
    Images,
    Split,
    Splits,
    View,
    split_images,
)

__all__ = [
    "DATASETS",
    "PIXELS",
    "DataUnavailableError",
    "Images",
    "Split",
    "Splits",
    "View",
    "load_splits",
]

DATASETS: dict[str, Callable[[Path], Images]] = {
    "mnist": mnist,
    "fashion_mnist": fashion_mnist,
    "digits": digits,
    "faces": faces,
    "olivetti": olivetti,
}
VALID_SHARE = 1 / 12  # 5,000 of MNIST's 60,000 (arXiv:1803.03635, appendix G)


def load_splits(
    name: str, root: str, seed: int, train_limit: int = 0, pixels: str = PIXELS[0]
) -> tuple[Splits, str]:
    """The splits of a data set, and the reason for choosing it, as text.

    "auto" is MNIST if it is on disk or can be downloaded, otherwise digits. `pixels` is as for
    `split_images`.

    Raises:
        DataUnavailableError: If the data set called `name` is not available.
        ValueError: If `train_limit` is larger than the number of training images.
    """
    if name == "auto":
        name, raw, reason = _load_auto(Path(root))
    else:
        raw, reason = DATASETS[name](Path(root)), "requested by name"
    return split_images(name, raw, VALID_SHARE, seed, train_limit, pixels), reason


def _load_auto(root: Path) -> tuple[str, Images, str]:
    try:
        return "mnist", mnist(root), "auto: MNIST is available"
    except DataUnavailableError as error:
        return "digits", digits(root), f"auto: {error.problem}"
