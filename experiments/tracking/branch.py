"""Trunk: a stored run that another one branches off, with its dense network and its masks.

With masks=shared every round retrains the trunk's mask of that round from another start: the
control of the lottery ticket in Frankle & Carbin 2019, arXiv:1803.03635.
"""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache, partial

from experiments.config.experiment import Resolved
from experiments.config.fields import NONE
from experiments.config.parameters import as_text
from experiments.rounds.metrics import METRICS, PER_EPOCH
from experiments.rounds.rounds import BaseRun, RoundResult, Snapshot
from experiments.tracking.environment import environment
from experiments.tracking.fingerprint import code_digest, pretrained_digest
from experiments.tracking.resume import get_run, history_of, network_of, stored_config
from experiments.tracking.tables import INTEGER_COLUMNS, History
from experiments.training.loop import Evaluation

MASK_FIELDS = {"scope", "prune_rate", "output_prune_rate", "target_sparsity", "rounds"}


@contextmanager
def open_base_run(
    config: Resolved, rounds: int, digest: str, after: Snapshot | None
) -> Iterator[BaseRun | None]:
    """The run that `config` branches off, if it does; its networks are read as they are needed.

    Args:
        rounds: How many rounds after the dense one will be asked for.
        digest: Of the data.
        after: The network that is continued after, if one is.

    Raises:
        ValueError: If the run is not there, did not get far enough, or was made with parameters or
            data that do not go with `config`.
    """
    if config.branch_of == NONE or (after and config.masks == "own"):
        yield None
        return
    run = get_run(config.branch_of, "branch_of")
    with tempfile.TemporaryDirectory() as folder:
        theirs = stored_config(run, "branch_of", folder)
        _check_branch(config, theirs, digest, run.data.tags)
        history = history_of(run, theirs, "branch_of")
        needed = rounds if config.masks == "shared" else 0
        if len(history.rounds) <= needed:
            raise ValueError(
                f"branch_of: run {config.branch_of} has {len(history.rounds)} complete rounds, "
                f"{needed + 1} are needed: resume it first"
            )
        fetch = partial(network_of, config.branch_of, theirs, "branch_of", folder)
        network = lru_cache(maxsize=2)(fetch)
        yield BaseRun(_dense_result(history, network(0)), network)


def _check_branch(config: Resolved, base: Resolved, digest: str, tags: Mapping[str, str]) -> None:
    mine, theirs = config.settings(), base.settings()
    matter = set(config.dense_settings())
    if config.masks == "shared":
        matter |= MASK_FIELDS
    different = [
        f"{name} (here {as_text(mine[name])}, there {as_text(theirs[name])})"
        for name in mine
        if name in matter and mine[name] != theirs[name]
    ]
    here = {"dataset_digest": digest, "pretrained_sha256": pretrained_digest(config)}
    if config.masks == "own":  # then it must be as if it had trained the dense network itself
        told = environment(config.device)
        here |= {"code": code_digest(), "device": config.device}
        here |= {name: told[name] for name in ("threads", "version.torch", "version.numpy")}
    different += [
        f"{name} (here {value}, there {tags.get(name)})"
        for name, value in here.items()
        if tags.get(name) != value
    ]
    if different:
        raise ValueError(
            f"branch_of: run {config.branch_of} does not go with what is asked for: "
            f"{', '.join(different)}"
        )


def _dense_result(history: History, network: Snapshot) -> RoundResult:
    """The dense round as it was when it ended."""
    row = history.rounds[0]
    apart = {"round"} | {name for name, metric in METRICS.items() if not metric.measure}
    evaluations = tuple(
        Evaluation(
            epoch=int(epoch["epoch"]),
            iteration=0,  # not kept, and wanted by nobody
            ends_epoch=True,
            **{name: epoch[name] for name in PER_EPOCH},
        )
        for epoch in history.epochs
        if epoch["round"] == 0
    )
    metrics = {
        name: int(value) if name in INTEGER_COLUMNS else value
        for name, value in row.items()
        if name not in apart
    }
    seconds = {name: row[name] for name in ("round_seconds", "train_seconds")}
    return RoundResult(network, metrics, evaluations, seconds)
