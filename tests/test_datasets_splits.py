import pytest
import torch

from datasets import DATASETS, load_splits
from datasets.splits import Images, split_images


@pytest.fixture
def raw():
    """Image i is filled with i, so that one can tell where an image went."""
    images = torch.arange(60, dtype=torch.uint8).repeat_interleave(4).reshape(60, 2, 2)
    return Images(
        source="here",
        white=100,
        images=images,
        labels=torch.arange(60) % 3,
        test_images=images[:6] + 100,
        test_labels=torch.zeros(6, dtype=torch.int64),
    )


def pixels(splits, part):
    images = getattr(splits, part).images * splits.std + splits.mean
    return (100 * images[:, 0, 0, 0]).round().int().tolist()


def test_train_and_valid_share_the_images_out(raw):
    splits = split_images("x", raw, 0.1, seed=0, train_limit=0)
    train, valid = pixels(splits, "train"), pixels(splits, "valid")
    assert (len(train), len(valid), len(splits.test)) == (54, 6, 6)
    assert sorted(train + valid) == list(range(60))
    assert pixels(splits, "test") == [100, 101, 102, 103, 104, 105]
    assert splits.train.labels.tolist() == [value % 3 for value in train]


def test_the_split_follows_the_seed_and_spares_the_test(raw):
    one, same, other = (split_images("x", raw, 0.1, seed, 0) for seed in (1, 1, 2))
    assert pixels(one, "train") == pixels(same, "train")
    assert pixels(one, "valid") != pixels(other, "valid")
    assert pixels(one, "test") == pixels(other, "test")
    assert one.digest == same.digest != other.digest


def test_training_images_are_standardised(raw):
    splits = split_images("x", raw, 0.1, seed=0, train_limit=0)
    assert splits.train.images.shape == (54, 1, 2, 2)
    assert splits.image_shape == (1, 2, 2)
    assert splits.train.images.mean().item() == pytest.approx(0, abs=1e-5)
    assert splits.train.images.std(correction=0).item() == pytest.approx(1, abs=1e-5)


def test_train_limit_shortens_training_alone(raw):
    whole = split_images("x", raw, 0.1, seed=0, train_limit=0)
    short = split_images("x", raw, 0.1, seed=0, train_limit=7)
    assert pixels(short, "train") == pixels(whole, "train")[:7]
    assert pixels(short, "valid") == pixels(whole, "valid")
    with pytest.raises(ValueError, match="train_limit must be at most 54 for x, got 55"):
        split_images("x", raw, 0.1, seed=0, train_limit=55)


def test_one_changed_pixel_changes_the_digest(raw):
    before = split_images("x", raw, 0.1, 0, 0).digest
    raw.test_images[0, 0, 0] += 1
    assert split_images("x", raw, 0.1, 0, 0).digest != before


def test_digits_are_split_like_mnist():
    splits, why = load_splits("digits", "nowhere", seed=0)
    assert why == "asked for by name"
    assert (len(splits.train), len(splits.valid), len(splits.test)) == (1412, 128, 257)
    assert (splits.classes, splits.image_shape) == (10, (1, 8, 8))
    other, _ = load_splits("digits", "nowhere", seed=1)
    assert torch.equal(splits.test.labels, other.test.labels)
    assert "digits" in DATASETS
