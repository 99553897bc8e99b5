"""Registry: a network as a model that MLflow serves, and as a version of a registered model."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import LoggedModelStatus
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from mlflow.models.signature import infer_signature

from experiments.processes.program import CODE_ROOT, INSIDE
from experiments.tracking.environment import release

CHAMPION = "champion"
MISSING = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")  # there is no such alias
PACKAGES = ("pruning", "models", "datasets", "experiments")


def save_served(
    folder: Path,
    script: Path,
    files: Mapping[str, Path],
    example: Any,
    answer: Any,
    requirements: Sequence[str],
) -> None:
    """Write an MLflow model that answers for a network.

    Args:
        folder: Must not exist.
        script: What MLflow runs to load it.
        files: What the script's model reads, by name.
        example: A request, and its `answer`.
        requirements: Names of the packages that it needs.
    """
    inside = CODE_ROOT if INSIDE else None
    code = [str(inside)] if inside else [str(CODE_ROOT / name) for name in PACKAGES]
    with warnings.catch_warnings():
        # No integer in a request or an answer can be missing.
        warnings.filterwarnings("ignore", message=".*integer column")
        signature = infer_signature(example, answer)
    mlflow.pyfunc.save_model(
        folder,
        python_model=str(script),
        artifacts={name: str(path) for name, path in files.items()},
        code_paths=code,
        signature=signature,
        input_example=example,
        pip_requirements=[f"{name}=={release(name)}" for name in requirements],
    )


def log_served(run_id: str, folder: Path, name: str, params: Mapping[str, str]) -> str:
    """Log the model of a folder to a run; returns its id."""
    client = mlflow.MlflowClient()
    logged = mlflow.initialize_logged_model(
        name, source_run_id=run_id, params=dict(params), model_type="served"
    )
    model = Model.load(folder)
    model.artifact_path, model.run_id = logged.artifact_location, run_id
    model.model_uuid, model.model_id = logged.model_id, logged.model_id
    model.save(folder / "MLmodel")
    client.log_model_artifacts(logged.model_id, str(folder))
    client.finalize_logged_model(logged.model_id, LoggedModelStatus.READY)
    return str(logged.model_id)


def register(model_id: str, name: str, valid_accuracy: float, size: int, digest: str) -> str:
    """Register a logged model as the next version of `name`; returns what happened, as text.

    The alias champion moves to it if there is no champion, or if its validation accuracy is higher
    and its network not larger, or as high and smaller. Networks of other data are not compared.

    Args:
        size: Of its network's file in bytes.
        digest: Of its data.
    """
    client = mlflow.MlflowClient()
    tags = {
        "valid_accuracy": repr(valid_accuracy),
        "network_bytes": str(size),
        "dataset_digest": digest,
    }
    version = mlflow.register_model(f"models:/{model_id}", name, tags=tags).version
    text = f"registered as version {version} of {name}"
    try:
        champion = client.get_model_version_by_alias(name, CHAMPION)
    except MlflowException as error:
        if error.error_code not in MISSING:
            raise
        client.set_registered_model_alias(name, CHAMPION, version)
        return f"{text}, which is now its {CHAMPION}"
    best = f"version {champion.version}"
    if champion.tags.get("dataset_digest") != digest:
        return f"{text}; its {CHAMPION} stays {best}, which is not known to be of the same data"
    accuracy, least = (float(champion.tags[name]) for name in ("valid_accuracy", "network_bytes"))
    if size <= least and (valid_accuracy, -size) > (accuracy, -least):
        client.set_registered_model_alias(name, CHAMPION, version)
        return f"{text}, which is now its {CHAMPION} in place of {best}"
    return (
        f"{text}; its {CHAMPION} stays {best}, whose validation accuracy is {accuracy:.4f} in "
        f"{least:,.0f} bytes"
    )
