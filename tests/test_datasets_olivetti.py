import hashlib
import os
import pickle
import sys
from contextlib import suppress
from io import BytesIO

import joblib
import numpy as np
import pytest
import scipy
import torch
from sklearn.datasets import _olivetti_faces, fetch_olivetti_faces

from datasets import load_splits
from datasets.olivetti import FILE, SHA256, URL, as_images, olivetti, portraits_of
from datasets.splits import DataUnavailableError
from tests.test_models_published import Trap

module = sys.modules[olivetti.__module__]  # the package has a function of this name


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    monkeypatch.setattr(module, "URL", "http://127.0.0.1:9/olivettifaces.mat")
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between scikit-learn's attempts


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


@pytest.fixture
def original(monkeypatch):
    """A file like the original: 400 portraits as columns, each with its columns first."""
    columns = np.random.default_rng(0).integers(256, size=(64 * 64, 400), dtype=np.uint8)
    file = BytesIO()
    scipy.io.savemat(file, {"faces": columns})
    monkeypatch.setattr(module, "SHA256", hashlib.sha256(file.getvalue()).hexdigest())
    return file.getvalue()


def test_the_original_file_is_read_offline(tmp_path, original):
    (tmp_path / FILE).write_bytes(original)
    images = olivetti(tmp_path)
    sizes = {name: len(labels) for name, (_, labels) in parts(images).items()}
    assert sizes == {"train": 280, "valid": 80, "test": 40}
    splits, _ = load_splits("olivetti", str(tmp_path), seed=0)
    assert (splits.classes, splits.image_shape) == (40, (1, 128, 128))
    assert splits.source == str(tmp_path / FILE)


def test_the_portraits_are_those_of_scikit_learn(tmp_path, original):
    """scikit-learn reads its cache, a pickle, so this writes the cache as scikit-learn does."""
    faces = scipy.io.loadmat(BytesIO(original))["faces"].T.copy()
    joblib.dump(faces, tmp_path / "olivetti_py3.pkz", compress=6)
    theirs = fetch_olivetti_faces(data_home=tmp_path, download_if_missing=False).images
    assert np.array_equal(portraits_of(original), theirs)


def test_the_file_is_the_one_that_scikit_learn_knows():
    known = _olivetti_faces.FACES
    assert (known.filename, known.url, known.checksum) == (FILE, URL, SHA256)


def test_a_failed_download_is_an_error_that_says_what_to_do(tmp_path):
    root = tmp_path / "data"
    message = rf"not in {root} and cannot be downloaded \(.+\): put {FILE} from http\S+ there, or"
    with pytest.raises(DataUnavailableError, match=message) as error:
        olivetti(root)
    assert "\n" not in str(error.value)
    (root / "olivetti_py3.pkz").touch()
    with pytest.raises(DataUnavailableError, match=r"can contain code, is not read\), or use"):
        olivetti(root)


@pytest.mark.parametrize("change", [b"", b"x", None])
def test_another_file_is_an_error_that_says_what_to_do(tmp_path, original, change):
    content = original[:-1] if change is None else change
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(DataUnavailableError, match=r"is damaged: delete it to download it again"):
        olivetti(tmp_path)
    assert (tmp_path / FILE).read_bytes() == content


def test_a_pipe_is_an_error(tmp_path):
    os.mkfifo(tmp_path / FILE)
    with pytest.raises(DataUnavailableError, match=rf"{FILE} is not the original file"):
        olivetti(tmp_path)


def test_code_in_the_cache_of_scikit_learn_is_never_executed(tmp_path, original):
    target = tmp_path / "created"
    with (tmp_path / "olivetti_py3.pkz").open("wb") as file:
        pickle.dump(Trap(target), file)
    with pytest.raises(DataUnavailableError, match="cannot be downloaded"):
        olivetti(tmp_path)
    (tmp_path / FILE).write_bytes(original)
    olivetti(tmp_path)
    assert not target.exists()
    with suppress(Exception):  # what the trap gives is no portrait
        fetch_olivetti_faces(data_home=tmp_path)
    assert target.exists()  # the trap was real
