"""Splits: train, valid and test as tensors, the same for everybody with a seed.

The test images are those that the data set's makers set aside. Everything is selected on `valid`;
`test` is only reported.
"""

import hashlib
from dataclasses import dataclass, replace

import torch
from torch import Tensor


class DataUnavailableError(ValueError):
    """A data set is not there, cannot be fetched, or is damaged. The message says what to do."""


@dataclass(frozen=True)
class Images:
    """A data set as its files hold it: grey images with pixels from 0 to `white`, and labels."""

    source: str  # where it came from: a folder or an address
    white: int
    images: Tensor  # [N, height, width] uint8, those to train with
    labels: Tensor  # [N] int64
    test_images: Tensor  # [M, height, width] uint8
    test_labels: Tensor  # [M] int64


@dataclass(frozen=True)
class Split:
    """One part of a data set, ready to train with."""

    images: Tensor  # [N, 1, height, width] float32, standardised
    labels: Tensor  # [N] int64

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: str) -> "Split":
        """The same on a device of torch's."""
        return Split(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True)
class Splits:
    """The three parts of a data set.

    Pixels are standardised: a pixel p in [0, 1] becomes (p - mean) / std, with the mean and the
    standard deviation of the training images. `digest` identifies the exact content and order.
    """

    name: str
    source: str
    classes: int
    mean: float
    std: float
    digest: str
    train: Split
    valid: Split
    test: Split

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Channels, height and width."""
        return tuple(self.train.images.shape[1:])

    def to(self, device: str) -> "Splits":
        """The same on a device of torch's."""
        parts = {name: getattr(self, name).to(device) for name in ("train", "valid", "test")}
        return replace(self, **parts)


def split_images(name: str, raw: Images, valid_share: float, seed: int, train_limit: int) -> Splits:
    """Set a random `valid_share` of the training images aside, standardise.

    Args:
        valid_share: Share of the training images, in (0, 1).
        seed: Of the permutation that decides which images validate.
        train_limit: Use only so many training images; 0 means all.

    Raises:
        ValueError: If `train_limit` is larger than the number of training images.
    """
    order = torch.randperm(len(raw.labels), generator=torch.Generator().manual_seed(seed))
    valid, train = order.tensor_split([round(valid_share * len(order))])
    if train_limit > len(train):
        raise ValueError(f"train_limit must be at most {len(train)} for {name}, got {train_limit}")
    train = train[: train_limit or None]
    if not (len(train) and len(valid)):
        raise ValueError(f"{name} is too small to be split: it has {len(order)} training images")
    parts = [
        (raw.images[train], raw.labels[train]),
        (raw.images[valid], raw.labels[valid]),
        (raw.test_images, raw.test_labels),
    ]
    mean, std = _mean_and_std(parts[0][0], raw.white)
    if not std:
        raise ValueError(f"all training images of {name} are one colour")

    def ready(images: Tensor, labels: Tensor) -> Split:
        standard = images.float().div_(raw.white).sub_(mean).div_(std)
        return Split(standard.unsqueeze(1), labels)

    return Splits(
        name=name,
        source=raw.source,
        classes=int(raw.labels.max()) + 1,
        mean=mean,
        std=std,
        digest=_digest(parts),
        train=ready(*parts[0]),
        valid=ready(*parts[1]),
        test=ready(*parts[2]),
    )


def _mean_and_std(images: Tensor, white: int) -> tuple[float, float]:
    """Of pixels in [0, 1]; counting the 256 values is exact, and much faster than adding up."""
    counts = torch.bincount(images.flatten(), minlength=256).double()
    values = torch.arange(256, dtype=torch.float64) / white
    mean = (counts * values).sum() / counts.sum()
    return float(mean), float(((counts * (values - mean) ** 2).sum() / counts.sum()).sqrt())


def _digest(parts: list[tuple[Tensor, Tensor]]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for images, labels in parts:
        digest.update(images.numpy().data)
        digest.update(labels.numpy().data)
    return digest.hexdigest()
