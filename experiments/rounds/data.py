"""Data: the splits that a config asks for."""

from datasets import Splits, load_splits
from experiments.config.experiment import Config
from experiments.config.fields import NONE
from experiments.training.loop import derive_seed


def load_data(config: Config) -> tuple[Splits, str]:
    """The data of an experiment, and in words why it is these.

    Raises:
        ValueError: As `datasets.load_splits`.
    """
    raw = config.pretrained != NONE  # published networks know pixels in [0, 1]
    seed = derive_seed(config.seed, "split")
    return load_splits(
        config.dataset, config.data_root, seed, config.train_limit, standardise=not raw
    )
