"""Datasets: from a name to train, valid and test images as tensors.

A loader is a function `(root) -> Images`, with the images as its files hold them; splitting and
standardising are done here, the same for all. To add one: write a loader in a file of its own, add
a line to `DATASETS`.
"""

from collections.abc import Callable
from pathlib import Path

from datasets.digits import digits
from datasets.faces import faces
from datasets.mnist import fashion_mnist, mnist
from datasets.olivetti import olivetti
from datasets.splits import DataUnavailableError, Images, Split, Splits, View, split_images

__all__ = ["DATASETS", "DataUnavailableError", "Images", "Split", "Splits", "View", "load_splits"]

DATASETS: dict[str, Callable[[Path], Images]] = {
    "mnist": mnist,
    "fashion_mnist": fashion_mnist,
    "digits": digits,
    "faces": faces,
    "olivetti": olivetti,
}
VALID_SHARE = 1 / 12  # 5,000 of MNIST's 60,000 (arXiv:1803.03635, appendix G)


def load_splits(
    name: str, root: str, seed: int, train_limit: int = 0, standardise: bool = True
) -> tuple[Splits, str]:
    """The splits of a data set, and in words why it is this one.

    The name "auto" stands for MNIST where it is on disk or can be downloaded, otherwise digits.

    Raises:
        DataUnavailableError: If the data set is named and cannot be had.
        ValueError: If `train_limit` is larger than the number of training images.
    """
    why = "asked for by name"
    wanted = "mnist" if name == "auto" else name
    try:
        raw = DATASETS[wanted](Path(root))
        if name == "auto":
            why = "auto: MNIST is there"
    except DataUnavailableError as error:
        if name != "auto":
            raise
        wanted, why = "digits", f"auto: {error}"
        raw = DATASETS[wanted](Path(root))
    return split_images(wanted, raw, VALID_SHARE, seed, train_limit, standardise), why
