"""Comparisons from the command: real processes, killed and started again, and a real MLflow."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import mlflow
import pandas as pd
import pytest

from experiments.__main__ import run_command
from tests.conftest import QUICK, ROOT, TIMEOUT, working_in

SMALL = QUICK | {"reinits": "keep,random,lottery", "seeds": 2}
TABLES = ("comparison", "summary", "differences", "tickets", "epochs")


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def command(**changes):
    return [f"--{name}={value}" for name, value in (SMALL | changes).items()]


def compare(**changes):
    """The run of a comparison, and the folder of its report."""
    run_command("compare", command(**changes))
    run = runs("kind", "comparison")[0]
    return run, Path("reports", run.info.run_id)


def runs(tag, value):
    return mlflow.search_runs(
        search_all_experiments=True,
        filter_string=f"tags.{tag} = '{value}'",
        output_format="list",
    )


def arms(run):
    children = runs("mlflow.parentRunId", run.info.run_id)
    return {(arm.data.tags["method"], arm.data.params["seed"]): arm for arm in children}


def without_ids(page):
    """A page without what differs between two equal comparisons."""
    return re.sub(r'<(a|span) class="volatile"[^>]*>[^<]*</\1>', "", page)


def numbers(folder):
    """The tables of a report, without ids and times."""
    tables = {name: pd.read_csv(folder / f"{name}.csv") for name in TABLES}
    apart = ["run_id", "round_seconds", "train_seconds"]
    return {name: table.drop(columns=apart, errors="ignore") for name, table in tables.items()}


def same(one, two):
    for name, table in numbers(one).items():
        pd.testing.assert_frame_equal(table, numbers(two)[name])
    first, second = ((folder / "report.html").read_text() for folder in (one, two))
    return without_ids(first) == without_ids(second)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, empty_store):
    """A comparison that nothing went wrong with: its folder to work in, and its run's id."""
    folder = tmp_path_factory.mktemp("whole")
    with working_in(folder, empty_store):
        run, _ = compare()
    return folder, run.info.run_id


@pytest.fixture
def again(whole, tmp_path, monkeypatch):
    """The same, to be continued: artifacts stay where the database says."""
    folder, run_id = whole
    shutil.copy(folder / "mlflow.db", tmp_path / "mlflow.db")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
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
    assert len(dense) <= 2  # one dense network a seed
    branches = {arm.data.params["branch_of"] for arm in children.values()}
    leaders = {children["keep", seed].info.run_id for seed in "01"}
    assert branches == {"none", *leaders}
    summary = pd.read_csv(folder / "summary.csv")
    key = "test_accuracy_mean/lottery"
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


def test_everything_on_disk_is_in_the_run_too(again):
    folder, run_id = again
    logged = Path(mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path=""))
    for path in folder.rglob("*.*"):
        assert (logged / path.relative_to(folder)).read_bytes() == path.read_bytes()
    names = {path.name for path in (folder / "plots").iterdir()}
    assert {"accuracy.png", "accuracy.svg", "epochs.png", "overlap.svg", "pixels.png"} <= names


def test_the_same_comparison_again_trains_nothing_and_says_the_same(again, capfd):
    folder, run_id = again
    before = {run.info.run_id for run in runs("reinit", "keep")}
    run, new = compare()
    assert run.info.run_id != run_id
    assert capfd.readouterr().out.count("done before") == 6
    assert {run.info.run_id for run in runs("reinit", "keep")} == before
    assert same(folder, new)
    assert len(arms(mlflow.get_run(run_id))) == 6  # they stay with the finished comparison


def test_a_larger_comparison_adds_only_what_is_missing(again, capfd):
    run, new = compare(seeds=3, reinits="keep,random,lottery,sign")
    out = capfd.readouterr().out
    assert out.count("done before") == 6
    assert len(arms(run)) == 4 * 3 - 6
    table = pd.read_csv(new / "comparison.csv")
    assert table.groupby("method")["seed"].nunique().to_dict() == dict.fromkeys(
        ("keep", "random", "lottery", "sign"), 3
    )


def test_other_code_or_data_are_not_taken_for_the_same(again, capfd):
    compare(train_limit=299, seeds="0,", reinits="keep")
    assert "done before" not in capfd.readouterr().out


def test_a_report_is_made_anew_from_the_tracking_store_alone(again, tmp_path):
    folder, run_id = again
    run_command("report", [f"--run={run_id}", "--out=elsewhere"])
    assert same(folder, tmp_path / "elsewhere")
    whole_page = (folder / "report.html").read_text()
    assert (tmp_path / "elsewhere/report.html").read_text() == whole_page  # its ids, too


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_comparison_that_was_killed_goes_on_where_it_was(whole, number, store, capfd):
    folder = whole[0] / "reports" / whole[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "experiments", "compare", *command()],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    for line in process.stdout:
        if "done (2 of 6)" in line:
            process.send_signal(number)
            break
    process.wait(timeout=TIMEOUT)
    process.stdout.close()
    wait_until(lambda: not alive_arms())
    (killed,) = runs("kind", "comparison")
    assert killed.info.status == ("RUNNING" if number == signal.SIGKILL else "KILLED")
    run, new = compare()
    out = capfd.readouterr().out
    assert out.count("done before") >= 2
    assert same(folder, new)
    assert mlflow.get_run(killed.info.run_id).info.status == "KILLED"
    assert len(arms(run)) == 6  # taken over from the one that was killed
    assert {arm.info.status for arm in arms(run).values()} == {"FINISHED"}


def wait_until(condition):
    give_up = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.2)


def alive_arms():
    """Processes that still work for a comparison."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/environ"):
        try:
            if str(Path.cwd() / "mlflow.db").encode() in entry.read_bytes():
                found.append(entry.parent.name)
        except OSError:
            continue
    return [pid for pid in found if int(pid) != os.getpid()]


def test_an_arm_that_cannot_be_resumed_is_done_anew(again, capfd):
    folder, run_id = again
    arm = arms(mlflow.get_run(run_id))["random", "1"]
    mlflow.MlflowClient().set_terminated(arm.info.run_id, "FAILED")
    artifacts = Path(arm.info.artifact_uri.removeprefix("file://"))
    checkpoint = artifacts / "checkpoints/initial.safetensors"
    content = checkpoint.read_bytes()
    checkpoint.write_bytes(content[:100])
    try:
        _, new = compare()
    finally:
        checkpoint.write_bytes(content)
    out = capfd.readouterr().out
    assert "random, seed 1: done anew, since an earlier run is of no use" in out
    assert out.count("done before") == 5
    assert same(folder, new)


def test_a_finished_arm_leads_and_its_dense_network_is_taken(store, capfd):
    _, first = compare(reinits="lottery", seeds="0,")
    (lottery,) = pd.read_csv(first / "comparison.csv")["run_id"].unique()
    run, _ = compare(reinits="keep,lottery", seeds="0,")
    assert arms(run)["keep", "0"].data.params["branch_of"] == lottery


def test_an_experiment_that_another_process_works_on_is_waited_for(again, capfd):
    folder, run_id = again
    arm = arms(mlflow.get_run(run_id))["keep", "0"]
    client = mlflow.MlflowClient()
    client.set_terminated(arm.info.run_id, "RUNNING")
    code = f"""
import time
from experiments.processes.locks import run_lock
with run_lock("{arm.info.run_id}"):
    print("held", flush=True)
    time.sleep(8)
    import mlflow
    mlflow.MlflowClient().set_terminated("{arm.info.run_id}", "FINISHED")
"""
    other = subprocess.Popen(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert other.stdout.readline() == "held\n"
    _, new = compare()
    assert other.wait(timeout=TIMEOUT) == 0
    other.stdout.close()
    out = capfd.readouterr().out
    assert "keep, seed 0: another process is at work on it; waiting for that" in out
    assert out.count("done before") == 6
    assert same(folder, new)


def test_a_report_of_what_is_no_comparison_is_refused(again, capsys):
    _, run_id = again
    arm = next(iter(arms(mlflow.get_run(run_id)).values())).info.run_id
    for wrong, message in (("0" * 32, "has no run"), (arm, "it is no comparison")):
        with pytest.raises(SystemExit):
            run_command("report", [f"--run={wrong}"])
        assert message in capsys.readouterr().err


def test_masks_shared_by_a_trunk_are_the_same_for_all_methods(store):
    _, new = compare(masks="shared", reinits="random,lottery", seeds="0,", control="none")
    overlap = pd.read_csv(new / "comparison.csv")
    sizes = overlap.pivot_table(index="round", columns="method", values="remaining_weights")
    assert (sizes["random"] == sizes["lottery"]).all()
