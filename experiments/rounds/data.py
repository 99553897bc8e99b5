"""Data: the splits that a config asks for."""

from datasets import Splits, load_splits
from experiments.config.experiment import Config
from experiments.training.loop import derive_seed

FEW_TESTS = 30  # images; with fewer, a warning says how coarse test accuracy is


def load_data(config: Config) -> tuple[Splits, str]:
    """The data of an experiment, and in words why it is these.

    Raises:
        ValueError: As `datasets.load_splits`.
    """
    seed = derive_seed(config.streams()["split_seed"], "split")
    return load_splits(config.dataset, config.data_root, seed, config.train_limit, config.scaling())


def few_tests_warning(images: int) -> list[str]:
    """A line that says how little a small number of test images can show, if it is small.

    The bound is that of Clopper and Pearson 1934, doi:10.1093/biomet/26.4.404, for no error.
    """
    if not 0 < images < FEW_TESTS:
        return []
    each, bound = 100 / images, 0.05 ** (1 / images)
    return [
        f"WARNING: {images} test image{'s' if images > 1 else ''}: each is {each:.0f} percentage "
        f"points of test accuracy, and even without an error the accuracy on new images may be "
        f"as low as {bound:.0%} (95% confidence): add images for a finer estimate"
    ]
