"""Digits: the 1,797 handwritten digits, 8x8 pixels, that come with scikit-learn."""

from pathlib import Path

import numpy as np
import torch

from datasets.splits import Images


def digits(root: Path) -> Images:
    """All digits; one in seven is a test image, as in MNIST, the same ones for every seed."""
    from sklearn.datasets import load_digits  # here: slow to import

    del root  # nothing is read from disk
    bunch = load_digits()
    order = np.random.default_rng(0).permutation(len(bunch.target))
    images = torch.from_numpy(bunch.images[order].astype(np.uint8))
    labels = torch.from_numpy(bunch.target[order].astype(np.int64))
    tests = round(len(labels) / 7)
    return Images(
        source="scikit-learn load_digits",
        white=16,
        train=(images[tests:], labels[tests:]),
        test=(images[:tests], labels[:tests]),
    )
