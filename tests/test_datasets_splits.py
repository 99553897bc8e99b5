from dataclasses import replace

import pytest
import torch

from datasets import DATASETS, load_splits
from datasets.splits import Images, Split, View, split_images


@pytest.fixture
def raw():
    """Image i is filled with i, which identifies it."""
    images = torch.arange(60, dtype=torch.uint8).repeat_interleave(4).reshape(60, 2, 2)
    return Images(
        source="here",
        white=100,
        train=(images, torch.arange(60) % 3),
        test=(images[:6] + 100, torch.zeros(6, dtype=torch.int64)),
    )


def pixels(splits, part):
    return getattr(splits, part).images[:, 0, 0, 0].tolist()


def test_train_and_valid_partition_the_training_images(raw):
    splits = split_images("x", raw, 0.1, seed=0, train_limit=0)
    train, valid = pixels(splits, "train"), pixels(splits, "valid")
    assert (len(train), len(valid), len(splits.test)) == (54, 6, 6)
    assert sorted(train + valid) == list(range(60))
    assert pixels(splits, "test") == [100, 101, 102, 103, 104, 105]
    assert splits.train.labels.tolist() == [value % 3 for value in train]


def test_the_seed_decides_train_and_valid_but_not_test(raw):
    one, same, other = (split_images("x", raw, 0.1, seed, 0) for seed in (1, 1, 2))
    assert pixels(one, "train") == pixels(same, "train")
    assert pixels(one, "valid") != pixels(other, "valid")
    assert pixels(one, "test") == pixels(other, "test")
    assert one.digest == same.digest != other.digest


def test_training_images_are_standardised(raw):
    splits = split_images("x", raw, 0.1, seed=0, train_limit=0)
    assert splits.train.images.shape == (54, 1, 2, 2)
    assert splits.image_shape == (1, 2, 2)
    inputs = splits.train.view.fixed(splits.train.images)
    assert inputs.mean().item() == pytest.approx(0, abs=1e-5)
    assert inputs.std(correction=0).item() == pytest.approx(1, abs=1e-5)
    raw_pixels = split_images("x", raw, 0.1, 0, 0, pixels="unit").train
    assert torch.equal(raw_pixels.view.fixed(raw_pixels.images), raw_pixels.images / 100)


def test_l2_pixels_have_norm_one_and_a_black_image_stays_zero():
    images = torch.tensor([[3, 0, 0, 4], [0, 0, 0, 0], [0, 0, 0, 1]], dtype=torch.uint8)
    view = View(white=100, mean=0, std=1, l2=True)
    found = view.fixed(images.view(3, 1, 2, 2)).view(3, 4)
    assert torch.allclose(found[0], torch.tensor([0.6, 0, 0, 0.8]))
    assert found[1:].tolist() == [[0, 0, 0, 0], [0, 0, 0, 1]]


def test_the_l2_norm_is_that_of_the_square_that_a_network_sees(raw):
    images = torch.full((1, 1, 4, 4), 200, dtype=torch.uint8)
    images[:, :, 1:3, 1:3] = torch.tensor([[3, 0], [0, 4]], dtype=torch.uint8)
    view = View(white=255, mean=0, std=1, crop=2, l2=True)
    assert torch.allclose(view.fixed(images).flatten(), torch.tensor([0.6, 0, 0, 0.8]))
    varied = view.varied(images.expand(20, 1, 4, 4), torch.Generator().manual_seed(0))
    assert torch.allclose(varied.flatten(1).norm(dim=1), torch.ones(20))
    splits = split_images("x", raw, 0.1, seed=0, train_limit=0, pixels="l2")
    assert splits.test.view == View(white=100, mean=0, std=1, l2=True)


def test_an_images_norm_does_not_depend_on_the_others():
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(256, (2500, 1, 3, 5), generator=draw, dtype=torch.uint8)
    split = Split(images, torch.zeros(2500).long(), View(255, 0, 1, l2=True))
    exact = 1 / (images.flatten(1).double() ** 2).sum(1).sqrt()
    assert torch.equal(split.factors, exact.float())
    alone = torch.cat([split.view.factors(images[row : row + 1]) for row in range(100)])
    assert torch.equal(split.factors[:100], alone)


def test_train_limit_applies_to_training_only(raw):
    whole = split_images("x", raw, 0.1, seed=0, train_limit=0)
    short = split_images("x", raw, 0.1, seed=0, train_limit=7)
    assert pixels(short, "train") == pixels(whole, "train")[:7]
    assert pixels(short, "valid") == pixels(whole, "valid")
    with pytest.raises(ValueError, match="train_limit must be at most 54 for x, got 55"):
        split_images("x", raw, 0.1, seed=0, train_limit=55)


def test_validation_images_of_a_data_set_are_used(raw):
    held = raw.train[0][50:] + 100
    own = replace(raw, valid=(held, torch.zeros(10, dtype=torch.int64)))
    splits = split_images("x", own, 0.1, seed=3, train_limit=0)
    assert pixels(splits, "train") == list(range(60))
    assert pixels(splits, "valid") == list(range(150, 160))
    short = split_images("x", own, 0.1, seed=3, train_limit=9)
    assert pixels(short, "valid") == pixels(splits, "valid")
    assert len(set(pixels(short, "train"))) == 9


@pytest.fixture
def crossed():
    """Ten images 5x7 whose pixel in row r and column c of image i is 35i + 7r + c."""
    values = torch.arange(35, dtype=torch.uint8).reshape(1, 1, 5, 7)
    return values.expand(10, 1, 5, 7), View(white=1, mean=0, std=1, crop=4)


def test_evaluation_uses_the_centre(crossed):
    images, view = crossed
    expected = images[:, :, 0:4, 1:5].float()
    assert torch.equal(view.fixed(images), expected)


def test_training_uses_every_square_and_its_mirror_image(crossed):
    images, view = crossed
    generator = torch.Generator().manual_seed(0)
    squares = torch.cat([view.varied(images, generator) for _ in range(40)]).int()
    found = {tuple(square.flatten().tolist()) for square in squares}
    possible = set()
    for top in range(2):
        for left in range(4):
            square = images[0, 0, top : top + 4, left : left + 4].int()
            possible |= {tuple(square.flatten().tolist()), tuple(square.flip(1).flatten().tolist())}
    assert found == possible
    assert len(possible) == 16


def test_augmentation_is_determined_by_the_generator(crossed):
    images, view = crossed
    one, same, other = (
        view.varied(images, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_one_changed_pixel_changes_the_digest(raw):
    before = split_images("x", raw, 0.1, 0, 0).digest
    raw.test[0][0, 0, 0] += 1
    assert split_images("x", raw, 0.1, 0, 0).digest != before


def test_digits_are_split_like_mnist():
    splits, why = load_splits("digits", "nowhere", seed=0)
    assert why == "requested by name"
    assert (len(splits.train), len(splits.valid), len(splits.test)) == (1412, 128, 257)
    assert (splits.classes, splits.image_shape) == (10, (1, 8, 8))
    other, _ = load_splits("digits", "nowhere", seed=1)
    assert torch.equal(splits.test.labels, other.test.labels)
    assert "digits" in DATASETS
