"""Interruption, for real: processes are killed, and their runs continued."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import mlflow
import pytest

from experiments.config import config_from
from experiments.liveness import sole_worker
from experiments.run import experiment, main
from tests.conftest import QUICK, ROOT, command

LONG = {"retrain_epochs": 60, "rounds": 5, "reinit": "rewind", "criterion": "random"}


def start(*argv):
    """A process of its own that runs an experiment against the test's store."""
    return subprocess.Popen(
        [sys.executable, "-m", "experiments", "run", *argv],
        cwd=ROOT,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def stop_after_round(process, number, how):
    """Send a signal as soon as the process says that a round is done; its run, and what it said."""
    said = []
    for line in process.stdout:
        said.append(line)
        if line.startswith(f"round {number}/"):
            process.send_signal(how)
            break
    said.append(process.stdout.read())
    process.wait(timeout=60)
    process.stdout.close()
    (run,) = mlflow.search_runs(search_all_experiments=True, output_format="list")
    assert f"round {number}/" in "".join(said), "".join(said)
    return run, said


def files(run_id):
    folder = mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path="checkpoints")
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def histories(run_id, leave_out=("round_seconds", "train_seconds")):
    client = mlflow.MlflowClient()
    return {
        name: [(point.step, point.value) for point in client.get_metric_history(run_id, name)]
        for name in mlflow.get_run(run_id).data.metrics
        if name not in leave_out
    }


@pytest.fixture
def anywhere(store, monkeypatch):
    """The store of the test, with artifacts beside it whatever folder a process runs in."""
    mlflow.create_experiment("weight-loss", artifact_location=str(store / "artifacts"))
    return store


def test_a_killed_run_goes_on_and_ends_bit_for_bit_the_same(anywhere):
    killed, _ = stop_after_round(start(*command(**LONG)), 1, signal.SIGKILL)
    assert killed.info.status == "RUNNING"  # nobody was left to say otherwise
    run_id = killed.info.run_id
    main([f"--resume={run_id}"])
    resumed = mlflow.get_run(run_id)
    assert resumed.info.status == "FINISHED"
    straight = experiment(config_from(QUICK | LONG))
    assert files(run_id) == files(straight)
    assert len(files(run_id)) == 8  # six rounds, initial, rewound
    assert histories(run_id) == histories(straight)
    assert resumed.data.params == mlflow.get_run(straight).data.params
    assert len(mlflow.search_logged_models(output_format="list", experiment_ids=["1"])) == 2


def test_a_terminated_run_is_killed_and_can_be_resumed(anywhere):
    process = start(*command(**LONG))
    run, said = stop_after_round(process, 0, signal.SIGTERM)
    assert process.returncode == 128 + signal.SIGTERM
    assert run.info.status == "KILLED"
    assert f"stopped; -P resume={run.info.run_id} goes on" in "".join(said)
    assert run.data.tags["interrupted"] == "SIGTERM"
    main([f"--resume={run.info.run_id}", "--reinit=rewind"])
    assert mlflow.get_run(run.info.run_id).info.status == "FINISHED"
    steps = [step for step, _ in histories(run.info.run_id)["sparsity"]]
    assert steps == [0, 1, 2, 3, 4, 5]


def refuse(argv, capsys):
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


@pytest.fixture
def failed(store):
    """A run that failed in its second round; it can be resumed."""
    with pytest.raises(SystemExit):
        main(command(retrain_lr="1e30"))
    (run,) = mlflow.search_runs(search_all_experiments=True, output_format="list")
    assert run.info.status == "FAILED"
    return run.info.run_id


def test_a_finished_run_cannot_be_resumed(store, capsys):
    run_id = experiment(config_from(QUICK))
    assert "is finished, there is nothing to continue" in refuse([f"--resume={run_id}"], capsys)


def test_other_parameters_are_refused_by_name(failed, capsys):
    said = refuse([f"--resume={failed}", "--seed=4", "--reinit=keep"], capsys)
    assert "reinit (here keep, there lottery), seed (here 4, there 0)" in said


def test_a_foreign_or_unknown_or_deleted_run_is_refused(store, capsys, failed):
    assert f"has no run {'0' * 32}" in refuse([f"--resume={'0' * 32}"], capsys)
    client = mlflow.MlflowClient()
    foreign = client.create_run("0")
    assert "has no config.json" in refuse([f"--resume={foreign.info.run_id}"], capsys)
    client.delete_run(failed)
    assert "is deleted; restore it first" in refuse([f"--resume={failed}"], capsys)


def test_a_run_that_another_process_works_on_is_refused(failed, capsys):
    code = (
        "import sys, time; from experiments.liveness import sole_worker\n"
        f"with sole_worker({failed!r}): print('ready', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout.readline() == "ready\n"
    mlflow.MlflowClient().update_run(failed, status="RUNNING")
    before = mlflow.get_run(failed).data.tags
    assert "another process on this machine is still working" in refuse(
        [f"--resume={failed}"], capsys
    )
    assert mlflow.get_run(failed).info.status == "RUNNING"  # untouched
    assert mlflow.get_run(failed).data.tags == before
    holder.kill()
    holder.wait()
    holder.stdout.close()
    with sole_worker(failed):  # a dead process holds nothing
        pass


def test_a_run_alive_on_another_machine_is_refused(failed, capsys):
    client = mlflow.MlflowClient()
    client.set_tag(failed, "host", "elsewhere")
    client.update_run(failed, status="RUNNING")
    client.set_tag(failed, "heartbeat", str(time.time() - 5))
    assert "a process on elsewhere is still working" in refuse([f"--resume={failed}"], capsys)
    client.set_tag(failed, "heartbeat", str(time.time() - 500))
    assert "the loss is" in refuse([f"--resume={failed}"], capsys)  # it went on, and failed again


def test_other_data_are_refused(failed, capsys):
    mlflow.MlflowClient().set_tag(failed, "dataset_digest", "of other data")
    assert "the data are not those that run" in refuse([f"--resume={failed}"], capsys)
