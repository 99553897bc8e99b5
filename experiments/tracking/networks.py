"""Networks of stored runs: from the id of a run, or a file, to a working model."""

import hashlib
import os
import re
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

import mlflow
from mlflow.entities import FileInfo, Metric
from mlflow.entities import Run as MlflowRun
from mlflow.exceptions import MlflowException

from datasets import Splits
from experiments.config.experiment import Config
from experiments.rounds.data import load_data
from experiments.rounds.network import Network, is_described, open_network
from experiments.tracking.resume import get_run, stored_config
from experiments.tracking.session import tags_of
from pruning.checkpoint import load_checkpoint
from pruning.packed import is_packed, load_packed

Round = int | Literal["last"]
MEASUREMENTS = "measurements"  # artifact folder of a run, with a folder for each round
ROUNDING = 1e-4  # of a target sparsity, to whole weights
FOLDERS = ("", "checkpoints", "artifacts/checkpoints")  # of checkpoints, in a folder of a run
_round = re.compile(r"round_(\d+)\.safetensors")


def is_run_id(source: str | os.PathLike[str]) -> bool:
    """Whether `source` is the id of a run, rather than a path."""
    return bool(re.fullmatch("[0-9a-f]{32}", str(source))) and not Path(source).exists()


def folder_name(run: str) -> str:
    """The id of a run, or the name of a checkpoint with a digest that sets its path apart."""
    if is_run_id(run):
        return run
    path = Path(run).resolve()
    digest = hashlib.blake2b(os.fsencode(path), digest_size=4).hexdigest()
    return f"{path.name.removesuffix('.safetensors')}-{digest}"


def best_round(run: str, sparsity: float) -> int:
    """The round with the highest validation accuracy; of equal ones the sparsest.

    Args:
        run: As for `load_network`.
        sparsity: The least that it may have.

    Raises:
        ValueError: If there is no round, or none that sparse.
    """
    rounds = _metrics_of_rounds(run)
    if not rounds:
        raise ValueError(f"{run} has no complete rounds; run must be one experiment")
    sparse = {n: row for n, row in rounds.items() if row["sparsity"] >= sparsity - ROUNDING}
    if not sparse:
        most = max(row["sparsity"] for row in rounds.values())
        raise ValueError(f"sparsity must be at most {most:.4f}, that of the sparsest round")
    return max(sparse, key=lambda n: (sparse[n]["valid_accuracy"], sparse[n]["sparsity"]))


def _metrics_of_rounds(run: str) -> dict[int, dict[str, float]]:
    """By number of the round, `valid_accuracy` and `sparsity`."""
    rounds: dict[int, dict[str, float]] = {}
    names = ("valid_accuracy", "sparsity")
    if is_run_id(run):
        get_run(run, "run")
        for name in names:
            for point in mlflow.MlflowClient().get_metric_history(run, name):
                rounds.setdefault(point.step, {})[name] = point.value
        return {n: row for n, row in rounds.items() if len(row) == len(names)}
    path = Path(run)
    for file in _files_of(path).values() if path.is_dir() else [path]:
        network = load_network(file)
        if missing := [name for name in names if name not in network.metrics]:
            raise ValueError(f"{file} does not say its {missing[0]}: give the number of the round")
        rounds[network.round] = network.metrics
    return rounds


def data_root_of(run: str) -> str:
    """Where a run read its data; of a file, the default."""
    default = str(Config.model_fields["data_root"].default)
    return get_run(run, "run").data.params.get("data_root", default) if is_run_id(run) else default


def log_files(run: str, paths: Iterable[Path], where: str) -> None:
    """Log files and folders to a run, below the artifact folder `where`."""
    client = mlflow.MlflowClient()
    for path in paths:
        if path.is_dir():
            client.log_artifacts(run, str(path), f"{where}/{path.name}")
        else:
            client.log_artifact(run, str(path), where)


def log_metrics(run: str, metrics: Mapping[str, float], step: int) -> None:
    """Log metrics to a run."""
    now = int(1000 * time.time())
    points = [Metric(name, value, now, step) for name, value in metrics.items()]
    mlflow.MlflowClient().log_batch(run, metrics=points)


def load_network(
    run: str | os.PathLike[str],
    round: Round = "last",  # noqa: A002
    data: Splits | None = None,
) -> Network:
    """A stored network as a working model.

    Args:
        run: The id of a run, the file of a checkpoint, or a folder of checkpoints.
        round: Number of the round, or "last"; a file has only its own.
        data: The data that it was trained on. Only a file needs them, if an older version wrote it;
            for a run of such a version they are read from where it read them.

    Raises:
        ValueError: If there is no such run, file or round, if the file is damaged, or if it does
            not say how to build its network.
    """
    if is_run_id(run):
        return _of_run(str(run), round, data)
    path = Path(run)
    if path.is_dir():
        files = _files_of(path)
        return _open(files[_choose(files, round, str(path))], data)
    if not path.is_file():
        raise ValueError(
            f"run must be the id of a run, a checkpoint or a folder of checkpoints, got {path}"
        )
    network = _open(path, data)
    if round not in ("last", network.round):
        raise ValueError(f"round must be {network.round}, that of {path}, got {round}")
    return network


def _files_of(folder: Path) -> dict[str, Path]:
    """The checkpoints of rounds in a folder of a run, by name."""
    found = [file for name in FOLDERS for file in (folder / name).glob("round_*.safetensors")]
    files = {file.name: file for file in found}
    if len(files) < len(found):
        raise ValueError(
            f"{folder} has several files for one round, some in folders below it: name one file"
        )
    return files


def _open(path: Path, data: Splits | None) -> Network:
    checkpoint = load_packed(path) if is_packed(path) else load_checkpoint(path)
    return open_network(checkpoint, path.name, data)


def _of_run(run_id: str, number: Round, data: Splits | None) -> Network:
    run = get_run(run_id, "run")
    names = [Path(file.path).name for file in _list_checkpoints(run_id)]
    path = f"checkpoints/{_choose(names, number, f'run {run_id}')}"
    with tempfile.TemporaryDirectory() as folder:
        try:
            file = mlflow.artifacts.download_artifacts(
                run_id=run_id, artifact_path=path, dst_path=folder
            )
        except (MlflowException, OSError) as error:
            raise ValueError(f"{path} of run {run_id} cannot be read ({error})") from None
        checkpoint = load_checkpoint(file)
        if data is None and not is_described(checkpoint):
            data = _read_data(run, folder)
        return open_network(checkpoint, f"{path} of run {run_id}", data)


def _read_data(run: MlflowRun, folder: str) -> Splits:
    """The data of a run whose checkpoints, written by an older version, need it."""
    data, _ = load_data(stored_config(run, "run", folder))
    if data.digest != tags_of(run).get("dataset_digest"):
        raise ValueError(
            f"run {run.info.run_id} was written by an older version and needs its data, "
            f"but those in {data.source} have changed"
        )
    return data


def _list_checkpoints(run_id: str) -> list[FileInfo]:
    files: list[FileInfo] = mlflow.MlflowClient().list_artifacts(run_id, "checkpoints")
    return files


def _choose(names: Iterable[str], number: Round, where: str) -> str:
    """The name of the checkpoint of a round, such as round_03.safetensors or round_3.safetensors.

    Raises:
        ValueError: If there is none, or more than one.
    """
    rounds: dict[int, str] = {}
    for name in sorted(names):
        if found := _round.fullmatch(name):
            other = rounds.setdefault(int(found[1]), name)
            if other != name:
                raise ValueError(f"{where} has {other} and {name}: give the file as run")
    if not rounds:
        raise ValueError(f"{where} has no checkpoints of rounds; run must be one experiment")
    first, last = min(rounds), max(rounds)
    if number == "last":
        number = last
    if number not in rounds:
        raise ValueError(f"round must be last or one of {first} to {last}, got {number}")
    return rounds[number]
