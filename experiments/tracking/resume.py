"""Stored runs: an experiment read back from MLflow, to be continued in place or branched off."""

import json
import math
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import mlflow
from mlflow.entities import Run as MlflowRun
from mlflow.exceptions import MlflowException

from experiments.config.experiment import Config, Resolved, config_from
from experiments.config.parameters import as_text, default_text
from experiments.processes.locks import DEAD_AFTER_SECONDS, lock_name
from experiments.processes.pool import THREADS_PER_WORKER
from experiments.rounds.metrics import COMPLETE, LAYER_PREFIX, METRICS, PER_EPOCH
from experiments.rounds.rounds import Snapshot
from experiments.tracking.fingerprint import FINGERPRINT, fingerprint
from experiments.tracking.tables import EPOCH_PREFIX, History, Row, place_of
from pruning.checkpoint import Checkpoint, load_checkpoint

INITIAL, REWOUND = "initial", "rewound"  # names of checkpoints

# What may differ when a run is continued, because it does not change the result.
RESUME_OVERRIDES = ("data_root", "resume")


@dataclass(frozen=True)
class StoredRun:
    """A run as it was left: its config, its complete rounds, and the last of their networks."""

    run_id: str
    config: Resolved
    tags: dict[str, str]
    history: History = field(default_factory=History)
    network: Snapshot | None = None


def checkpoint_name(number: int) -> str:
    """Name of a round's checkpoint, without its folder and suffix."""
    return f"round_{number:02d}"


def load_run(asked: Config) -> StoredRun:
    """The run that `asked.resume` names.

    A parameter that is left at its default counts as not said; every other must be the run's own.

    Raises:
        ValueError: If the run is not there, finished, not ours, being worked on, or was made with
            different parameters.
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
    return StoredRun(run_id, config, run.data.tags, history, network)


def resume_config(run_id: str, data_root: str) -> Config:
    """The config that goes on with a run, whose own parameters hold for the rest.

    Raises:
        ValueError: As `find_run`.
    """
    config = config_from({"resume": run_id, "data_root": data_root})
    load_run(config)
    return config


def get_run(run_id: str, asked_as: str) -> MlflowRun:
    """A run; `asked_as` is the parameter that named it, here and below.

    Raises:
        ValueError: If there is no such run.
    """
    try:
        return mlflow.get_run(run_id)
    except MlflowException:
        raise ValueError(f"{asked_as}: {mlflow.get_tracking_uri()} has no run {run_id}") from None


def _check_free(run: MlflowRun) -> None:
    run_id, status, tags = run.info.run_id, run.info.status, run.data.tags
    if run.info.lifecycle_stage == "deleted":
        raise ValueError(f"resume: run {run_id} is deleted; restore it first (mlflow runs restore)")
    if status == "FINISHED":
        raise ValueError(f"resume: run {run_id} is finished, there is nothing to continue")
    silent = time.time() - float(tags.get("heartbeat", 0))
    elsewhere = tags.get("lock") != lock_name(run_id)  # else that process has let go of it
    if status == "RUNNING" and elsewhere and silent < DEAD_AFTER_SECONDS:
        raise ValueError(
            f"resume: a process on {tags.get('host')} is still working on run {run_id} "
            f"(last sign of life {silent:.0f} s ago)"
        )


def stored_config(run: MlflowRun, asked_as: str, folder: str) -> Resolved:
    """The config that a run was started with; `folder` is for files that are read.

    Raises:
        ValueError: If the run has none, or a damaged one.
    """
    try:
        path = mlflow.artifacts.download_artifacts(
            run_id=run.info.run_id, artifact_path="config.json", dst_path=folder
        )
    except (MlflowException, OSError):
        raise ValueError(
            f"{asked_as}: run {run.info.run_id} has no config.json: it is no Weight Loss "
            "run, or it ended before it began; start it anew"
        ) from None
    try:
        config = config_from(json.loads(Path(path).read_text()))
        return config.resolved(config.dataset)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{asked_as}: config.json of run {run.info.run_id} is damaged: {error}"
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
            f"resume: run {asked.resume} was started with different parameters: "
            f"{', '.join(different)}; leave them out, or start a new run"
        )


def history_of(run: MlflowRun, config: Resolved, asked_as: str) -> History:
    """The complete rounds; other metrics than ours, and rounds cut short, are left out.

    Raises:
        ValueError: If metrics of a complete round are missing.
    """
    by_round: dict[int, Row] = {}
    by_step: dict[int, Row] = {}
    needed, client = {"round", *METRICS}, mlflow.MlflowClient()
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
    if complete != set(range(len(rounds))) or any(not row.keys() >= needed for row in rounds):
        raise ValueError(f"{asked_as}: metrics of run {run.info.run_id} are missing; start it anew")
    epochs = []
    for step, row in sorted(by_step.items()):
        number, epoch = place_of(config, step)
        if number in complete:
            epochs.append({"round": number, "epoch": epoch, "step": step} | row)
    return History(rounds, epochs, frozenset(by_step))


def network_of(run_id: str, config: Resolved, asked_as: str, folder: str, number: int) -> Snapshot:
    """The network of a complete round.

    Raises:
        ValueError: If one of its checkpoints is missing, damaged or not of this run.
    """

    def fetch(name: str, of_round: int = 0) -> Checkpoint:
        path = f"checkpoints/{name}.safetensors"
        expected = {"what": name, "round": of_round, "config": config.settings()}
        try:
            found = load_checkpoint(
                mlflow.artifacts.download_artifacts(
                    run_id=run_id, artifact_path=path, dst_path=folder
                )
            )
            for key, value in expected.items():
                if found.metadata.get(key) != value:
                    raise ValueError(f"its {key} is not that of the run")
            return found
        except (MlflowException, OSError, ValueError) as error:
            raise ValueError(
                f"{asked_as}: {path} of run {run_id} is missing or damaged, so it cannot be "
                f"continued; start it anew ({error})"
            ) from None

    last = fetch(checkpoint_name(number), number)
    return Snapshot(
        round=number,
        state=last.state,
        masks=last.masks,
        initial=fetch(INITIAL).state,
        dense=last.state if number == 0 else fetch(checkpoint_name(0)).state,
        rewound=fetch(REWOUND).state if config.rewind_epoch <= config.epochs else None,
    )


FoundRun = MlflowRun  # for callers that do not know MLflow


def find_experiment(config: Resolved, digest: str) -> FoundRun | None:
    """The run of the same experiment, if there is one; finished ones before others."""
    active = mlflow.active_run()
    assert active
    found = mlflow.search_runs(
        [active.info.experiment_id],
        filter_string=f"tags.{FINGERPRINT} = '{fingerprint(config, digest, THREADS_PER_WORKER)}'",
        output_format="list",
    )
    finished = [run for run in found if is_finished(run)]
    return next(iter([*finished, *found]), None)


def is_finished(run: MlflowRun) -> bool:
    """Whether a run ended as it should."""
    return bool(run.info.status == "FINISHED")
