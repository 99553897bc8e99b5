"""Comparisons from the command line, with a real MLflow; most train inside this process."""

import os
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch

from experiments.__main__ import run_command
from experiments.comparison.record import read_record
from experiments.comparison.report import read_comparison
from experiments.config.experiment import config_from
from experiments.processes.locks import run_lock
from experiments.run import run_experiment
from experiments.tracking.networks import load_network
from tests.comparing import command, compare, other_processes, runs
from tests.conftest import QUICK, ROOT, TIMEOUT, wait_until, working_in

TABLES = ("comparison", "summary", "differences", "matches", "epochs")


def arms(run):
    children = runs("mlflow.parentRunId", run.info.run_id)
    return {(arm.data.tags["Method"], arm.data.params["seed"]): arm for arm in children}


def without_ids(page):
    """A page without what differs between two equal comparisons."""
    return re.sub(r'<(a|span) class="volatile"[^>]*>[^<]*</\1>', "", page)


def numbers(folder):
    """The tables of a report, without ids and times."""
    tables = {name: pd.read_csv(folder / f"{name}.csv") for name in TABLES}
    volatile = ["run_id", "round_seconds", "train_seconds"]
    return {name: table.drop(columns=volatile, errors="ignore") for name, table in tables.items()}


def same(one, two):
    for name, table in numbers(one).items():
        pd.testing.assert_frame_equal(table, numbers(two)[name])
    first, second = ((folder / "report.html").read_text() for folder in (one, two))
    return without_ids(first) == without_ids(second)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, empty_store):
    """A comparison without interruptions: the folder it ran in, and its run's id."""
    folder = tmp_path_factory.mktemp("whole")
    with working_in(folder, empty_store):
        run, _ = compare()
    return folder, run.info.run_id


@pytest.fixture
def again(whole, tmp_path, monkeypatch, store):
    """A copy of its database; the report's folder, and the run's id."""
    folder, run_id = whole
    shutil.copy(folder / "mlflow.db", tmp_path / "mlflow.db")
    return folder / "reports" / run_id, run_id


def test_a_comparison_is_a_run_with_a_finished_run_for_each_arm(again):
    folder, run_id = again
    run = mlflow.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.info.run_name.startswith("compare keep,random,lottery digits lenet_30_20 2 rounds")
    children = arms(run)
    assert set(children) == {
        (method, seed) for method in ("keep", "random", "lottery") for seed in "01"
    }
    assert {arm.info.status for arm in children.values()} == {"FINISHED"}
    dense = {arm.data.metrics["dense/test_accuracy"] for arm in children.values()}
    assert len(dense) <= 2  # one dense network per seed
    branches = {arm.data.tags["weight_loss.branch_of"] for arm in children.values()}
    base_runs = {children["keep", seed].info.run_id for seed in "01"}
    assert branches == {"none", *base_runs}
    summary = pd.read_csv(folder / "summary.csv")
    key = "test_accuracy/lottery"
    history = mlflow.MlflowClient().get_metric_history(run_id, key)
    expected = summary.loc[summary["method"] == "lottery", "test_accuracy_mean"]
    assert [point.value for point in history] == list(expected)


def test_the_tables_are_those_of_the_arms(again):
    folder, run_id = again
    table = pd.read_csv(folder / "comparison.csv")
    assert len(table) == 3 * 2 * 3  # methods, seeds, rounds
    for (method, seed), arm in arms(mlflow.get_run(run_id)).items():
        rows = table[(table["method"] == method) & (table["seed"] == int(seed))]
        assert set(rows["run_id"]) == {arm.info.run_id}
        for name in ("test_accuracy", "sparsity", "valid_loss"):
            history = mlflow.MlflowClient().get_metric_history(arm.info.run_id, name)
            assert list(rows[name]) == [point.value for point in history]
    dense = table[table["round"] == 0].groupby("seed")["test_accuracy"].nunique()
    assert (dense == 1).all()


def correct_of(run_id):
    return read_comparison(run_id, read_record(run_id)).correct


def test_a_comparison_knows_which_test_images_each_network_classifies_correctly(again):
    folder, run_id = again
    table = pd.read_csv(folder / "comparison.csv")
    correct = correct_of(run_id)
    assert len(correct) == len(table)
    for row in table.itertuples():
        answers = correct[row.method, row.seed, row.round]
        assert (answers.dtype, answers.shape) == (bool, (257,))
        assert answers.mean() == row.test_accuracy
    assert np.array_equal(correct["keep", 0, 0], correct["random", 0, 0])
    assert not np.array_equal(correct["keep", 0, 0], correct["keep", 1, 0])


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda content: content[:-1], "it has 32 bytes, 257 images need 33"),
        (lambda content: bytes(33), "it does not agree with the test accuracy"),
        (lambda content: content[:-1] + b"\xff", "it has a bit after those of its 257 images"),
    ],
)
def test_a_damaged_file_of_correct_images_is_one_line(again, damage, problem):
    _, run_id = again
    arm = arms(mlflow.get_run(run_id))["random", "1"].info
    path = Path(arm.artifact_uri.removeprefix("file://"), "correct/round_01.bits")
    content = path.read_bytes()
    path.write_bytes(damage(content))
    try:
        with pytest.raises(ValueError, match=problem) as caught:
            correct_of(run_id)
    finally:  # other tests use the same artifacts
        path.write_bytes(content)
    assert str(caught.value) == (
        f"correct/round_01.bits of run {arm.run_id} (random, seed 1) is damaged ({problem}): "
        "delete that run, then repeat the compare command"
    )


def test_without_the_file_of_one_network_no_network_has_correct_images(again, tmp_path):
    _, run_id = again
    arm = arms(mlflow.get_run(run_id))["random", "1"].info
    path = Path(arm.artifact_uri.removeprefix("file://"), "correct/round_01.bits")
    kept = shutil.move(path, tmp_path)
    try:
        assert correct_of(run_id) == {}
    finally:
        shutil.move(kept, path)


def test_everything_on_disk_is_in_the_run_too(again):
    folder, run_id = again
    logged = Path(mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path=""))
    for path in folder.rglob("*.*"):
        assert (logged / path.relative_to(folder)).read_bytes() == path.read_bytes()
    names = {path.name for path in (folder / "plots").iterdir()}
    assert {"accuracy.png", "accuracy.svg", "epochs.png", "overlap.svg", "pixels.png"} <= names


def test_the_same_comparison_again_trains_nothing_and_reports_the_same(again, capfd):
    folder, run_id = again
    before = {run.info.run_id for run in runs("reinit", "keep")}
    run, new = compare()
    assert run.info.run_id != run_id
    assert capfd.readouterr().out.count("already done") == 6
    assert {run.info.run_id for run in runs("reinit", "keep")} == before
    assert same(folder, new)
    assert len(arms(mlflow.get_run(run_id))) == 6  # they stay with the finished comparison


def test_another_comparison_runs_only_what_is_missing(again, capfd):
    run, new = compare(seeds="0,2", reinits="keep,sign")
    assert capfd.readouterr().out.count("already done") == 1
    assert set(arms(run)) == {("keep", "2"), ("sign", "0"), ("sign", "2")}
    table = pd.read_csv(new / "comparison.csv")
    assert table.groupby("method")["seed"].unique().map(list).to_dict() == {
        "keep": [0, 2],
        "sign": [0, 2],
    }


def test_a_report_is_rebuilt_from_the_tracking_store_alone(again, tmp_path, monkeypatch):
    folder, run_id = again
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "another")  # where a new run would be logged
    run_command("report", [f"--run={run_id}", "--out=elsewhere"])
    assert same(folder, tmp_path / "elsewhere")
    whole_page = (folder / "report.html").read_text()
    assert (tmp_path / "elsewhere/report.html").read_text() == whole_page  # its ids, too


def test_what_measure_found_of_an_arm_is_in_the_page(again, tmp_path):
    folder, run_id = again
    assert "Measured costs" not in (folder / "report.html").read_text()
    arm = arms(mlflow.get_run(run_id))["lottery", "1"].info
    try:
        words = [f"--run={arm.run_id}", "--round=1", "--queries=2", "--batches=1", "--out=measured"]
        run_command("measure", words)
        run_command("report", [f"--run={run_id}", "--out=elsewhere"])
    finally:  # other tests use the same artifacts
        shutil.rmtree(Path(arm.artifact_uri.removeprefix("file://"), "measurements"))
    assert "Measured costs" in (tmp_path / "elsewhere/report.html").read_text()
    costs = pd.read_csv(tmp_path / "elsewhere/costs.csv")
    assert (costs["method"] == "lottery").all()
    assert (costs["seed"] == 1).all()
    assert (costs["round"] == 1).all()
    measured = pd.read_csv(tmp_path / "measured/measurements.csv")
    assert costs[list(measured)].equals(measured)


def test_a_comparison_in_processes_that_was_killed_is_continued(whole, store, capfd):
    process = subprocess.Popen(
        [sys.executable, "-m", "experiments", "compare", *command(executor="processes", workers=1)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    for line in process.stdout:
        if "done (2 of 6)" in line:
            process.kill()
            break
    process.wait(timeout=TIMEOUT)
    process.stdout.close()
    wait_until(lambda: not other_processes())  # workers stop with their parent
    (killed,) = runs("kind", "comparison")
    assert killed.info.status == "RUNNING"
    run, new = compare()
    assert capfd.readouterr().out.count("already done") >= 2
    assert same(whole[0] / "reports" / whole[1], new)
    assert mlflow.get_run(killed.info.run_id).info.status == "KILLED"
    assert len(arms(run)) == 6  # all of them, also those of the killed one
    assert {arm.info.status for arm in arms(run).values()} == {"FINISHED"}


def test_what_is_missing_is_rerun_and_branches_off_a_finished_arm(again, capfd):
    """One arm cannot be resumed, and one that others branched off is deleted."""
    folder, run_id = again
    children = arms(mlflow.get_run(run_id))
    arm = children["random", "1"]
    mlflow.MlflowClient().set_terminated(arm.info.run_id, "FAILED")
    mlflow.MlflowClient().delete_run(children["keep", "0"].info.run_id)
    artifacts = Path(arm.info.artifact_uri.removeprefix("file://"))
    checkpoint = artifacts / "checkpoints/initial.safetensors"
    content = checkpoint.read_bytes()
    checkpoint.write_bytes(content[:100])
    try:
        run, new = compare()
    finally:
        checkpoint.write_bytes(content)
    out = capfd.readouterr().out
    assert "random, seed 1: rerun: the earlier run cannot be resumed" in out
    assert out.count("already done") == 4
    assert same(folder, new)
    branched = arms(run)["keep", "0"].data.tags["weight_loss.branch_of"]
    assert branched == children["random", "0"].info.run_id


def test_an_arm_that_another_process_is_running_is_waited_for(again, capfd):
    folder, run_id = again
    arm = arms(mlflow.get_run(run_id))["keep", "0"].info.run_id
    client, locked = mlflow.MlflowClient(), threading.Event()
    client.set_terminated(arm, "RUNNING")

    def other_process():
        with run_lock(arm):
            locked.set()
            time.sleep(3)
            client.set_terminated(arm, "FINISHED")

    other = threading.Thread(target=other_process)
    other.start()
    assert locked.wait(TIMEOUT)
    _, new = compare()
    other.join()
    out = capfd.readouterr().out
    assert out.count("keep, seed 0: waiting for another process that is running it") == 1
    assert out.count("already done") == 6
    assert same(folder, new)


def test_a_report_of_another_run_is_rejected(again, capsys):
    _, run_id = again
    arm = next(iter(arms(mlflow.get_run(run_id)).values())).info.run_id
    for wrong, message in (("0" * 32, "has no run"), (arm, "it is not a comparison")):
        with pytest.raises(SystemExit):
            run_command("report", [f"--run={wrong}"])
        assert message in capsys.readouterr().err


def test_masks_shared_by_a_trunk_are_the_same_for_all_methods(store):
    run, _ = compare(masks="shared", reinits="random,lottery", seeds="0,", control="none")
    found = [load_network(arm.info.run_id) for arm in arms(run).values()]
    first, second = (network.masks for network in found)
    assert first.keys() == second.keys()
    for name, mask in first.items():
        assert torch.equal(mask, second[name])
    weights = [network.module.state_dict() for network in found]
    assert not all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_comparison_whose_arms_all_fail_fails_in_one_line(store, capsys):
    with pytest.raises(SystemExit):
        run_command("compare", command(reinits="keep", seeds="0,", lr=1e30))
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: every arm failed; keep, seed 0: the loss is nan")
    (run,) = runs("kind", "comparison")
    assert run.info.status == "FAILED"
    assert "every arm failed" in run.data.tags["error"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shown_round": 3}, "shown_round must be at most 2, the last, got 3"),
        ({"data_root": "nowhere", "dataset": "faces"}, "nowhere"),
        ({"prune_rate": 2}, "prune_rate must be less than 1, got 2"),
    ],
)
def test_a_user_error_is_one_line_and_no_run(changes, message, store, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(store / "cache"))  # where faces would be prepared
    with pytest.raises(SystemExit) as stop:
        run_command("compare", command(**changes))
    assert stop.value.code == 2
    *_, error = capsys.readouterr().err.splitlines()
    assert error.startswith("error: ")
    assert message in error
    assert not runs("kind", "comparison")


def test_a_comparison_reuses_what_the_main_command_has_run(store, monkeypatch, capsys):
    """Both compute LeNet with one thread, so that one seed gives the same bytes."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        alone = run_experiment(config_from(QUICK | {"reinit": "keep"}))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert mlflow.get_run(alone).data.tags["weight_loss.threads"] == "1"
    compare(reinits="keep", seeds="0,")
    assert "keep, seed 0: already done (1 of 1)" in capsys.readouterr().out
