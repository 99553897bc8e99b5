"""The project as users start it, with `mlflow run` or the same from Python."""

import os
import subprocess
import sys
import time
from pathlib import Path

import mlflow
import pytest
from mlflow.exceptions import ExecutionException

from experiments.config.experiment import config_from
from experiments.run import run_experiment
from experiments.tracking.log import Run
from tests.conftest import QUICK, ROOT, TIMEOUT, mnist_root
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


def test_a_project_resumes_a_run_and_leaves_no_duplicate(anywhere, path, monkeypatch):
    monkeypatch.setattr(Run, "finish", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_experiment(config_from(QUICK))
    (killed,) = runs()
    run_project(resume=killed.info.run_id)
    give_up = time.monotonic() + TIMEOUT
    while len(runs()) > 1 and time.monotonic() < give_up:  # deleted when `mlflow run` has ended
        time.sleep(0.2)
    (run,) = runs()
    assert run.info.run_id == killed.info.run_id
    assert run.info.status == "FINISHED"
    assert len(files(run.info.run_id)) == 5


def interrupt(run):
    raise KeyboardInterrupt


def test_a_project_with_an_invalid_parameter_fails_in_one_line(anywhere, path, capfd):
    with pytest.raises(ExecutionException):
        run_project(prune_rate=2)
    assert "error: prune_rate must be less than 1, got 2\n" in capfd.readouterr().err
    (run,) = runs()
    assert run.info.status == "FAILED"
    assert run.data.tags["error"] == "prune_rate must be less than 1, got 2"


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
