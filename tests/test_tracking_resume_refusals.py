"""Runs that cannot be resumed: finished, foreign, alive elsewhere, or damaged."""

import shutil
import subprocess
import sys
import time
from pathlib import Path

import mlflow
import pytest

from experiments.__main__ import run_command
from experiments.config.experiment import config_from
from experiments.processes.locks import run_lock
from experiments.run import run_experiment
from tests.conftest import QUICK, ROOT, command


def refuse(argv, capsys):
    with pytest.raises(SystemExit) as caught:
        run_command("run", argv)
    assert caught.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


@pytest.fixture
def failed(store):
    """A run that failed in its second round; it can be resumed."""
    with pytest.raises(SystemExit):
        run_command("run", command(retrain_lr="1e30"))
    (run,) = mlflow.search_runs(search_all_experiments=True, output_format="list")
    assert run.info.status == "FAILED"
    return run.info.run_id


def test_a_finished_run_cannot_be_resumed(store, capsys):
    run_id = run_experiment(config_from(QUICK))
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
        "import sys, time; from experiments.processes.locks import run_lock\n"
        f"with run_lock({failed!r}): print('ready', flush=True); time.sleep(60)"
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
    with run_lock(failed):  # a dead process holds nothing
        pass


def test_a_run_alive_on_another_machine_is_refused(failed, capsys):
    client = mlflow.MlflowClient()
    client.set_tag(failed, "host", "elsewhere")
    client.set_tag(failed, "lock", "elsewhere:/tmp/x.lock")
    client.update_run(failed, status="RUNNING")
    client.set_tag(failed, "heartbeat", str(time.time() - 5))
    assert "a process on elsewhere is still working" in refuse([f"--resume={failed}"], capsys)
    client.set_tag(failed, "heartbeat", str(time.time() - 500))
    assert "the loss is" in refuse([f"--resume={failed}"], capsys)  # it went on, and failed again


def test_damaged_artifacts_are_refused_by_name(failed, capsys):
    folder = Path(mlflow.get_run(failed).info.artifact_uri.removeprefix("file://"))
    checkpoint = folder / "checkpoints/round_00.safetensors"
    initial = folder / "checkpoints/initial.safetensors"
    for damage in (
        lambda: shutil.copy(initial, checkpoint),  # sound, but another network
        lambda: checkpoint.write_bytes(b"x"),
        checkpoint.unlink,
    ):
        damage()
        said = refuse([f"--resume={failed}"], capsys)
        assert "checkpoints/round_00.safetensors of run" in said
        assert "is missing or damaged" in said
    for text in ('{"reinit": ', '{"reinit": "nope"}', "[1]"):
        (folder / "config.json").write_text(text)
        assert f"config.json of run {failed} is damaged" in refuse([f"--resume={failed}"], capsys)


def test_other_data_are_refused(failed, capsys):
    mlflow.MlflowClient().set_tag(failed, "dataset_digest", "of other data")
    assert "the data are not those that run" in refuse([f"--resume={failed}"], capsys)
