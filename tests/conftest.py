import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
os.environ |= {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false"}
# Where workers find what they import ahead, as they do in the folder that users start us in.
os.environ["PYTHONPATH"] = str(ROOT)
PATIENCE = 600  # seconds that a process is waited for at most, on a machine with other work, too
# Threads that wait spin, and tests that run side by side would crawl: they get one thread each.
if "PYTEST_XDIST_WORKER" in os.environ:  # before torch is imported, and for all processes of ours
    os.environ["OMP_NUM_THREADS"] = "1"


def mnist_root() -> Path | None:
    """A folder with the real MNIST in it, if this machine has one."""
    for folder in (os.environ.get("WEIGHT_LOSS_DATA"), ROOT / "data", ROOT.parent / "shared/data"):
        if folder and (Path(folder) / "MNIST/raw/train-images-idx3-ubyte").is_file():
            return Path(folder)
    return None


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory) -> Path:
    """A new MLflow database; making one takes seconds, so it is made once and copied."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    code = "import mlflow; mlflow.MlflowClient().search_experiments()"
    env = os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{path}"}
    subprocess.run([sys.executable, "-c", code], env=env, check=True, capture_output=True)
    return path


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """No test fetches a data set, so that all go alike on every machine."""
    from torchvision.datasets import MNIST, FashionMNIST

    for kind in (MNIST, FashionMNIST):
        monkeypatch.setattr(kind, "mirrors", ["http://127.0.0.1:9/"])


def settle(folder: Path, empty_store: Path, patch: pytest.MonkeyPatch) -> None:
    """Go to a folder, and give it an MLflow of its own."""
    shutil.copy(empty_store, folder / "mlflow.db")
    patch.chdir(folder)
    patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
    for name in ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME"):
        patch.delenv(name, raising=False)


@pytest.fixture
def store(tmp_path, monkeypatch, empty_store) -> Path:
    """A folder to work in, with an MLflow of its own."""
    settle(tmp_path, empty_store, monkeypatch)
    return tmp_path


@contextmanager
def somewhere(folder: Path, empty_store: Path):
    """In a folder with an MLflow of its own, for longer than a test."""
    with pytest.MonkeyPatch.context() as patch:
        settle(folder, empty_store, patch)
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


# A small experiment of two pruning rounds that takes about a second.
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
    """QUICK as a command line, with some parameters changed."""
    return [word for name, value in (QUICK | changes).items() for word in (f"--{name}", str(value))]
