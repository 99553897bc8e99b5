"""Record: what a comparison logs to MLflow, and how it is read back.

A comparison is a run with one nested run per arm. Its file `comparison.json` lists those runs; all
else in a report is read from them.
"""

import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from mlflow.entities import Metric
from mlflow.entities import Run as MlflowRun
from mlflow.exceptions import MlflowException

from experiments.config.comparison import Arm, CompareConfig, arms_of
from experiments.config.experiment import Resolved
from experiments.processes.tasks import Outcome
from experiments.rounds.metrics import COMPARED
from experiments.tracking import session, summary
from experiments.tracking.environment import environment
from experiments.tracking.resume import checkpoint_name, get_run, is_finished
from experiments.tracking.server import without_login
from experiments.tracking.session import PARENT, is_running
from pruning.checkpoint import load_checkpoint
from pruning.masks import Masks

FILE = "comparison.json"
COMPARISON = "comparison"  # the tag `kind` of its run
UI = "http://127.0.0.1:5000"  # where `mlflow ui` serves


@dataclass(frozen=True)
class Record:
    """The content of `comparison.json`."""

    config: dict[str, Any]  # the parameters of the command
    setting: dict[str, Any]  # the parameters of the first arm, with no "auto" left
    shown_round: int
    image_shape: list[int]
    images: dict[str, int]  # number of images, by split
    data_source: str
    arms: list[dict[str, Any]]  # label, seed and method of each, and its run_id or reason


def describe(run_id: str, config: CompareConfig, resolved: Resolved) -> None:
    """Log the parameters and the tags of a comparison's run."""
    tags = {"dataset": resolved.dataset, "model": resolved.model, "kind": COMPARISON}
    session.describe(run_id, config.model_dump(), tags)


def adopt(run: MlflowRun, parent: str) -> None:
    """Nest a run under `parent` if its own comparison was interrupted or deleted."""
    client, old_parent = mlflow.MlflowClient(), run.data.tags.get(PARENT)
    if old_parent and old_parent != parent and _is_abandoned(old_parent, client):
        client.set_tag(run.info.run_id, PARENT, parent)


def _is_abandoned(run_id: str, client: mlflow.MlflowClient) -> bool:
    """Whether a comparison will never finish; one whose process died is marked KILLED."""
    try:
        run = client.get_run(run_id)
    except MlflowException:
        return True
    if is_finished(run) or is_running(run) or run.data.tags.get("kind") != COMPARISON:
        return False
    if run.info.status == "RUNNING":
        client.set_terminated(run_id, "KILLED")
    return True


def make_record(
    config: CompareConfig, resolved: Resolved, outcomes: Mapping[Arm, Outcome], **facts: Any
) -> Record:
    """The record of a comparison whose arms have ended."""
    arms = [
        {"label": arm.label, "seed": arm.seed} | arm.method.model_dump() | asdict(outcomes[arm])
        for arm in arms_of(config)
    ]
    return Record(config=config.model_dump(), setting=resolved.settings(), arms=arms, **facts)


def log_record(run_id: str, made: Record) -> None:
    """Log the record, and tag the arms' runs with their methods unless they already are."""
    client = mlflow.MlflowClient()
    client.log_dict(run_id, asdict(made), FILE)
    for arm in made.arms:
        if arm["run_id"] and "method" not in client.get_run(arm["run_id"]).data.tags:
            client.set_tag(arm["run_id"], "method", arm["label"])


def read_record(run_id: str) -> Record:
    """The record of a comparison.

    Raises:
        ValueError: If there is no such run, or it is not a comparison that has ended.
    """
    get_run(run_id, "run")
    with tempfile.TemporaryDirectory() as folder:
        try:
            path = mlflow.artifacts.download_artifacts(
                run_id=run_id, artifact_path=FILE, dst_path=folder
            )
            return Record(**json.loads(Path(path).read_text()))
        except (MlflowException, OSError, TypeError, ValueError):
            raise ValueError(
                f"run: {run_id} has no readable {FILE}: it is not a comparison, or it was "
                "interrupted; the same compare command continues it"
            ) from None


def read_tables(made: Record) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rounds and epochs of all arms: comparison.csv and epochs.csv.

    Raises:
        ValueError: If the run of an arm, or a file of it, is gone.
    """
    columns = ("label", "reinit", "criterion", "control", "pruning", "seed")
    tables: dict[str, list[pd.DataFrame]] = {"rounds.csv": [], "epochs.csv": []}
    for arm in made.arms:
        if not arm["run_id"]:
            continue
        for name, parts in tables.items():
            with tempfile.TemporaryDirectory() as folder:
                table = pd.read_csv(_file(arm, name, folder))
            arm_columns = {column.replace("label", "method"): arm[column] for column in columns}
            parts.append(
                pd.concat([pd.DataFrame(arm_columns, index=table.index), table], axis=1).assign(
                    run_id=arm["run_id"]
                )
            )
    if not tables["rounds.csv"]:
        raise ValueError("no arm of this comparison succeeded, so there is nothing to report")
    rounds, epochs = (pd.concat(parts, ignore_index=True) for parts in tables.values())
    return rounds, epochs


def read_masks(made: Record) -> dict[tuple[str, int], Masks]:
    """The masks of every arm after the shown round, by label and seed.

    Raises:
        ValueError: If the run of an arm, or its checkpoint, is gone.
    """
    name = f"checkpoints/{checkpoint_name(made.shown_round)}.safetensors"
    masks = {}
    for arm in made.arms:
        if arm["run_id"]:
            with tempfile.TemporaryDirectory() as folder:
                checkpoint = load_checkpoint(_file(arm, name, folder))
            masks[(arm["label"], arm["seed"])] = checkpoint.masks
    return masks


def _file(arm: Mapping[str, Any], name: str, folder: str) -> str:
    try:
        return mlflow.artifacts.download_artifacts(
            run_id=arm["run_id"], artifact_path=name, dst_path=folder
        )
    except (MlflowException, OSError):
        raise ValueError(
            f"{name} of run {arm['run_id']} ({arm['label']}, seed {arm['seed']}) is gone: delete "
            "that run, then repeat the compare command"
        ) from None


def name_of(run_id: str) -> str:
    """The name of a run."""
    return str(mlflow.get_run(run_id).info.run_name)


def links(made: Record) -> dict[str, str]:
    """The page of each arm's run in the UI; without a server, that of `mlflow ui`."""
    uri = mlflow.get_tracking_uri()
    base = without_login(uri) if uri.startswith("http") else UI
    return {
        run_id: f"{base}/#/experiments/{mlflow.get_run(run_id).info.experiment_id}/runs/{run_id}"
        for run_id in _run_ids(made)
    }


def environment_of(made: Record) -> dict[str, str]:
    """The machine and the versions that the arms used; several values where they differ."""
    found: dict[str, dict[str, None]] = {name: {} for name in environment("cpu")}
    for run_id in _run_ids(made):
        tags = mlflow.get_run(run_id).data.tags
        for name, values in found.items():
            values[tags.get(name, "unknown")] = None
    return {name: ", ".join(values) for name, values in found.items()}


def _run_ids(made: Record) -> list[str]:
    return [arm["run_id"] for arm in made.arms if arm["run_id"]]


def log_summary(run_id: str, table: pd.DataFrame) -> None:
    """Log means over seeds as metrics of the comparison, for the UI's charts; steps are rounds."""
    metric = partial(Metric, timestamp=0)
    metrics = [
        metric(f"{name}_mean/{row['method']}", float(row[f"{name}_mean"]), step=int(row["round"]))
        for _, row in table.iterrows()
        for name in COMPARED
    ]
    client = mlflow.MlflowClient()
    for start in range(0, len(metrics), 1000):
        client.log_batch(run_id, metrics[start : start + 1000])


def failure_lines(outcomes: Mapping[Arm, Outcome]) -> list[str]:
    """One line for each arm that failed."""
    return [f"{arm.name}: {outcome.reason}" for arm, outcome in outcomes.items() if outcome.reason]


def comparison_name(config: CompareConfig, resolved: Resolved) -> str:
    """The name of a comparison's run, such as `compare keep,random,lottery mnist ...`."""
    words = summary.run_name(resolved).removeprefix(f"{resolved.reinit} ")
    return f"compare {config.reinits} {words.removesuffix(f' seed {resolved.seed}')}"
