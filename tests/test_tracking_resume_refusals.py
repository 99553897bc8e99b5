"""Runs that cannot be resumed: finished, foreign, alive elsewhere, or damaged."""

import itertools
import json
import math
import shutil
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import mlflow
import pytest
import torch

from experiments.__main__ import run_command
from experiments.config.experiment import Config, config_from
from experiments.processes.locks import run_lock
from experiments.processes.tasks import THREADS_PER_WORKER
from experiments.run import resume_warnings
from experiments.tracking.fingerprint import FINGERPRINT, fingerprint
from experiments.tracking.resume import (
    find_or_resume,
    history_of,
    is_finished,
    load_run,
    stored_config,
)
from experiments.tracking.session import INTERNAL, is_running, tracked_run
from pruning.checkpoint import load_checkpoint, save_checkpoint
from tests.conftest import QUICK, ROOT, command, working_in


def refuse(argv, capsys):
    with pytest.raises(SystemExit) as caught:
        run_command("run", argv)
    assert caught.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


@pytest.fixture(scope="module")
def stopped(tmp_path_factory, empty_store):
    """A store with a run that failed in its second round, so that it can be resumed."""
    folder = tmp_path_factory.mktemp("stopped")
    with working_in(folder, empty_store), pytest.raises(SystemExit):
        run_command("run", command(retrain_lr="1e30"))
    return folder


@pytest.fixture
def failed(stopped, store):
    """The id of that run, in a copy of its store; artifacts are not copied."""
    shutil.copy(stopped / "mlflow.db", store)
    (run,) = mlflow.search_runs(search_all_experiments=True, output_format="list")
    assert run.info.status == "FAILED"
    return run.info.run_id


def test_a_finished_run_cannot_be_resumed(failed, capsys):
    mlflow.MlflowClient().set_terminated(failed, "FINISHED")
    assert "is finished; nothing is left to resume" in refuse([f"--resume={failed}"], capsys)


def test_other_parameters_are_refused_by_name(failed, capsys):
    error = refuse([f"--resume={failed}", "--seed=4", "--reinit=keep"], capsys)
    assert "reinit (here keep, there lottery), seed (here 4, there 0)" in error


def test_a_foreign_or_unknown_or_deleted_run_is_refused(failed, capsys):
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
    client.set_tag(failed, "weight_loss.host", "elsewhere")
    client.set_tag(failed, "weight_loss.lock", "elsewhere:/tmp/x.lock")
    client.update_run(failed, status="RUNNING")
    client.set_tag(failed, "weight_loss.heartbeat", str(time.time() - 5))
    assert "a process on elsewhere is still working" in refuse([f"--resume={failed}"], capsys)
    client.set_tag(failed, "weight_loss.heartbeat", str(time.time() - 500))
    assert "the loss is" in refuse([f"--resume={failed}"], capsys)  # it is resumed, and fails again


def test_damaged_artifacts_are_refused_by_name(failed, capsys, tmp_path):
    folder = Path(mlflow.get_run(failed).info.artifact_uri.removeprefix("file://"))
    kept = shutil.copytree(folder, tmp_path / "kept")
    checkpoint = folder / "checkpoints/round_00.safetensors"
    initial = folder / "checkpoints/initial.safetensors"
    for damage in (
        lambda: shutil.copy(initial, checkpoint),  # sound, but another network
        lambda: checkpoint.write_bytes(b"x"),
        checkpoint.unlink,
    ):
        damage()
        error = refuse([f"--resume={failed}"], capsys)
        assert "checkpoints/round_00.safetensors of run" in error
        assert "is missing or damaged" in error
    for text in ('{"reinit": ', '{"reinit": "nope"}', "[1]"):
        (folder / "config.json").write_text(text)
        assert f"config.json of run {failed} is damaged" in refuse([f"--resume={failed}"], capsys)
    shutil.copytree(kept, folder, dirs_exist_ok=True)


def test_other_data_are_refused(failed, capsys):
    mlflow.MlflowClient().set_tag(failed, "weight_loss.dataset_digest", "of other data")
    assert "the data are not those that run" in refuse([f"--resume={failed}"], capsys)


def test_a_run_without_a_required_metric_is_refused(failed, capsys):
    forget(failed, "valid_accuracy")
    assert "metrics of run" in refuse([f"--resume={failed}"], capsys)


def test_a_metric_that_an_older_version_did_not_log_is_nan(failed):
    forget(failed, "early_stop_iteration", "theoretical_speedup", "epoch/valid_loss")
    stored = load_run(config_from({"resume": failed}))
    rounds, epochs = stored.history.frames()
    assert rounds["theoretical_speedup"].isna().all()
    assert rounds["early_stop_iteration"].isna().all()
    assert rounds["remaining_weights"].dtype == int
    assert epochs["valid_loss"].isna().all()
    assert epochs["valid_accuracy"].notna().all()
    (warning,) = resume_warnings(stored, stored.config, stored.tags["dataset_digest"])
    assert warning == (
        "WARNING: early_stop_iteration, theoretical_speedup: "
        "not logged by the version that began the run"
    )


@pytest.mark.parametrize("step", [0, 1])
def test_a_metric_may_be_missing_from_the_first_rounds_only(failed, step):
    """From a version on, a metric is logged in every round; a hole is damage."""
    run = mlflow.get_run(failed)
    for name in run.data.metrics:
        if not name.startswith("epoch/"):
            mlflow.MlflowClient().log_metric(failed, name, 0.5, step=1)
    with closing(sqlite3.connect("mlflow.db")) as database, database:
        where = "key='early_stop_iteration' AND step=?"
        database.execute(f"DELETE FROM metrics WHERE {where}", (step,))
    config = config_from({"dataset": "digits"}).resolved("digits")
    if step == 0:
        first, second = history_of(run, config, "resume").rounds
        assert math.isnan(first["early_stop_iteration"])
        assert second["early_stop_iteration"] == 0.5
    else:
        with pytest.raises(ValueError, match=f"metrics of run {failed} are missing"):
            history_of(run, config, "resume")


def test_rounds_read_back_have_the_columns_of_a_new_run_in_order(failed):
    """A store returns metrics in any order, here the loss last."""
    run = mlflow.get_run(failed)
    forget(failed, "train_loss", "epoch/train_loss")
    for name, step in (("epoch/train_loss", 2), ("train_loss", 0)):
        mlflow.MlflowClient().log_metric(failed, name, run.data.metrics[name], step=step)
    frames = load_run(config_from({"resume": failed})).history.frames()
    for frame, name in zip(frames, ("rounds.csv", "epochs.csv"), strict=True):
        written = mlflow.artifacts.load_text(f"{run.info.artifact_uri}/{name}")
        assert ",".join(frame.columns) == written.splitlines()[0]


def forget(run_id, *names):
    """Delete metrics, as if they had never been logged."""
    with closing(sqlite3.connect("mlflow.db")) as database, database:
        for table, name in itertools.product(("metrics", "latest_metrics"), names):
            database.execute(f"DELETE FROM {table} WHERE run_uuid=? AND key=?", (run_id, name))


def test_a_run_of_an_older_version_can_be_resumed_with_a_warning(failed, tmp_path):
    """Its code has another digest, and it does not have the settings that were added since."""
    mlflow.MlflowClient().set_tag(failed, "weight_loss.code", "0" * 32)
    mlflow.MlflowClient().set_tag(failed, "weight_loss.git_commit", "another")
    folder = Path(mlflow.get_run(failed).info.artifact_uri.removeprefix("file://"))
    kept = shutil.copytree(folder, tmp_path / "kept")
    config = json.loads((folder / "config.json").read_text())
    added = ["control", "pixels", *Config().streams()]
    for name in added:
        del config[name]
    (folder / "config.json").write_text(json.dumps(config))
    for path in (folder / "checkpoints").iterdir():
        found = load_checkpoint(path)
        for name in added:
            del found.metadata["config"][name]
        found.metadata.get("metrics", {}).pop("early_stop_valid_loss", None)
        save_checkpoint(path, found.state, found.masks, found.metadata)
    stored = load_run(config_from({"resume": failed}))
    assert (stored.config.control, stored.config.pixels) == ("none", "standardised")
    assert set(stored.config.streams().values()) == {QUICK.get("seed", 0)}
    assert stored.network.round == 0
    assert stored.network.dense_valid_loss is None
    (warning,) = resume_warnings(stored, stored.config, stored.tags["dataset_digest"])
    assert warning.startswith(f"WARNING: code was {'0' * 32} when the run began and is 3-")
    shutil.copytree(kept, folder, dirs_exist_ok=True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_the_config_of_a_run_on_a_gpu_is_read_but_not_resumed_without_one(failed, capsys, tmp_path):
    folder = Path(mlflow.get_run(failed).info.artifact_uri.removeprefix("file://"))
    kept = (folder / "config.json").read_text()
    (folder / "config.json").write_text(json.dumps(json.loads(kept) | {"device": "cuda"}))
    assert stored_config(mlflow.get_run(failed), "branch_of", str(tmp_path)).device == "cuda"
    assert "device must be cpu or auto on this machine" in refuse([f"--resume={failed}"], capsys)
    (folder / "config.json").write_text(kept)


def test_an_earlier_run_of_the_same_experiment_is_found_and_resumed(failed):
    client = mlflow.MlflowClient()
    stored = mlflow.get_run(failed)
    digest = stored.data.tags["weight_loss.dataset_digest"]
    config = config_from(QUICK | {"retrain_lr": 1e30})
    key = fingerprint(config.resolved("digits"), digest, THREADS_PER_WORKER)
    client.set_tag(failed, INTERNAL + FINGERPRINT, key)
    with tracked_run("search"):
        earlier = find_or_resume(config, "digits", digest)
        assert earlier.run.info.run_id == earlier.config.resume == failed
        assert not is_finished(earlier.run)
        assert not is_running(earlier.run)
        assert find_or_resume(config, "digits", "of other data").run is None
        client.set_tag(failed, "weight_loss.lock", "elsewhere")
        client.set_tag(failed, "weight_loss.heartbeat", str(time.time() + 1000))
        client.update_run(failed, status="RUNNING")
        assert is_running(find_or_resume(config, "digits", digest).run)
        client.set_terminated(failed, "FAILED")
        forget(failed, "valid_accuracy")
        earlier = find_or_resume(config, "digits", digest)
        assert earlier.config == config
        assert "metrics of run" in earlier.problem
        client.set_terminated(failed, "FINISHED")
        assert is_finished(find_or_resume(config, "digits", digest).run)
