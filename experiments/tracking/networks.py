"""Networks of stored runs: from the id of a run, or a file, to a working model."""

import os
import re
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import mlflow
from mlflow.entities import FileInfo
from mlflow.entities import Run as MlflowRun
from mlflow.exceptions import MlflowException

from datasets import Splits
from experiments.rounds.data import load_data
from experiments.rounds.network import Network, is_described, open_network
from experiments.tracking.resume import get_run, stored_config
from experiments.tracking.session import tags_of
from pruning.checkpoint import load_checkpoint

Round = int | Literal["last"]
FOLDERS = ("", "checkpoints", "artifacts/checkpoints")  # of checkpoints, in a folder of a run
_round = re.compile(r"round_(\d+)\.safetensors")


def is_run_id(source: str | os.PathLike[str]) -> bool:
    """Whether `source` is the id of a run, rather than a path."""
    return bool(re.fullmatch("[0-9a-f]{32}", str(source))) and not Path(source).exists()


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
        found = [file for name in FOLDERS for file in (path / name).glob("round_*.safetensors")]
        files = {file.name: file for file in found}
        if len(files) < len(found):
            raise ValueError(
                f"{path} has several files for one round, some in folders below it: name one file"
            )
        return _open(files[_choose(files, round, str(path))], data)
    if not path.is_file():
        raise ValueError(
            f"run must be the id of a run, a checkpoint or a folder of checkpoints, got {path}"
        )
    network = _open(path, data)
    if round not in ("last", network.round):
        raise ValueError(f"round must be {network.round}, that of {path}, got {round}")
    return network


def _open(path: Path, data: Splits | None) -> Network:
    return open_network(load_checkpoint(path), path.name, data)


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
