"""Fingerprint: are two experiments the same, so that one of them need not be run again?

They are if their settings, data, kind of device, threads, library versions and code are the same.
Their code is what these settings run: everything that training, pruning and loading the data can
reach, and of each registry only the entry that the settings choose. So a new criterion, a comment
or a new file changes nothing for experiments that do not use it, while a constant in the training
loop does (experiments/tracking/code.py says what counts).
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

from experiments.config.experiment import Resolved
from experiments.config.fields import NONE
from experiments.processes.program import CODE_ROOT
from experiments.rounds.metrics import METRICS, Metric
from experiments.tracking.code import digest_of
from experiments.tracking.environment import release

FINGERPRINT = "fingerprint"  # the tag of a run
SCHEME = "3-"  # how digests are computed; those of another scheme begin with something else
STARTS = ("experiments.rounds.rounds.prune_rounds", "experiments.rounds.data.load_data")
BASE_NETWORK = "experiments.tracking.resume.network_of"  # only with masks=shared
PUBLISHED = "models.published"  # only with pretrained
CONFIG = "experiments.config"  # all that it decides is in the settings
AUTO_DATASET = "datasets._load_auto"  # the settings name the data set that was loaded
TABLE = "experiments.rounds.metrics.METRICS"  # of it, only what comparisons and searches use
# Which entry of a registry do the settings choose? If it is not listed here, all its entries count.
REGISTRIES: dict[str, Callable[[Resolved], str]] = {
    "datasets.DATASETS": lambda config: config.dataset,
    "experiments.training.optimizers.OPTIMIZERS": lambda config: config.optimizer,
    "experiments.training.schedules.SCHEDULES": lambda config: config.schedule,
    "experiments.training.engine.ENGINES": lambda config: config.engine,  # auto: all
    "models.MODELS": lambda config: config.model.partition("_")[0],
    "models.WIDTHS": lambda config: config.model.partition("_")[0],
    "models.lightcnn.LIGHTCNNS": lambda config: config.model.partition("_")[2],
    "pruning.controls.CONTROLS": lambda config: config.control,
    "pruning.criteria.CRITERIA": lambda config: config.criterion,
    "pruning.masks.SCOPES": lambda config: config.scope,
    "pruning.reinit.REINITS": lambda config: config.reinit,
}


def fingerprint(config: Resolved, data_digest: str, threads: int) -> str:
    """Text that two experiments share if their results are to be the same.

    Args:
        data_digest: Of the splits (`Splits.digest`).
        threads: Of the process; they decide in which order sums are taken.
    """
    parts = config.settings() | {
        "pretrained": pretrained_digest(config),
        "threads": threads,
        "device": config.device,
        "data": data_digest,
        "code": code_digest(config),
        "versions": versions(config),
    }
    text = json.dumps(parts, sort_keys=True)
    return SCHEME + hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def libraries(config: Resolved) -> tuple[str, ...]:
    """The libraries that compute."""
    return ("torch", "numpy", *(["numba"] if config.engine in ("auto", "sparse") else []))


def versions(config: Resolved) -> list[str]:
    """The versions of the libraries that compute."""
    return [release(name) for name in libraries(config)]


def code_digest(*configs: Resolved, root: Path = CODE_ROOT) -> str:
    """Digest of the code in `root` that experiments with these configs run, committed or not."""
    entries = frozenset((name, of(config)) for config in configs for name, of in REGISTRIES.items())
    is_shared = any(config.masks == "shared" for config in configs)
    is_published = any(config.pretrained != NONE for config in configs)
    used = [f"{TABLE}[{name}]" for name, metric in METRICS.items() if _is_used(metric)]
    starts = (*STARTS, *used, *([BASE_NETWORK] if is_shared else []))
    ignored = (CONFIG, AUTO_DATASET, TABLE, *([] if is_published else [PUBLISHED]))
    return SCHEME + digest_of(starts, root, entries, ignored)


def _is_used(metric: Metric) -> bool:
    return metric.required or metric.compared > 0 or metric.averaged or metric.headline


def pretrained_digest(config: Resolved) -> str:
    """SHA-256 of the file of published values, or "none"."""
    if config.pretrained == NONE:
        return NONE
    with Path(config.pretrained).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
