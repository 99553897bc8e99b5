"""Stored runs: an experiment read back from MLflow, to resume it or to branch off it."""

import json
import math
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import mlflow
import torch
from mlflow.entities import Run as MlflowRun
from mlflow.exceptions import MlflowException
from torch import Tensor

from experiments.config.experiment import Config, Resolved, config_from
from experiments.config.parameters import AUTO, as_text, default_text
from experiments.processes.tasks import THREADS_PER_WORKER
from experiments.rounds.metrics import COMPLETE, LAYER_PREFIX, METRICS, PER_EPOCH, in_order
from experiments.rounds.rounds import Snapshot
from experiments.tracking.correct import FOLDER as CORRECT
from experiments.tracking.correct import from_bits, path_of
from experiments.tracking.fingerprint import FINGERPRINT, SCHEME, fingerprint
from experiments.tracking.server import without_login
from experiments.tracking.session import INTERNAL, is_running, is_running_elsewhere, tags_of
from experiments.tracking.tables import EPOCH_PREFIX, History, Row, place_of
from models import Architecture
from pruning.checkpoint import Checkpoint, load_checkpoint
from pruning.files import read_whole
from pruning.masks import State
from pruning.reinit import REINITS

INITIAL, REWOUND = "initial", "rewound"  # names of checkpoints
STARTED = "started"  # tag of a run that has found no duplicate, or does not look for one
IMAGE_SHAPE = (1, 128, 128)  # any: the names of the layers do not depend on it
REQUIRED = {name for name, metric in METRICS.items() if metric.required}

# These may differ when a run is resumed, because they do not change its result.
RESUME_OVERRIDES = ("data_root", "resume")


@dataclass(frozen=True)
class StoredRun:
    """A run's config, its complete rounds, and the network of the last of these."""

    run_id: str
    config: Resolved
    tags: dict[str, str]
    history: History
    network: Snapshot | None  # None without a complete round


def checkpoint_name(number: int) -> str:
    """Name of a round's checkpoint, without folder and suffix."""
    return f"round_{number:02d}"


def load_run(asked: Config) -> StoredRun:
    """The run that `asked.resume` names.

    A parameter at its default counts as not given; every other must have the run's own value.

    Raises:
        ValueError: If the run does not exist, is finished or in progress, was not made by this
            program, or has other parameters.
    """
    run_id = asked.resume
    run = get_run(run_id, "resume")
    _check_free(run)
    with tempfile.TemporaryDirectory() as folder:
        config = stored_config(run, "resume", folder)
        _check_same(asked, config)
        moved = {name: getattr(asked, name) for name in RESUME_OVERRIDES if _is_set(asked, name)}
        config = config_from({**config.model_dump(), **moved}).resolved(config.dataset)
        history = history_of(run, config, "resume")
        network = None
        if history.rounds:
            number = int(history.rounds[-1]["round"])
            network = network_of(run_id, config, "resume", folder, number)
            network = replace(network, before=_before(run_id, config, folder, number))
    return StoredRun(run_id, config, tags_of(run), history, network)


def get_run(run_id: str, parameter: str) -> MlflowRun:
    """A run; errors name the `parameter` that it was given as, here and below.

    Raises:
        ValueError: If there is no such run.
    """
    try:
        return mlflow.get_run(run_id)
    except MlflowException:
        where = without_login(mlflow.get_tracking_uri())
        raise ValueError(f"{parameter}: {where} has no run {run_id}") from None


def _check_free(run: MlflowRun) -> None:
    run_id, tags = run.info.run_id, tags_of(run)
    if run.info.lifecycle_stage == "deleted":
        raise ValueError(f"resume: run {run_id} is deleted; restore it first (mlflow runs restore)")
    if run.info.status == "FINISHED":
        raise ValueError(f"resume: run {run_id} is finished; nothing is left to resume")
    if is_running_elsewhere(run):  # the caller holds the lock of this machine
        raise ValueError(
            f"resume: a process on {tags.get('host')} is still working on run {run_id}"
        )


def stored_config(run: MlflowRun, parameter: str, folder: str) -> Resolved:
    """The config that a run was started with.

    Args:
        folder: Where files are downloaded to.

    Raises:
        ValueError: If the run has no config, or a damaged one.
    """
    try:
        path = mlflow.artifacts.download_artifacts(
            run_id=run.info.run_id, artifact_path="config.json", dst_path=folder
        )
    except (MlflowException, OSError):
        raise ValueError(
            f"{parameter}: run {run.info.run_id} has no config.json: it is not a Weight Loss run, "
            "or it ended before training began; start a new run"
        ) from None
    try:
        stored = json.loads(Path(path).read_text())
        # This machine may lack its device, and a reader not need it; "auto" may mean another one.
        own = {"device": stored.pop("device", AUTO), "engine": stored.pop("engine", "dense")}
        config = config_from(stored)
        resolved = config.resolved(config.dataset)
        own = {name: value for name, value in own.items() if value != AUTO or name == "engine"}
        return resolved.model_copy(update=own)
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(
            f"{parameter}: config.json of run {run.info.run_id} is damaged: {error}"
        ) from None


def _is_set(asked: Config, name: str) -> bool:
    return as_text(getattr(asked, name)) != default_text(Config.model_fields[name])


def _check_same(asked: Config, stored: Config) -> None:
    different = [
        f"{name} (here {as_text(getattr(asked, name))}, there {as_text(getattr(stored, name))})"
        for name in Config.model_fields
        if name not in RESUME_OVERRIDES
        and _is_set(asked, name)
        and getattr(asked, name) != getattr(stored, name)
    ]
    if different:
        raise ValueError(
            f"resume: run {asked.resume} was started with other parameters: "
            f"{', '.join(different)}; remove them, or start a new run"
        )


def history_of(run: MlflowRun, config: Resolved, parameter: str) -> History:
    """The complete rounds of a run and their epochs.

    Metrics that this program does not log are ignored. One that an older version did not log is
    NaN in the rounds of that version, the first ones.

    Raises:
        ValueError: If a round is missing, or a metric that is `required` or that an earlier round
            has.
    """
    by_round: dict[int, Row] = {}
    by_step: dict[int, Row] = {}
    client = mlflow.MlflowClient()
    for key in run.data.metrics:
        if key in METRICS or key.startswith(LAYER_PREFIX):
            rows, name = by_round, key
        elif key.removeprefix(EPOCH_PREFIX) in PER_EPOCH:
            rows, name = by_step, key.removeprefix(EPOCH_PREFIX)
        else:
            continue
        for point in client.get_metric_history(run.info.run_id, key):
            infinite = abs(point.value) == sys.float_info.max  # as SQL stores it
            value = math.copysign(math.inf, point.value) if infinite else point.value
            rows.setdefault(point.step, {})[name] = value
    rounds = [{"round": n} | by_round[n] for n in sorted(by_round) if COMPLETE in by_round[n]]
    complete = {row["round"] for row in rounds}
    names = [REQUIRED, *(row.keys() for row in rounds)]
    lost = any(not later >= earlier for earlier, later in pairwise(names))
    if complete != set(range(len(rounds))) or lost:
        raise ValueError(
            f"{parameter}: metrics of run {run.info.run_id} are missing; start a new run"
        )
    prunable = Architecture(config.model, IMAGE_SHAPE, 2).prunable
    rounds = [in_order(row, prunable) for row in rounds]
    epochs = []
    for step, row in sorted(by_step.items()):
        number, epoch = place_of(config, step)
        if number in complete:
            place = {"round": number, "epoch": epoch, "step": step}
            epochs.append(place | {name: row.get(name, math.nan) for name in PER_EPOCH})
    return History(rounds, epochs, frozenset(by_step))


def network_of(run_id: str, config: Resolved, parameter: str, folder: str, number: int) -> Snapshot:
    """The network of a complete round, without the one that its round pruned.

    Raises:
        ValueError: If one of its checkpoints is missing, damaged or of another run.
    """
    fetch = partial(_checkpoint, run_id, config, parameter, folder)
    last = fetch(checkpoint_name(number), number)
    dense = last if number == 0 else fetch(checkpoint_name(0))
    return Snapshot(
        round=number,
        state=last.state,
        masks=last.masks,
        initial=fetch(INITIAL).state,
        dense=dense.state,
        rewound=fetch(REWOUND).state if config.rewind_epoch <= config.epochs else None,
        dense_valid_loss=_metrics_of(dense).get("early_stop_valid_loss"),
    )


def _before(run_id: str, config: Resolved, folder: str, number: int) -> State:
    """What round `number` pruned, if the next round has to know where training then began."""
    is_needed = config.pruning == "iterative" and config.masks == "own"
    if number == 0 or not is_needed or not REINITS[config.reinit].continues:
        return {}
    name = checkpoint_name(number - 1)
    return _checkpoint(run_id, config, "resume", folder, name, number - 1).state


def _checkpoint(
    run_id: str, config: Resolved, parameter: str, folder: str, name: str, of_round: int = 0
) -> Checkpoint:
    path = f"checkpoints/{name}.safetensors"
    expected = {"what": name, "round": of_round, "config": config.settings()}
    try:
        file = mlflow.artifacts.download_artifacts(
            run_id=run_id, artifact_path=path, dst_path=folder
        )
        found = load_checkpoint(file)
        written = {key: found.metadata.get(key) for key in expected}
        # A setting that an older version did not have is at its default.
        written["config"] = config.settings() | found.metadata.get("config", {})
        for key, value in expected.items():
            if written[key] != value:
                raise ValueError(f"its {key} is not that of the run")
        return found
    except (MlflowException, OSError, ValueError) as error:
        raise ValueError(
            f"{parameter}: {path} of run {run_id} is missing or damaged ({error}); start a new run"
        ) from None


def _metrics_of(checkpoint: Checkpoint) -> dict[str, float]:
    stored = checkpoint.metadata.get("metrics")
    metrics = stored.items() if isinstance(stored, dict) else ()
    return {name: value for name, value in metrics if isinstance(value, float)}


def correct_of(run_id: str, parameter: str, folder: str, number: int, images: int) -> Tensor | None:
    """Which test images the network of a round classifies correctly, bool [images].

    None if an older version made the run.

    Raises:
        ValueError: If the file is damaged.
    """
    path = path_of(number)
    if all(file.path != path for file in mlflow.MlflowClient().list_artifacts(run_id, CORRECT)):
        return None
    try:
        file = mlflow.artifacts.download_artifacts(
            run_id=run_id, artifact_path=path, dst_path=folder
        )
        return torch.from_numpy(from_bits(read_whole(file), images))
    except (MlflowException, OSError, ValueError) as error:
        raise ValueError(
            f"{parameter}: {path} of run {run_id} is missing or damaged ({error}); start a new run"
        ) from None


@dataclass(frozen=True)
class Earlier:
    """An earlier run of an experiment, if there is one, and the config that completes it."""

    config: Config  # resumes the run, or starts a new one
    run: MlflowRun | None = None
    problem: str = ""  # why the run cannot be resumed


def find_or_resume(config: Config, dataset: str, data_digest: str) -> Earlier:
    """The run of the same experiment in the active run's MLflow experiment, and how to complete it.

    Args:
        dataset: The data set that was loaded.
        data_digest: Of the splits (`Splits.digest`).
    """
    run = find_experiment(config.resolved(dataset), data_digest)
    if run is None or is_finished(run) or is_running(run):
        return Earlier(config, run)
    resumed = config_from({"resume": run.info.run_id, "data_root": config.data_root})
    try:
        load_run(resumed)
    except ValueError as error:
        return Earlier(config, run, str(error))
    return Earlier(resumed, run)


def find_experiment(config: Resolved, data_digest: str) -> MlflowRun | None:
    """The run of the same experiment, if there is one.

    Finished runs come before those in progress, and those before the rest; of two stopped runs, one
    that has started training comes before one that only looked for a duplicate.
    """

    def order(run: MlflowRun) -> tuple[bool, bool, bool]:
        return is_finished(run), is_running(run), STARTED in tags_of(run)

    key = fingerprint(config, data_digest, THREADS_PER_WORKER)
    return max(with_fingerprint(key), key=order, default=None)


def with_fingerprint(key: str) -> list[MlflowRun]:
    """The runs with a fingerprint, in the active run's MLflow experiment."""
    return _search(f"tags.`{INTERNAL}{FINGERPRINT}` = '{key}'")


def is_finished(run: MlflowRun) -> bool:
    """Whether a run ended as it should."""
    return bool(run.info.status == "FINISHED")


def other_versions_note(dataset: str, model: str) -> str:
    """A line about runs with this data set and model whose fingerprints are computed differently.

    It is empty if the active run's MLflow experiment has none.
    """
    same = f"tags.dataset = '{dataset}' AND tags.model = '{model}'"
    found = [tags for run in _search(same) if FINGERPRINT in (tags := tags_of(run))]
    others = [tags for tags in found if not is_of_this_scheme(tags)]
    if not others:
        return ""
    runs = "1 earlier run was" if len(others) == 1 else f"{len(others)} earlier runs were"
    are = "is" if len(others) == 1 else "are"
    return f"{runs} made by another version of this program and {are} not reused"


def is_of_this_scheme(tags: Mapping[str, str]) -> bool:
    """Whether the digests in a run's tags can be compared with those of this version."""
    return tags.get(FINGERPRINT, "").startswith(SCHEME)


def _search(where: str) -> list[MlflowRun]:
    active = mlflow.active_run()
    assert active
    experiment = active.info.experiment_id
    runs: list[MlflowRun] = mlflow.search_runs(
        [experiment], filter_string=where, output_format="list"
    )
    return runs
