"""Splits: train, valid and test as tensors, determined by a seed.

The test images are the official ones of the data set. Images are kept as stored, one byte per
pixel, and become inputs batch by batch on the device. Everything is selected on `valid`; `test` is
only reported.
"""

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

PIXELS = ("standardised", "unit", "l2")  # what a network sees; `View` says more
COUNT_BATCH = 10_000  # images whose pixels are counted at once
NORM_BATCH = 1000  # images whose pixels are squared at once


class DataUnavailableError(ValueError):
    """A data set is missing, cannot be downloaded, or is damaged. The message says what to do.

    `problem` is the message without the cause and without what to do.
    """

    def __init__(self, message: str, problem: str = "") -> None:
        super().__init__(message)
        self.problem = problem or message


Part = tuple[Tensor, Tensor]  # images [N, height, width] uint8 and labels [N] int64


@dataclass(frozen=True)
class Images:
    """A data set as stored: grey images with pixels from 0 to `white`, and labels."""

    source: str  # the folder, file or library that it comes from
    white: int
    train: Part
    test: Part
    valid: Part | None = None  # None: a share of the training images is held out
    crop: int = 0  # side of the square that a network sees; 0 means the whole image
    classes: tuple[str, ...] = ()  # names, if any
    mapped: bool = False  # the images are memory-mapped and read on demand


@dataclass(frozen=True)
class View:
    """How a stored image becomes the input of a network.

    A pixel p in [0, 1] is standardised to (p - mean) / std. If `l2` is set, it is divided by the L2
    norm of the image instead, and a black image stays zero. With a `crop`, training uses a random
    square of that side, mirrored with probability 1/2, and evaluation the square in the centre; the
    norm is that of the square.
    """

    white: int
    mean: float  # 0 with l2
    std: float  # 1 with l2
    crop: int = 0
    l2: bool = False

    def fixed(self, images: Tensor) -> Tensor:
        """Stored images [N, 1, height, width] to inputs for evaluation."""
        return self.standard(self.centre(images))

    def varied(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Stored images [N, 1, height, width] to inputs for training, each augmented at random."""
        return self.standard(self.squares(images, generator))

    def centre(self, images: Tensor) -> Tensor:
        """The part of stored images that evaluation uses."""
        if not self.crop:
            return images
        top, left = ((side - self.crop) // 2 for side in images.shape[-2:])
        return images[..., top : top + self.crop, left : left + self.crop]

    def squares(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """The part of stored images that training uses, at random places, mirrored at random."""
        if not self.crop:
            return images
        count, side = len(images), torch.arange(self.crop)
        height, width = images.shape[-2:]
        tops = torch.randint(height - self.crop + 1, (count, 1), generator=generator)
        lefts = torch.randint(width - self.crop + 1, (count, 1), generator=generator)
        mirrored = torch.randint(2, (count, 1), generator=generator).bool()
        rows = tops + side  # [N, crop]
        columns = lefts + torch.where(mirrored, side.flip(0), side)  # [N, crop]
        flat = (rows[:, :, None] * width + columns[:, None, :]).flatten(1).to(images.device)
        return images.flatten(1).gather(1, flat).view(count, 1, self.crop, self.crop)

    def standard(self, images: Tensor) -> Tensor:
        """Stored images that are cropped to inputs; both [N, 1, height, width]."""
        if self.l2:
            return images.float().mul_(self.factors(images)[:, None, None, None])
        return images.float().div_(self.white).sub_(self.mean).div_(self.std)

    def factors(self, images: Tensor) -> Tensor:
        """What the stored pixels of each image are multiplied by with `l2`: [N] float32.

        The sums are exact, so a factor does not depend on the other images or the device.
        """
        parts = torch.split(images.flatten(1), NORM_BATCH)
        squares = torch.cat([part.int().square().sum(1) for part in parts])
        return squares.clamp(min=1).double().sqrt().reciprocal().float()  # at least 1, or black

    def table(self) -> Tensor:
        """The input for each stored byte, [256]; with `l2` before its image's factor."""
        stored = torch.arange(256, dtype=torch.uint8)
        return stored.float() if self.l2 else self.standard(stored)


@dataclass(frozen=True)
class Split:
    """One split of a data set; its batches go to the device of `labels`."""

    images: Tensor  # [N, 1, height, width] uint8, as stored
    labels: Tensor  # [N] int64
    view: View
    mapped: bool = False  # `to` leaves the images where they are

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Channels, height and width of an input."""
        side = self.view.crop
        return (1, side, side) if side else tuple(self.images.shape[1:])

    @cached_property
    def factors(self) -> Tensor:
        """`View.factors` of all images, for a view that is `l2` and does not crop."""
        return self.view.factors(self.images)

    def to(self, device: str) -> "Split":
        """A copy on a torch device."""
        images = self.images if self.mapped else self.images.to(device)
        return replace(self, images=images, labels=self.labels.to(device))

    def stored(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The stored images and the labels of the given rows [n] int64."""
        images = self.images.index_select(0, rows.to(self.images.device))
        labels = self.labels.index_select(0, rows.to(self.labels.device))
        return images.to(labels.device), labels


@dataclass(frozen=True)
class Splits:
    """The three splits of a data set.

    Pixels are standardised with the mean and standard deviation of the training images, unless the
    view says otherwise. `digest` identifies the exact content and order.
    """

    name: str
    source: str
    classes: int
    digest: str
    train: Split
    valid: Split
    test: Split | None  # None during a search, which must not use it
    class_names: tuple[str, ...] = ()  # if any

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Channels, height and width of an input."""
        return self.train.image_shape

    def to(self, device: str) -> "Splits":
        """A copy on a torch device."""
        parts = {name: getattr(self, name) for name in ("train", "valid", "test")}
        return replace(self, **{name: part and part.to(device) for name, part in parts.items()})

    def without_test(self) -> "Splits":
        """A copy for model selection, which must not see the test images."""
        return replace(self, test=None)


def split_images(
    name: str,
    raw: Images,
    valid_share: float,
    seed: int,
    train_limit: int,
    pixels: str = PIXELS[0],
) -> Splits:
    """The splits of a data set, for networks.

    Args:
        valid_share: Share of the training images to hold out for validation, in (0, 1), if the data
            set has no validation images.
        seed: Of the permutation that decides which images are held out and which are limited.
        train_limit: Maximum number of training images; 0 means all.
        pixels: What a network sees: "standardised"; "unit", in [0, 1]; "l2", divided by the L2 norm
            of the image.

    Raises:
        ValueError: If `train_limit` is larger than the number of training images.
    """
    train, valid = _train_and_valid(name, raw, valid_share, seed, train_limit)
    parts = {"train": train, "valid": valid, "test": raw.test}
    mean, std = _mean_and_std(train[0], raw.white)
    if not std:
        raise ValueError(f"all training images of {name} have the same colour")
    if pixels != "standardised":
        mean, std = 0, 1
    view = View(raw.white, mean, std, raw.crop, l2=pixels == "l2")
    splits = {
        part: Split(images.unsqueeze(1), labels, view, raw.mapped)
        for part, (images, labels) in parts.items()
    }
    classes = len(raw.classes) or int(raw.train[1].max()) + 1
    return Splits(
        name=name,
        source=raw.source,
        classes=classes,
        digest=_digest(list(parts.values())),
        class_names=raw.classes,
        **splits,
    )


def _train_and_valid(
    name: str, raw: Images, valid_share: float, seed: int, train_limit: int
) -> tuple[Part, Part]:
    images, labels = raw.train
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    rows, train_rows = order.tensor_split([0 if raw.valid else round(valid_share * len(order))])
    if train_limit > len(train_rows):
        raise ValueError(
            f"train_limit must be at most {len(train_rows)} for {name}, got {train_limit}"
        )
    valid = raw.valid or (images[rows], labels[rows])
    train_rows = train_rows[: train_limit or None]
    whole = raw.valid and not train_limit  # may be larger than memory: neither copied nor shuffled
    train = raw.train if whole else (images[train_rows], labels[train_rows])
    if not (len(train[1]) and len(valid[1])):
        raise ValueError(f"{name} is too small to split: it has {len(order)} training images")
    return train, valid


def _mean_and_std(images: Tensor, white: int) -> tuple[float, float]:
    """Of pixels in [0, 1]; counting the 256 values is exact and much faster than summing."""
    counts = torch.zeros(256, dtype=torch.float64)
    for some in torch.split(images, COUNT_BATCH):
        counts += torch.bincount(some.flatten(), minlength=256)
    values = torch.arange(256, dtype=torch.float64) / white
    mean = (counts * values).sum() / counts.sum()
    return float(mean), float(((counts * (values - mean) ** 2).sum() / counts.sum()).sqrt())


def _digest(parts: list[Part]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for images, labels in parts:
        digest.update(images.numpy().data)
        digest.update(labels.numpy().data)
    return digest.hexdigest()
