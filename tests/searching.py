"""Small searches for the tests of tuning, each with a storage of its own."""

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path

from experiments.config.parameters import validated
from experiments.config.tune import TuneConfig
from experiments.tuning.search import Search
from experiments.tuning.storage import Storage
from experiments.tuning.study import Study

# Trials that take a fraction of a second, of networks that learn something.
SMALL = {
    "dataset": "digits",
    "model": "lenet_30_20",
    "epochs": 1,
    "retrain_epochs": 1,
    "prune_rate": 0.5,
    "lr": 0.01,
    "train_limit": 200,
    "device": "cpu",
    "confirm_seeds": 0,
    "executor": "inline",
    "trials": 4,
    "search": "prune_rate=0.4..0.6,retrain_epochs=1..2",
}


def small(**asked: object) -> TuneConfig:
    """SMALL with some of it changed."""
    return validated(TuneConfig, SMALL | asked)


def search_of(method: str = "lottery", **asked: object) -> Search:
    """A search that has not read its data."""
    config = validated(TuneConfig, {"dataset": "digits", "device": "cpu"} | asked)
    model = config.config_of(method, {}, 0).resolved("digits").model
    digests = ("digest",) * config.seeds_per_trial
    return Search(config, method, "digits", model, (1, 8, 8), 10, digests)


def study_of(search: Search, folder: Path) -> Study:
    """The search's study in a storage in `folder`."""
    if not (path := folder / "optuna.db").exists():
        shutil.copy(_empty_storage(), path)
    return Study(search, Storage(f"sqlite:///{path}", 1, print))


@cache
def _empty_storage() -> Path:
    """A storage without studies; creating its tables takes a second, copying it does not."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    Storage(f"sqlite:///{folder}/optuna.db", 1, print)
    return folder / "optuna.db"
