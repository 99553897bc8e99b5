import joblib
import numpy as np
import pytest
import sklearn.datasets._olivetti_faces
import torch

from datasets import load_splits
from datasets.olivetti import FILE, as_images, olivetti
from datasets.splits import DataUnavailableError


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    module = sklearn.datasets._olivetti_faces
    monkeypatch.setattr(module, "FACES", module.FACES._replace(url="http://127.0.0.1:9/"))


def parts(images):
    return {"train": images.train, "valid": images.valid, "test": images.test}


def plain(people):
    """Portraits of uniform grey; the grey level is their number."""
    numbers = np.arange(10 * people, dtype=np.float32)
    return np.tile((numbers / 255)[:, None, None], (1, 64, 64))


def test_every_person_is_split_seven_two_one():
    portraits = np.random.default_rng(0).random((50, 64, 64), dtype=np.float32)
    images = as_images(portraits, "somewhere")
    for name, count in [("train", 7), ("valid", 2), ("test", 1)]:
        pixels, labels = parts(images)[name]
        assert pixels.dtype == torch.uint8
        assert pixels.shape == (5 * count, 144, 144)
        assert labels.bincount().tolist() == [count] * 5
    assert images.classes == tuple(f"person {number}" for number in range(1, 6))
    assert (images.source, images.white, images.crop) == ("somewhere", 255, 128)


def test_every_portrait_is_in_exactly_one_split_with_its_label():
    seen = []
    for pixels, labels in parts(as_images(plain(20), "")).values():
        assert (pixels == pixels[:, :1, :1]).all()
        numbers = pixels[:, 0, 0].long()
        assert torch.equal(numbers // 10, labels)
        seen += numbers.tolist()
    assert sorted(seen) == list(range(200))


def test_the_split_is_always_the_same_and_differs_between_people():
    first, again = as_images(plain(20), ""), as_images(plain(20), "")
    assert torch.equal(first.train[0], again.train[0])
    assert len(set((first.test[0][:, 0, 0] % 10).tolist())) > 1


def test_enlarging_does_not_shift_the_picture():
    portraits = np.zeros((10, 64, 64), dtype=np.float32)
    portraits[:, :32, 16:] = 1
    enlarged = as_images(portraits, "").train[0][0]
    assert (enlarged[:68, 40:] == 255).all()
    assert (enlarged[76:] == 0).all()
    assert (enlarged[:, :32] == 0).all()


def test_the_file_of_scikit_learn_is_read_offline(tmp_path):
    numbers = np.random.default_rng(0).integers(256, size=(400, 64 * 64), dtype=np.uint8)
    joblib.dump(numbers, tmp_path / FILE, compress=6)
    images = olivetti(tmp_path)
    sizes = {name: len(labels) for name, (_, labels) in parts(images).items()}
    assert sizes == {"train": 280, "valid": 80, "test": 40}
    splits, _ = load_splits("olivetti", str(tmp_path), seed=0)
    assert (splits.classes, splits.image_shape) == (40, (1, 128, 128))
    assert splits.source == str(tmp_path / FILE)


def test_a_failed_download_is_an_error_that_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between scikit-learn's attempts
    message = rf"not in {tmp_path} and cannot be downloaded \(.+\): put scikit-learn's {FILE} there"
    with pytest.raises(DataUnavailableError, match=message) as error:
        olivetti(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"no pickle", b"shape"])
def test_a_damaged_file_is_an_error_that_says_what_to_do(tmp_path, content):
    (tmp_path / FILE).write_bytes(content)
    if content == b"shape":
        joblib.dump(np.zeros((3, 64)), tmp_path / FILE)
    with pytest.raises(
        DataUnavailableError, match=rf"{FILE} is damaged \(.+\): delete it to download"
    ):
        olivetti(tmp_path)
