"""Branches: a run that takes the dense network of a stored run, its base, and maybe its masks.

With masks=shared every round retrains the base run's mask of that round from another start: the
control of the lottery ticket in Frankle & Carbin 2019, arXiv:1803.03635.
"""

import math
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import Any

from torch import Tensor

from datasets import Splits
from experiments.config.experiment import Resolved
from experiments.config.fields import NONE, Seeds
from experiments.config.parameters import as_text
from experiments.rounds.metrics import METRICS, PER_EPOCH
from experiments.rounds.rounds import BaseRun, RoundResult, Snapshot
from experiments.tracking.environment import environment
from experiments.tracking.fingerprint import code_digest, libraries, pretrained_digest
from experiments.tracking.resume import (
    correct_of,
    get_run,
    history_of,
    is_of_this_scheme,
    network_of,
    stored_config,
)
from experiments.tracking.session import tags_of
from experiments.tracking.tables import INTEGER_COLUMNS, History
from experiments.training.loop import Evaluation

MASK_FIELDS = {
    *("scope", "granularity", "target"),
    *("prune_rate", "output_prune_rate", "target_sparsity", "rounds"),
}


@contextmanager
def open_base_run(
    config: Resolved, rounds: int, data: Splits, after: Snapshot | None
) -> Iterator[BaseRun | None]:
    """The base run of `config`, if it has one; its networks are read when they are needed.

    Args:
        rounds: Number of rounds after the dense one.
        after: The network that a resumed run continues after.

    Raises:
        ValueError: If there is no such run, it has too few complete rounds, or its parameters,
            data or code do not match `config`.
    """
    if config.branch_of == NONE or (after and config.masks == "own"):
        yield None
        return
    run = get_run(config.branch_of, "branch_of")
    with tempfile.TemporaryDirectory() as folder:
        theirs = stored_config(run, "branch_of", folder)
        _check_branch(config, theirs, data.digest, tags_of(run))
        history = history_of(run, theirs, "branch_of")
        needed = rounds if config.masks == "shared" else 0
        if len(history.rounds) <= needed:
            raise ValueError(
                f"branch_of: run {config.branch_of} has {len(history.rounds)} complete rounds, "
                f"{needed + 1} are needed: resume it first"
            )
        fetch = partial(network_of, config.branch_of, theirs, "branch_of", folder)
        network = lru_cache(maxsize=2)(fetch)
        images = len(data.test) if data.test else 0
        correct = correct_of(config.branch_of, "branch_of", folder, 0, images)
        yield BaseRun(_dense_result(history, network(0), correct), network)


def _check_branch(config: Resolved, base: Resolved, digest: str, tags: Mapping[str, str]) -> None:
    if config.masks == "own" and not is_of_this_scheme(tags):
        raise ValueError(
            f"branch_of: run {config.branch_of} was made by another version of this program; "
            "start it again"
        )
    mine, theirs = config.settings(), base.settings()
    matter = set(config.dense_settings())
    if config.masks == "shared":
        matter = (matter | MASK_FIELDS) - {"engine"}  # which a machine without it cannot choose
    differing = [name for name in mine if name in matter and mine[name] != theirs[name]]
    named = dict.fromkeys("seed" if _is_seed(name, mine, theirs) else name for name in differing)
    different = [
        f"{name} (here {as_text(mine[name])}, there {as_text(theirs[name])})" for name in named
    ]
    here = {"dataset_digest": digest, "pretrained_sha256": pretrained_digest(config)}
    if config.masks == "own":  # the dense network must be the one that would be trained here
        installed = environment(config.device)
        here |= {"code": code_digest(base), "device": config.device}
        computing = ["threads", *(f"version.{name}" for name in libraries(config))]
        here |= {name: installed[name] for name in computing}
    different += [
        f"{name} (here {value}, there {tags.get(name)})"
        for name, value in here.items()
        if tags.get(name) != value
    ]
    if different:
        raise ValueError(
            f"branch_of: run {config.branch_of} does not match this one: {', '.join(different)}"
        )


def _is_seed(name: str, *settings: Mapping[str, Any]) -> bool:
    """Whether a parameter is one of the seeds, and the same as `seed` in all of these settings."""
    return name in Seeds.model_fields and all(each[name] == each["seed"] for each in settings)


def _dense_result(history: History, network: Snapshot, correct: Tensor | None) -> RoundResult:
    row = history.rounds[0]
    not_measured = {"round"} | {name for name, metric in METRICS.items() if not metric.measure}
    evaluations = tuple(
        Evaluation(
            epoch=int(epoch["epoch"]),
            iteration=0,  # is not stored, and not needed here
            ends_epoch=True,
            is_candidate=True,  # nor is this
            **{name: epoch[name] for name in PER_EPOCH},
        )
        for epoch in history.epochs
        if epoch["round"] == 0
    )
    metrics = {
        name: int(value) if name in INTEGER_COLUMNS and not math.isnan(value) else value
        for name, value in row.items()
        if name not in not_measured
    }
    seconds = {name: row[name] for name in ("round_seconds", "train_seconds")}
    return RoundResult(network, metrics, evaluations, seconds, correct)
