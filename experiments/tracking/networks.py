"""Networks of stored runs: from the id of a run, or a file, to a working model."""

import os
import re
import tempfile
from pathlib import Path
from typing import Literal

import mlflow
from mlflow.exceptions import MlflowException

from datasets import Splits
from experiments.rounds.network import Network, open_network
from experiments.tracking.resume import checkpoint_name, get_run
from pruning.checkpoint import load_checkpoint

Round = int | Literal["last"]
FOLDERS = ("", "checkpoints", "artifacts/checkpoints")  # of checkpoints, in a folder of a run
_round = re.compile(r"round_(\d+)\.safetensors")


def is_run_id(source: str | os.PathLike[str]) -> bool:
    """Whether `source` is the id of a run, rather than a path."""
    return bool(re.fullmatch("[0-9a-f]{32}", str(source))) and not Path(source).exists()


def load_network(
    source: str | os.PathLike[str],
    round: Round = "last",  # noqa: A002
    data: Splits | None = None,
) -> Network:
    """A stored network as a working model.

    Args:
        source: The id of a run, the file of a checkpoint, or a folder of checkpoints.
        round: Number of the round, or "last"; a file has only its own.
        data: As in `open_network`.

    Raises:
        ValueError: If there is no such run, file or round, if the file is damaged, or if it does
            not say how to build its network.
    """
    if is_run_id(source):
        with tempfile.TemporaryDirectory() as folder:
            return _open(_download(str(source), round, folder), data)
    path = Path(source)
    if path.is_dir():
        folders = [path / name for name in FOLDERS]
        files = {file.name: file for each in folders for file in each.glob("round_*.safetensors")}
        return _open(files[_choose(list(files), round, str(source))], data)
    if not path.is_file():
        raise ValueError(
            f"source must be the id of a run, a checkpoint or a folder of checkpoints, got {source}"
        )
    network = _open(path, data)
    if round not in ("last", network.round):
        raise ValueError(f"round must be {network.round}, that of {source}, got {round}")
    return network


def _open(path: Path, data: Splits | None) -> Network:
    return open_network(load_checkpoint(path), path.name, data)


def _download(run_id: str, number: Round, folder: str) -> Path:
    get_run(run_id, "source")
    names = [Path(file.path).name for file in _list_checkpoints(run_id)]
    path = f"checkpoints/{_choose(names, number, f'run {run_id}')}"
    try:
        return Path(
            mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path=path, dst_path=folder)
        )
    except (MlflowException, OSError) as error:
        raise ValueError(f"source: {path} of run {run_id} cannot be read ({error})") from None


def _list_checkpoints(run_id: str) -> list[mlflow.entities.FileInfo]:
    files: list[mlflow.entities.FileInfo] = mlflow.MlflowClient().list_artifacts(
        run_id, "checkpoints"
    )
    return files


def _choose(names: list[str], number: Round, where: str) -> str:
    """The name of the checkpoint of a round."""
    rounds = sorted(int(found[1]) for name in names if (found := _round.fullmatch(name)))
    if not rounds:
        raise ValueError(f"source: {where} has no checkpoints of rounds; it must be one experiment")
    if number == "last":
        number = rounds[-1]
    if number not in rounds:
        raise ValueError(f"round must be last or one of {rounds[0]} to {rounds[-1]}, got {number}")
    return f"{checkpoint_name(number)}.safetensors"
