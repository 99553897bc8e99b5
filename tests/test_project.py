"""The project as users start it, with `mlflow run` or the same from Python."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest
from mlflow.entities import ViewType
from mlflow.exceptions import ExecutionException

from experiments.config.experiment import config_from
from experiments.run import run_experiment
from experiments.tracking.log import Run
from tests.conftest import QUICK, ROOT, TIMEOUT, mnist_root, wait_until
from tests.test_datasets_mnist import write_idx
from tests.test_tracking_log import NAME
from tests.test_tracking_resume import anywhere, files

assert anywhere  # a fixture


@pytest.fixture
def path(monkeypatch):
    """The search path of an activated environment."""
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)


def mlflow_run(**params):
    argv = [word for name, value in params.items() for word in ("-P", f"{name}={value}")]
    return subprocess.run(
        ["mlflow", "run", str(ROOT), "--env-manager=local", "--experiment-name=weight-loss", *argv],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )


def run_project(entry_point="main", **params):
    """The same as `mlflow run`, which takes seconds to start."""
    mlflow.projects.run(
        str(ROOT),
        entry_point,
        parameters=params,
        experiment_name="weight-loss",
        env_manager="local",
    )


def runs():
    return mlflow.search_runs(search_all_experiments=True, output_format="list")


def test_mlflow_run_leaves_one_complete_run(anywhere, path):
    done = mlflow_run(**QUICK, reinit="keep")
    assert done.returncode == 0, done.stderr
    (run,) = runs()
    assert run.info.status == "FINISHED"
    assert run.info.run_name == NAME.replace("lottery", "keep")
    assert run.data.params["resolved_retrain_lr"] == "0.003"  # 0.3 of lr
    assert run.data.metrics["sparsity"] == pytest.approx(0.36, abs=1e-3)
    assert len(files(run.info.run_id)) == 5
    assert done.stdout.startswith("logging to the MLflow experiment weight-loss in sqlite:")
    assert f"/runs/{run.info.run_id}?workflowType=machine_learning" in done.stdout


def test_any_path_and_name_reach_the_command_through_make_and_mlflow(anywhere, path, monkeypatch):
    folder = anywhere / 'it\'s "a" [b] (c) $HOME `id` #é 100% {d}; & e'
    write_idx(folder / "MNIST" / "raw")
    mlflow.create_experiment("it's mine", artifact_location=str(anywhere / "artifacts"))
    params = QUICK | {"dataset": "mnist", "data_root": folder, "train_limit": 0}
    words = [word for name, value in params.items() for word in ("-P", f"{name}={value}")]
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "it's mine")
    make = ["make", "-o", ".venv/.installed", "lottery"]  # -o: not the set-up
    done = subprocess.run(
        [*make, f"ARGS={shlex.join(words)}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert done.returncode == 0, done.stderr
    (run,) = runs()
    assert run.info.status == "FINISHED"
    assert run.data.tags["dataset_source"] == str(folder / "MNIST" / "raw")
    assert mlflow.get_experiment(run.info.experiment_id).name == "it's mine"


def test_a_project_resumes_a_run_and_leaves_no_duplicate(anywhere, path, monkeypatch):
    monkeypatch.setattr(Run, "finish", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_experiment(config_from(QUICK))
    (killed,) = runs()
    run_project(resume=killed.info.run_id)
    wait_until(lambda: len(runs()) == 1)  # the other is deleted when `mlflow run` has ended
    (run,) = runs()
    assert run.info.run_id == killed.info.run_id
    assert run.info.status == "FINISHED"
    assert len(files(run.info.run_id)) == 5


def interrupt(run):
    raise KeyboardInterrupt


def runs_that_are_deleted():
    """All runs, as soon as they are deleted."""
    wait_until(lambda: not runs())
    return mlflow.search_runs(
        search_all_experiments=True, run_view_type=ViewType.DELETED_ONLY, output_format="list"
    )


def test_a_typo_in_mlflow_run_is_one_line_and_leaves_no_run(anywhere, path):
    done = mlflow_run(**QUICK, reinit="lotery")
    assert done.returncode == 1
    error = "reinit must be one of keep, random, lottery, rewind, lr_rewind, sign, shuffle, "
    error += "random_scaled, got lotery (did you mean lottery?)"
    assert f"error: {error}\n" in done.stderr
    assert "Traceback" not in done.stderr
    (run,) = runs_that_are_deleted()
    assert (run.info.status, run.data.tags["error"]) == ("FAILED", error)


@pytest.mark.parametrize(
    ("entry_point", "params", "error"),
    [
        ("main", {"prun_rate": 0.3}, "no parameter prun_rate (did you mean prune_rate?); python"),
        (
            "main",
            {"dataset": "faces", "data_root": "-no 'x'"},
            "data_root: -no 'x' is not a folder",
        ),
        ("prepare_faces", {"source": "no/where", "out": "x"}, "no/where is not a folder of class"),
    ],
)
def test_a_user_error_in_a_project_leaves_no_run(anywhere, path, capfd, entry_point, params, error):
    with pytest.raises(ExecutionException, match="failed"):
        run_project(entry_point, **params)
    errors = capfd.readouterr().err
    (line,) = (line for line in errors.splitlines() if line.startswith("error: "))
    assert error in line
    assert "preparing" not in errors
    (run,) = runs_that_are_deleted()
    assert run.data.tags["error"] == line.removeprefix("error: ")


def test_a_run_with_results_is_never_deleted(anywhere, path):
    """`mlflow run --run-id` logs to an existing run."""
    with mlflow.start_run(tags={"mlflow.source.type": "PROJECT"}) as run:
        mlflow.log_metric("accuracy", 1)
    mlflow.MlflowClient().update_run(run.info.run_id, status="RUNNING")
    with pytest.raises(ExecutionException):
        mlflow.projects.run(
            str(ROOT), parameters={"epochs": 0}, run_id=run.info.run_id, env_manager="local"
        )
    assert [run.info.lifecycle_stage for run in runs()] == ["active"]


@pytest.mark.real_data
@pytest.mark.skipif(mnist_root() is None, reason="real MNIST is not on this machine")
def test_the_lottery_on_mnist_keeps_its_accuracy(anywhere, path):
    """Dense at least 0.975, and 90% sparse within a point of it; half the default retraining."""
    done = mlflow_run(data_root=mnist_root(), retrain_epochs=5)
    assert done.returncode == 0, done.stderr
    metrics = runs()[0].data.metrics
    assert metrics["final/sparsity"] == pytest.approx(0.9)
    assert metrics["dense/test_accuracy"] >= 0.975
    assert metrics["final/test_accuracy"] >= metrics["dense/test_accuracy"] - 0.01
