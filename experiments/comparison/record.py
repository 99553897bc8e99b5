"""Record: what a comparison logs to MLflow, and how it is read back.

A comparison is a run with one nested run per arm. Its file `comparison.json` lists those runs;
everything else in a report is read from them.
"""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.entities import Metric
from mlflow.entities import Run as MlflowRun
from mlflow.exceptions import MlflowException
from numpy.typing import NDArray

from experiments.comparison.statistics import METHOD, Correct
from experiments.comparison.text import listed
from experiments.config.comparison import Arm, CompareConfig, arms_of, label_of
from experiments.config.experiment import Resolved
from experiments.config.parameters import AUTO
from experiments.processes.tasks import Outcome
from experiments.tracking import correct, summary, ui
from experiments.tracking.environment import environment
from experiments.tracking.networks import MEASUREMENTS
from experiments.tracking.resume import checkpoint_name, get_run, is_finished
from experiments.tracking.session import PARENT, is_running, tags_of
from pruning.checkpoint import load_checkpoint
from pruning.files import read_whole
from pruning.masks import Masks

FILE = "comparison.json"
SUMMARISED = ("test_accuracy", "valid_accuracy")  # more would bury them in the UI
BY_METHOD = ("scope", "retrain_epochs", "rewind_epoch")  # they may differ between methods
COMPARISON = "comparison"  # the tag `kind` of its run


@dataclass(frozen=True)
class Record:
    """The content of `comparison.json`."""

    config: dict[str, Any]  # the parameters of the command
    setting: dict[str, Any]  # as `setting_of`
    shown_round: int
    image_shape: list[int]
    images: dict[str, int]  # number of images, by split
    data_source: str
    arms: list[dict[str, Any]]  # label, seed and method of each, and its run_id or reason

    @property
    def finished(self) -> list[dict[str, Any]]:
        """The arms that have a run."""
        return [arm for arm in self.arms if arm["run_id"]]


def setting_of(config: CompareConfig, first: Resolved) -> dict[str, Any]:
    """The parameters of the first arm, with no "auto" left.

    Where "auto" depends on the method (`BY_METHOD`), it is a text with the value of each.
    """
    setting = first.settings()
    resolved = {arm.label: config.config_of(arm).resolved(first.dataset) for arm in arms_of(config)}
    for name in BY_METHOD:
        methods: dict[Any, list[str]] = {}
        for label, own in resolved.items():
            methods.setdefault(getattr(own, name), []).append(label)
        if len(methods) > 1:
            parts = [f"{value} ({listed(labels)})" for value, labels in methods.items()]
            setting[name] = ", ".join(parts)
    return setting


def adopt(run: MlflowRun, parent: str) -> None:
    """Nest a run under `parent` if its own comparison was deleted or will never finish.

    A comparison whose process died is marked KILLED.
    """
    client, old_parent = mlflow.MlflowClient(), run.data.tags.get(PARENT, parent)
    if old_parent == parent:
        return
    try:
        old = client.get_run(old_parent)
    except MlflowException:
        old = None
    if old and (is_finished(old) or is_running(old) or old.data.tags.get("kind") != COMPARISON):
        return
    if old and old.info.status == "RUNNING":
        client.set_terminated(old_parent, "KILLED")
    client.set_tag(run.info.run_id, PARENT, parent)


def log_record(run_id: str, made: Record, outcomes: Mapping[Arm, Outcome]) -> Record:
    """Log the record with the arms, which have ended, and tag their runs with their methods.

    The tag is the same in every comparison that reuses a run, whatever it varies.
    """
    arms = [
        {"label": arm.label, "seed": arm.seed, "own": dict(arm.own)}
        | arm.method.model_dump()
        | asdict(outcome)
        for arm, outcome in outcomes.items()
    ]
    made, client = replace(made, arms=arms), mlflow.MlflowClient()
    client.log_dict(run_id, asdict(made), FILE)
    for arm, outcome in outcomes.items():
        if outcome.run_id:
            client.set_tag(outcome.run_id, ui.METHOD_TAG, label_of(arm.method))
    return made


def read_record(run_id: str) -> Record:
    """The record of a comparison.

    Raises:
        ValueError: If there is no such run, or it is not a comparison that has ended.
    """
    get_run(run_id, "run")
    try:
        return Record(**mlflow.artifacts.load_dict(f"runs:/{run_id}/{FILE}"))
    except (MlflowException, OSError, TypeError, ValueError):
        raise ValueError(
            f"run: {run_id} has no readable {FILE}: it is not a comparison, or it was "
            "interrupted; the same compare command continues it"
        ) from None


def read_table(made: Record, name: str) -> pd.DataFrame:
    """The table `name` of all arms, such as rounds.csv, with a row's arm and run.

    Raises:
        ValueError: If no arm has a run, or the run of an arm, or a file of it, is gone.
    """
    if not made.finished:
        raise ValueError("no arm of this comparison succeeded, so there is nothing to report")
    parts = []
    for arm in made.finished:
        of_arm = {"method": arm["label"]} | {column: arm[column] for column in [*METHOD, "seed"]}
        with _file(arm, name) as path:
            table = pd.read_csv(path)
        parts.append(pd.DataFrame({**of_arm, **table, "run_id": arm["run_id"]}, table.index))
    return pd.concat(parts, ignore_index=True)


def read_costs(made: Record) -> pd.DataFrame:
    """What the command measure logged to the runs of arms; empty if it did not."""
    client, parts = mlflow.MlflowClient(), []
    for arm in made.finished:
        for folder in client.list_artifacts(arm["run_id"], MEASUREMENTS):
            with _file(arm, f"{folder.path}/{MEASUREMENTS}.csv") as path:
                table = pd.read_csv(path)
            number = int(folder.path.rpartition("_")[2])
            of_network = {"method": arm["label"], "seed": arm["seed"], "round": number}
            parts.append(pd.DataFrame({**of_network, **table}, table.index))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def read_numbers(made: Record, name: str) -> dict[str, float]:
    """The value of a parameter, such as `retrain_lr`, for each method, by label."""
    numbers: dict[str, float] = {}
    for arm in made.finished:
        if arm["label"] not in numbers:
            params = mlflow.get_run(arm["run_id"]).data.params
            given = params[name]
            numbers[arm["label"]] = float(params[f"resolved_{name}"] if given == AUTO else given)
    return numbers


def read_masks(made: Record, number: int) -> dict[tuple[str, int], Masks]:
    """The masks of every arm after a round, by label and seed.

    Raises:
        ValueError: If the run of an arm, or its checkpoint, is gone.
    """
    name = f"checkpoints/{checkpoint_name(number)}.safetensors"
    masks = {}
    for arm in made.finished:
        with _file(arm, name) as path:
            masks[(arm["label"], arm["seed"])] = load_checkpoint(path).masks
    return masks


def read_correct(made: Record, rounds: pd.DataFrame) -> Correct:
    """Which test images each network classifies correctly, by label, seed and round.

    Empty if a network lacks its file, because an older version made its run.

    Args:
        rounds: The table rounds.csv of all arms (`read_table`).

    Raises:
        ValueError: If a file is damaged, or does not agree with the test accuracy in the table.
    """
    client, images = mlflow.MlflowClient(), made.images["test"]
    found: dict[tuple[str, int, int], NDArray[np.bool_]] = {}
    for arm in made.finished:
        own = rounds[rounds["run_id"] == arm["run_id"]].set_index("round")["test_accuracy"]
        files = {file.path for file in client.list_artifacts(arm["run_id"], correct.FOLDER)}
        if not files >= {correct.path_of(number) for number in own.index}:
            return {}
        with _file(arm, correct.FOLDER) as folder:
            for number, accuracy in own.items():
                path = correct.path_of(number)
                try:
                    content = read_whole(Path(folder, Path(path).name))
                    answers = correct.from_bits(content, images)
                    if answers.sum() != round(accuracy * images):
                        raise ValueError("it does not agree with the test accuracy")
                except (OSError, ValueError) as error:
                    raise ValueError(
                        f"{path} of run {arm['run_id']} ({arm['label']}, seed {arm['seed']}) is "
                        f"damaged ({error}): delete that run, then repeat the compare command"
                    ) from None
                found[arm["label"], arm["seed"], number] = answers
    return found


@contextmanager
def _file(arm: Mapping[str, Any], name: str) -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        try:
            path = mlflow.artifacts.download_artifacts(
                run_id=arm["run_id"], artifact_path=name, dst_path=folder
            )
        except (MlflowException, OSError):
            raise ValueError(
                f"{name} of run {arm['run_id']} ({arm['label']}, seed {arm['seed']}) is gone: "
                "delete that run, then repeat the compare command"
            ) from None
        yield path


def links(made: Record) -> dict[str, str]:
    """The page of each arm's run in the UI, by its id."""
    runs = [mlflow.get_run(arm["run_id"]).info for arm in made.finished]
    return {run.run_id: ui.run_link(run.experiment_id, run.run_id) for run in runs}


def environment_of(made: Record) -> dict[str, str]:
    """The machine and the versions that the arms used; several values where they differ."""
    tags = [tags_of(mlflow.get_run(arm["run_id"])) for arm in made.finished]
    return {
        name: ", ".join(dict.fromkeys(own.get(name, "unknown") for own in tags))
        for name in environment("cpu")
    }


def log_summary(run_id: str, table: pd.DataFrame, description: str) -> None:
    """Log a comparison's means over seeds, for the UI's charts, and its description in Markdown.

    Steps are rounds. A method's test accuracy is the metric `test_accuracy/<method>`.
    """
    metrics = [
        Metric(f"{name}/{row['method']}", float(row[f"{name}_mean"]), 0, int(row["round"]))
        for _, row in table.iterrows()
        for name in SUMMARISED
    ]
    client = mlflow.MlflowClient()
    client.log_batch(run_id, metrics)
    client.set_tag(run_id, "mlflow.note.content", description)


def failure_lines(outcomes: Mapping[Arm, Outcome]) -> list[str]:
    """One line for each arm that failed."""
    return [f"{arm.name}: {outcome.reason}" for arm, outcome in outcomes.items() if outcome.reason]


def comparison_name(config: CompareConfig, resolved: Resolved) -> str:
    """The name of a comparison's run, such as `compare keep,random,lottery mnist ...`."""
    words = summary.run_name(resolved).removeprefix(f"{resolved.reinit} ")
    return f"compare {config.reinits} {words.removesuffix(f' seed {resolved.seed}')}"
