"""Fixtures and settings that all tests share."""

import gc
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from filelock import FileLock

gc.disable()  # until all is imported: searching modules for garbage takes time
ROOT = Path(__file__).parent.parent
os.environ |= {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false"}
os.environ["PYTHONPATH"] = str(ROOT)  # worker processes import our packages from any folder
TIMEOUT = 600  # seconds; the limit for a process on a busy machine
if "PYTEST_XDIST_WORKER" in os.environ:  # set before torch is imported
    os.environ["OMP_NUM_THREADS"] = "1"  # parallel tests with spinning threads slow each other down


def data_folder(name: str) -> Path | None:
    """The first data folder of this machine that contains the file `name`."""
    for folder in (os.environ.get("WEIGHT_LOSS_DATA"), ROOT / "data", ROOT.parent / "shared/data"):
        if folder and (Path(folder) / name).is_file():
            return Path(folder)
    return None


def mnist_root() -> Path | None:
    """A `data_root` with the real MNIST, if this machine has one."""
    return data_folder("MNIST/raw/train-images-idx3-ubyte")


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """Let no test reach another machine, so that results do not depend on the network."""
    resolve = socket.getaddrinfo

    def resolve_local(host, *args, **kwargs):
        if host not in (None, "", "localhost", "127.0.0.1", "::1", "0.0.0.0"):
            raise socket.gaierror(f"tests run offline, so {host} is not resolved")
        return resolve(host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", resolve_local)


# The modules with the longest tests: they start first, so that no worker waits for another.
LONGEST = ("test_tuning_kills", "test_tune_stops", "test_compare", "test_project", "test_servers")


def pytest_collection_finish():
    gc.freeze()
    gc.enable()


def pytest_unconfigure():
    gc.unfreeze()


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.stem not in LONGEST)


@pytest.fixture(scope="module")
def data():
    """A few of the digits."""
    from datasets import load_splits  # here: OMP_NUM_THREADS is set above

    return load_splits("digits", "nowhere", seed=0, train_limit=300)[0]


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory) -> Path:
    """An empty MLflow database to copy: creating one takes seconds, so all workers share it."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # that of the session; each worker has one below it
    path = folder / "empty.db"
    with FileLock(folder / "empty.lock"):
        if not path.exists():
            create_store(path)
    return path


def create_store(path: Path) -> None:
    """Create an MLflow database, in a process that leaves no connection to it open."""
    partial = path.with_suffix(".partial")
    code = "import mlflow; mlflow.MlflowClient().search_experiments()"
    env = os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{partial}"}
    subprocess.run([sys.executable, "-c", code], env=env, check=True, capture_output=True)
    partial.rename(path)


def use_store(folder: Path, empty_store: Path, patch: pytest.MonkeyPatch) -> None:
    """Change to a folder, and log to a new MLflow database there."""
    shutil.copy(empty_store, folder / "mlflow.db")
    patch.chdir(folder)
    patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
    # Created on first use, and therefore with artifacts below the folder; Default exists already.
    patch.setenv("MLFLOW_EXPERIMENT_NAME", "weight-loss")
    for name in ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID"):
        patch.setenv(name, "")  # so that what MLflow sets is removed at the end
        patch.delenv(name)
    from mlflow.tracking import fluent

    patch.setattr(fluent, "_active_experiment_id", None)  # what `mlflow.set_experiment` chose


@pytest.fixture
def store(tmp_path, monkeypatch, empty_store) -> Path:
    """The working folder of a test, with an MLflow database of its own."""
    use_store(tmp_path, empty_store, monkeypatch)
    return tmp_path


@contextmanager
def working_in(folder: Path, empty_store: Path):
    """The same as `store` for fixtures that several tests share."""
    with pytest.MonkeyPatch.context() as patch:
        use_store(folder, empty_store, patch)
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


def wait_until(condition) -> None:
    give_up = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.1)


@contextmanager
def sent_when(number: int, condition):
    """Send this process a signal as soon as a condition holds."""

    def send() -> None:
        wait_until(condition)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield
    finally:
        thread.join()


# A small experiment with two pruning rounds; it takes about a second.
QUICK = {
    "dataset": "digits",
    "model": "lenet_30_20",
    "epochs": 2,
    "retrain_epochs": 2,
    "rounds": 2,
    "lr": 0.01,
    "train_limit": 300,
    "device": "cpu",
}


def command(**changes: object) -> list[str]:
    """QUICK as command-line arguments, with some parameters changed."""
    return [word for name, value in (QUICK | changes).items() for word in (f"--{name}", str(value))]
