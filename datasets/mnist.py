"""MNIST and Fashion-MNIST, through torchvision: downloaded once, then read from disk.

LeCun et al. 1998; Xiao et al. 2017, arXiv:1708.07747. The raw IDX files are enough
(`<root>/MNIST/raw/train-images-idx3-ubyte` and the other three).
"""

import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from datasets.splits import DataUnavailableError, Images, Part

if TYPE_CHECKING:
    import torchvision

CONNECT_SECONDS = 20.0
LOCK_SECONDS = 300.0  # another process may be downloading


def mnist(root: Path) -> Images:
    """MNIST: 60,000 and 10,000 handwritten digits, 28x28."""
    from torchvision.datasets import MNIST  # here: slow to import

    return _load(MNIST, root)


def fashion_mnist(root: Path) -> Images:
    """Fashion-MNIST: 60,000 and 10,000 articles of clothing, 28x28."""
    from torchvision.datasets import FashionMNIST

    return replace(_load(FashionMNIST, root), classes=tuple(FashionMNIST.classes))


def _load(kind: "type[torchvision.datasets.MNIST]", root: Path) -> Images:
    folder = root / kind.__name__ / "raw"
    if not _complete(folder):
        _download(kind, root)
    try:
        train, test = _read(folder, "train"), _read(folder, "t10k")
    except (RuntimeError, ValueError, AssertionError, EOFError, TypeError, LookupError) as error:
        reason = str(error) if " " in str(error) else repr(error)
        problem = f"{kind.__name__} in {folder} is damaged"
        raise DataUnavailableError(
            f"{problem} ({reason}): delete that folder to download it again", problem
        ) from None
    return Images(
        source=str(folder),
        white=255,
        train=train,
        test=test,
    )


def _read(folder: Path, name: str) -> Part:
    """Read two files; torchvision's classes would prefer pickles in a folder `processed`."""
    from torchvision.datasets.mnist import read_image_file, read_label_file

    images = read_image_file(str(folder / f"{name}-images-idx3-ubyte"))
    labels = read_label_file(str(folder / f"{name}-labels-idx1-ubyte"))
    if len(images) != len(labels):
        raise ValueError(f"{len(images)} images, {len(labels)} labels")
    if images.shape[1:] != (28, 28):
        raise ValueError(f"images must be 28x28, not {tuple(images.shape[1:])}")
    if int(labels.max()) > 9:
        raise ValueError("labels must be from 0 to 9")
    return images, labels


FILES = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")


def _complete(folder: Path) -> bool:
    return all((folder / f"{name}-ubyte").is_file() for name in FILES)


def _download(kind: "type[torchvision.datasets.MNIST]", root: Path) -> None:
    """Download to a temporary folder, then rename: an interruption leaves nothing behind."""
    from filelock import FileLock

    final, lock = root / kind.__name__, root / f".{kind.__name__}.lock"
    made = [folder for folder in (root, *root.parents) if not folder.exists()]
    try:
        root.mkdir(parents=True, exist_ok=True)
        with (
            tempfile.TemporaryDirectory(prefix=".download-", dir=root) as partial,  # fails at once
            FileLock(lock, timeout=LOCK_SECONDS),  # where no file can be made, and this one waits
            removed(lock),
            socket_timeout(),
        ):
            if _complete(final / "raw"):  # another process has downloaded it
                return
            kind(partial, download=True)
            if final.exists():
                raise DataUnavailableError(
                    f"{final} exists but is incomplete: delete it to download it again"
                )
            (Path(partial) / kind.__name__).rename(final)
    except (RuntimeError, OSError) as error:
        with suppress(OSError):  # another process may have written to them, or be waiting there
            for folder in made:
                folder.rmdir()
        reason = str(error).strip().split("\n")[-1].strip("<>")  # of torchvision's list of mirrors
        problem = f"{kind.__name__} is not in {root} and cannot be downloaded"
        raise DataUnavailableError(
            f"{problem} ({reason}): put its four IDX files into {final / 'raw'}, "
            "use another data_root, or dataset=digits",
            problem,
        ) from None


@contextmanager
def removed(lock: Path) -> Iterator[None]:
    """Remove the file of a lock before it is released: who waits for it sees that, and retries."""
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)


@contextmanager
def socket_timeout() -> Iterator[None]:
    """Limit how long downloads wait for an answer if they set no timeout themselves."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(CONNECT_SECONDS)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
