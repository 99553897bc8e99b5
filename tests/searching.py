"""Searches for the tests of tuning: small, and each with a storage of its own."""

from pathlib import Path

from experiments.config.parameters import validated
from experiments.config.tune import TuneConfig
from experiments.tuning.search import Search
from experiments.tuning.storage import open_storage
from experiments.tuning.study import Study

# Trials of a fraction of a second, of networks that learn something.
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
    "workers": 1,
    "trials": 4,
    "search": "prune_rate=0.4..0.6,retrain_epochs=1..2",
}


def small(**asked: object) -> TuneConfig:
    """SMALL with some of it changed."""
    return validated(TuneConfig, SMALL | asked)


def search_of(method: str = "lottery", **asked: object) -> Search:
    """A search that knows its data without reading them; what is not said is as by default."""
    config = validated(TuneConfig, {"dataset": "digits", "device": "cpu"} | asked)
    model = config.config_of(method, {}, 0).resolved("digits").model
    digests = ("digest",) * config.seeds_per_trial
    return Search(config, method, "digits", model, (1, 8, 8), 10, digests)


def study_of(search: Search, folder: Path) -> Study:
    """The search's study in a file of its own."""
    return Study(search, open_storage(f"sqlite:///{folder}/optuna.db", 1, print))
