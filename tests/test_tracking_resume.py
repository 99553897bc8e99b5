"""Interrupted runs: processes are killed, and their runs resumed."""

import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import mlflow
import pandas as pd
import pytest

from experiments.__main__ import run_command
from experiments.config.experiment import config_from
from experiments.processes.signals import (
    Interrupted,
    defer_signals,
    handle_signals,
    raise_if_interrupted,
)
from experiments.run import run_experiment
from experiments.tracking.log import Run
from experiments.training.engine import ENGINES
from tests.conftest import QUICK, ROOT, TIMEOUT, command, sent_when

TIMES = ("round_seconds", "train_seconds")
LONG = {"retrain_epochs": 20, "rounds": 3, "reinit": "rewind", "criterion": "random"}


def start(*argv):
    """A process that runs an experiment against the test's store."""
    return subprocess.Popen(
        [sys.executable, "-m", "experiments", "run", *argv],
        cwd=ROOT,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def test_a_run_that_ended_before_it_got_its_fingerprint_gets_one(store, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("experiments.tracking.log.fingerprint", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run_experiment(config_from(QUICK))
    (run,) = mlflow.search_runs(search_all_experiments=True, output_format="list")
    assert "weight_loss.fingerprint" not in run.data.tags
    run_experiment(config_from({"resume": run.info.run_id}))
    whole = run_experiment(config_from(QUICK))
    keys = {
        mlflow.get_run(each).data.tags["weight_loss.fingerprint"]
        for each in (run.info.run_id, whole)
    }
    assert len(keys) == 1


def stop_after_round(process, number, how):
    """Send a signal as soon as the process has printed a round; returns its run and its output."""
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith(f"round {number}/"):
            process.send_signal(how)
            break
    lines.append(process.stdout.read())
    process.wait(timeout=TIMEOUT)
    process.stdout.close()
    (run,) = mlflow.search_runs(search_all_experiments=True, output_format="list")
    assert f"round {number}/" in "".join(lines), "".join(lines)
    return run, lines


def files(run_id, kind="checkpoints"):
    folder = mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path=kind)
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def histories(run_id, leave_out=TIMES):
    client = mlflow.MlflowClient()
    return {
        name: [(point.step, point.value) for point in client.get_metric_history(run_id, name)]
        for name in mlflow.get_run(run_id).data.metrics
        if name not in leave_out
    }


@pytest.fixture
def anywhere(store, monkeypatch):
    """The store of the test, with artifacts beside it whatever folder a process starts in."""
    mlflow.create_experiment("weight-loss", artifact_location=str(store / "artifacts"))
    return store


@pytest.mark.parametrize("engine", ENGINES)
def test_a_killed_run_is_resumed_and_ends_bit_for_bit_the_same(anywhere, engine):
    long = LONG | {"engine": engine}
    killed, _ = stop_after_round(start(*command(**long)), 1, signal.SIGKILL)
    assert killed.info.status == "RUNNING"  # the process could not change it
    run_id = killed.info.run_id
    run_command("run", [f"--resume={run_id}", "--reinit=rewind"])
    resumed = mlflow.get_run(run_id)
    assert resumed.info.status == "FINISHED"
    straight = run_experiment(config_from(QUICK | long))
    assert files(run_id) == files(straight)
    assert resumed.data.metrics["sparse_engine"] == (engine == "sparse")
    assert len(files(run_id)) == 6  # four rounds, initial, rewound
    assert files(run_id, "correct") == files(straight, "correct")
    assert len(files(run_id, "correct")) == 4
    assert histories(run_id) == histories(straight)
    assert resumed.data.params == mlflow.get_run(straight).data.params
    assert len(mlflow.search_logged_models(output_format="list", experiment_ids=["1"])) == 2


def test_a_killed_run_is_marked_by_the_next_run_and_can_still_be_resumed(anywhere):
    killed, _ = stop_after_round(start(*command(**LONG)), 1, signal.SIGKILL)
    other = run_experiment(config_from(QUICK))
    assert mlflow.get_run(killed.info.run_id).info.status == "KILLED"
    assert mlflow.get_run(other).info.status == "FINISHED"
    run_command("run", [f"--resume={killed.info.run_id}"])
    assert mlflow.get_run(killed.info.run_id).info.status == "FINISHED"


@pytest.mark.slow
def test_a_run_waits_while_another_process_locks_the_database(anywhere):
    """For longer than MLflow does, which is 20 seconds."""
    path = mlflow.get_tracking_uri().removeprefix("sqlite:///")
    running = start(*command(**LONG))
    for line in running.stdout:
        if line.startswith("round 0/"):
            break
    with closing(sqlite3.connect(path, timeout=60)) as database:
        database.execute("BEGIN EXCLUSIVE")
        time.sleep(45)
        database.rollback()
    rest, _ = running.communicate(timeout=TIMEOUT)
    assert running.returncode == 0, rest
    assert "MLflow's database is locked (" in rest
    straight = run_experiment(config_from(QUICK | LONG))
    (run,) = (run for run in all_runs() if run.info.run_id != straight)
    assert run.info.status == "FINISHED"
    assert histories(run.info.run_id) == histories(straight)
    assert files(run.info.run_id) == files(straight)


def all_runs():
    return mlflow.search_runs(search_all_experiments=True, output_format="list")


def test_a_terminated_run_is_marked_killed_and_shows_how_to_resume(anywhere, capsys):
    with (
        pytest.raises(SystemExit) as stop,
        sent_when(signal.SIGTERM, lambda: list((anywhere / "artifacts").rglob("rounds.csv"))),
    ):
        run_command("run", command(**LONG))
    assert stop.value.code == 128 + signal.SIGTERM
    (run,) = mlflow.search_runs(search_all_experiments=True, output_format="list")
    assert run.info.status == "KILLED"
    (hint,) = re.findall("continue after the last complete round: (.*)", capsys.readouterr().out)
    subprocess.run(hint, shell=True, check=True, capture_output=True)
    assert mlflow.get_run(run.info.run_id).info.status == "FINISHED"
    assert run.data.tags["interrupted"] == "SIGTERM"


# Where a process is interrupted while it logs: before the nth call of a method (from 1).
CUTS = [
    ("_log_metrics", 1),  # the checkpoint is there, the numbers are not
    ("_log_tables", 3),  # the last round is complete, the tables are not
    ("_log_model", 1),
]


@pytest.fixture(scope="module")
def straight(empty_store, tmp_path_factory):
    """What a run that was not interrupted leaves."""
    folder = tmp_path_factory.mktemp("straight")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{shutil.copy(empty_store, folder)}")
        patch.delenv("MLFLOW_EXPERIMENT_ID", raising=False)
        return account(run_experiment(config_from(QUICK)))


def account(run_id):
    """All that a run leaves, except times and ids."""
    run = mlflow.get_run(run_id)
    times = ("weight_loss.heartbeat", "weight_loss.lock", "weight_loss.host", "mlflow.")
    folder = mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path="")
    tables = {
        name: pd.read_csv(Path(folder, name)).drop(columns=list(TIMES), errors="ignore").to_csv()
        for name in ("rounds.csv", "epochs.csv")
    }
    models = mlflow.search_logged_models([run.info.experiment_id], output_format="list")
    return {
        "status": run.info.status,
        "tags": {key: tag for key, tag in run.data.tags.items() if not key.startswith(times)},
        "note": run.data.tags["mlflow.note.content"],
        "params": run.data.params,
        "files": files(run_id),
        "correct": files(run_id, "correct"),
        "histories": histories(run_id),
        "inputs": sorted(entry.dataset.name for entry in run.inputs.dataset_inputs),
        "models": len([model for model in models if model.source_run_id == run_id]),
        "plots": sorted(path.name for path in Path(folder, "plots").iterdir()),
        **tables,
    }


@pytest.mark.parametrize(("method", "call"), CUTS)
def test_a_run_interrupted_while_logging_ends_the_same(store, straight, monkeypatch, method, call):
    calls = []
    real = getattr(Run, method)

    def cut(self, *args):
        calls.append(method)
        if len(calls) == call:
            raise KeyboardInterrupt
        return real(self, *args)

    monkeypatch.setattr(Run, method, cut)
    with pytest.raises(KeyboardInterrupt):
        run_experiment(config_from(QUICK))
    (run,) = mlflow.search_runs(search_all_experiments=True, output_format="list")
    assert run.info.status == "KILLED"
    monkeypatch.setattr(Run, method, real)
    run_experiment(config_from({"resume": run.info.run_id}))
    assert account(run.info.run_id) == straight


def test_a_run_that_could_not_be_marked_ends_the_same(store, straight):
    """All is logged, and the end of the run is not; what is logged again is there once."""
    run_id = run_experiment(config_from(QUICK))
    mlflow.MlflowClient().set_terminated(run_id, "FAILED")
    run_experiment(config_from({"resume": run_id}))
    assert account(run_id) == straight


def test_a_run_interrupted_between_its_metrics_ends_the_same(store, straight, monkeypatch):
    """Its epochs are logged, its round is not: nothing may be logged twice, or be missing."""
    real, calls = mlflow.MlflowClient.log_batch, []

    def cut(self, run_id, metrics=(), **kwargs):
        if any(metric.key == "sparsity" and metric.step == 1 for metric in metrics):
            calls.append(1)
            if len(calls) == 1:
                raise KeyboardInterrupt
        return real(self, run_id, metrics=metrics, **kwargs)

    monkeypatch.setattr(mlflow.MlflowClient, "log_batch", cut)
    with pytest.raises(KeyboardInterrupt):
        run_experiment(config_from(QUICK))
    (run,) = mlflow.search_runs(search_all_experiments=True, output_format="list")
    mlflow.MlflowClient().log_metric(run.info.run_id, "system/cpu", 3.0, step=7)  # not ours
    run_experiment(config_from({"resume": run.info.run_id}))
    found = account(run.info.run_id)
    del found["histories"]["system/cpu"]
    assert found == straight


@pytest.mark.parametrize("reinit", ["keep", "lr_rewind", "random"])
def test_a_resumed_round_scores_from_where_the_round_before_it_began(store, monkeypatch, reinit):
    whole = QUICK | {"reinit": reinit, "criterion": "movement", "rounds": 3}
    straight = files(run_experiment(config_from(whole)))
    real = Run.log_round

    def cut(self, result):
        if result.network.round == 3:
            raise KeyboardInterrupt
        real(self, result)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "log_round", cut)
        with pytest.raises(KeyboardInterrupt):
            run_experiment(config_from(whole))
    (run,) = (run for run in all_runs() if run.info.status == "KILLED")
    run_experiment(config_from({"resume": run.info.run_id}))
    assert files(run.info.run_id) == straight


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_whose_exception_is_swallowed_is_not_lost(number):
    with handle_signals():
        raise_if_interrupted()
        with pytest.raises(Interrupted) as caught:
            signal.raise_signal(number)
        assert caught.value.signal_name == number.name
        with pytest.raises(Interrupted):
            raise_if_interrupted()
    with handle_signals():
        raise_if_interrupted()


def test_a_signal_during_a_write_is_deferred_until_it_ends():
    done = []

    def write():
        with defer_signals():
            signal.raise_signal(signal.SIGTERM)
            done.append("written")
        done.append("after the signal")

    with handle_signals():
        with pytest.raises(Interrupted):
            write()
        with defer_signals():  # as cleaning up does
            done.append("cleaned up")
    with handle_signals():
        raise_if_interrupted()
    assert done == ["written", "cleaned up"]
