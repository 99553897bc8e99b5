import gzip
import hashlib
import sys
import threading
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
import torchvision
from filelock import FileLock

from datasets import DataUnavailableError, load_splits
from tests.conftest import mnist_root

COUNTS = {"train": 24, "t10k": 6}


def write_idx(folder: Path) -> None:
    """A tiny data set in the file format of MNIST."""
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    for part, count in COUNTS.items():
        images = torch.randint(256, (count * 784,), generator=generator, dtype=torch.uint8)
        head = b"".join(n.to_bytes(4, "big") for n in (2051, count, 28, 28))
        (folder / f"{part}-images-idx3-ubyte").write_bytes(head + images.numpy().tobytes())
        head = b"".join(n.to_bytes(4, "big") for n in (2049, count))
        labels = bytes(n % 10 for n in range(count))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(head + labels)


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@contextmanager
def serve(folder):
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("name", "folder"), [("mnist", "MNIST"), ("fashion_mnist", "FashionMNIST")]
)
def test_raw_files_on_disk_are_sufficient(tmp_path, name, folder):
    write_idx(tmp_path / folder / "raw")
    splits, why = load_splits(name, str(tmp_path), seed=0)
    assert (len(splits.train), len(splits.valid), len(splits.test)) == (22, 2, 6)
    assert splits.image_shape == (1, 28, 28)
    assert splits.name == name
    assert why == "requested by name"


def test_an_unavailable_data_set_is_an_error_that_says_what_to_do(tmp_path):
    with pytest.raises(
        DataUnavailableError,
        match=r"MNIST is not in .* \(urlopen error tests run offline, so .* or dataset=digits$",
    ):
        load_splits("mnist", str(tmp_path), seed=0)
    assert not list(tmp_path.iterdir())


def test_auto_falls_back_to_digits_and_says_why(tmp_path):
    splits, why = load_splits("auto", str(tmp_path), seed=0)
    assert splits.name == "digits"
    assert why == f"auto: MNIST is not in {tmp_path} and cannot be downloaded"


def test_auto_falls_back_to_digits_if_mnist_is_damaged(tmp_path):
    write_idx(tmp_path / "MNIST" / "raw")
    (tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte").write_bytes(b"")
    splits, why = load_splits("auto", str(tmp_path), seed=0)
    assert (splits.name, why) == ("digits", f"auto: MNIST in {tmp_path}/MNIST/raw is damaged")


def test_auto_is_mnist_if_it_is_on_disk(tmp_path):
    write_idx(tmp_path / "MNIST" / "raw")
    splits, why = load_splits("auto", str(tmp_path), seed=0)
    assert (splits.name, why) == ("mnist", "auto: MNIST is available")


@pytest.mark.parametrize("damaged", [b"", b"\0\0\x08", b"\0\0\x08\3" + bytes(96), b"\0\0\x0a\3"])
def test_a_damaged_file_is_rejected(tmp_path, damaged):
    write_idx(tmp_path / "MNIST" / "raw")
    (tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte").write_bytes(damaged)
    with pytest.raises(DataUnavailableError, match=r"is damaged .* delete that folder"):
        load_splits("mnist", str(tmp_path), seed=0)


@pytest.mark.parametrize(
    ("part", "labels"), [("train", 23), ("train", 25), ("t10k", 5)], ids=["few", "many", "test"]
)
def test_another_number_of_labels_is_rejected(tmp_path, part, labels):
    write_idx(tmp_path / "MNIST" / "raw")
    path = tmp_path / "MNIST" / "raw" / f"{part}-labels-idx1-ubyte"
    path.write_bytes(path.read_bytes()[:4] + labels.to_bytes(4, "big") + bytes(labels))
    with pytest.raises(DataUnavailableError, match=f"is damaged .* images, {labels} labels"):
        load_splits("mnist", str(tmp_path), seed=0)


def test_a_label_above_9_is_rejected(tmp_path):
    write_idx(tmp_path / "MNIST" / "raw")
    path = tmp_path / "MNIST" / "raw" / "train-labels-idx1-ubyte"
    path.write_bytes(path.read_bytes()[:-1] + bytes([10]))
    with pytest.raises(DataUnavailableError, match="labels must be from 0 to 9"):
        load_splits("mnist", str(tmp_path), seed=0)


def test_a_download_is_reused_offline(tmp_path, monkeypatch):
    web = tmp_path / "web"
    write_idx(web)
    resources = []
    for path in sorted(web.iterdir()):
        packed = path.with_name(f"{path.name}.gz")
        packed.write_bytes(gzip.compress(path.read_bytes()))
        resources.append((packed.name, hashlib.md5(packed.read_bytes()).hexdigest()))
    kind = torchvision.datasets.MNIST
    monkeypatch.setattr(kind, "resources", resources)
    root = tmp_path / "root"
    with serve(web) as address:
        monkeypatch.setattr(kind, "mirrors", [address])
        first, _ = load_splits("mnist", str(root), seed=0)
    assert not list(root.glob(".download-*"))
    again, _ = load_splits("mnist", str(root), seed=0)
    assert again.digest == first.digest


def test_a_failed_download_leaves_nothing_behind(tmp_path, monkeypatch):
    web = tmp_path / "web"
    web.mkdir()
    kind = torchvision.datasets.MNIST
    (web / kind.resources[0][0]).write_bytes(b"half a file")
    with serve(web) as address:
        monkeypatch.setattr(kind, "mirrors", [address])
        for root in (tmp_path, tmp_path / "new/root"):
            with pytest.raises(DataUnavailableError, match="cannot be downloaded"):
                load_splits("mnist", str(root), seed=0)
    assert list(tmp_path.iterdir()) == [web]


def test_a_process_that_waits_in_vain_leaves_the_lock_to_the_one_that_downloads(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(sys.modules["datasets.mnist"], "LOCK_SECONDS", 0.1)
    lock = tmp_path / ".MNIST.lock"
    with FileLock(lock):
        with pytest.raises(DataUnavailableError, match="cannot be downloaded"):
            load_splits("mnist", str(tmp_path), seed=0)
        assert lock.exists()


@pytest.mark.real_data
@pytest.mark.skipif(mnist_root() is None, reason="real MNIST is not on this machine")
def test_real_mnist_is_split_as_in_the_paper():
    splits, _ = load_splits("mnist", str(mnist_root()), seed=0)
    assert (len(splits.train), len(splits.valid), len(splits.test)) == (55_000, 5_000, 10_000)
    assert splits.train.view.mean == pytest.approx(0.1307, abs=2e-4)
    assert splits.train.view.std == pytest.approx(0.3081, abs=2e-4)
    assert splits.test.labels[:5].tolist() == [7, 2, 1, 0, 4]
