"""Searches that end early: killed, interrupted, failing, or with invalid parameters."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing

import mlflow
import pytest
from optuna.trial import TrialState

from experiments.__main__ import run_command
from experiments.tuning.storage import is_lost
from tests.comparing import two_at_once
from tests.conftest import ROOT, TIMEOUT, working_in
from tests.test_tune import NAME, command, one_thread, runs, trials, tune

assert one_thread  # a fixture

# Trials of about a second, so that there is time to interrupt one.
LONG = {
    "trials": 3,
    "retrain_epochs": 120,
    "search": "prune_rate=0.4..0.6,retrain_epochs=120..150",
}


def begin(**changes):
    """Start a search in its own process group."""
    return subprocess.Popen(
        [sys.executable, "-m", "experiments", "tune", *command(**changes)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def stop(process, number):
    """Send a signal to all processes, as a terminal does, during trial 1; the errors printed."""
    while not is_training(1):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    os.killpg(process.pid, number)
    return process.communicate(timeout=TIMEOUT)[1]


def is_training(number):
    """Whether a trial has a run, which it gets just before it trains."""
    query = """SELECT 1 FROM trials JOIN trial_user_attributes USING (trial_id)
               WHERE number = ? AND key = 'mlflow_run_id'"""
    try:
        with closing(sqlite3.connect("file:optuna.db?mode=ro", uri=True)) as storage:
            return storage.execute(query, (number,)).fetchone() is not None
    except sqlite3.OperationalError:  # does not exist yet
        return False


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, empty_store):
    """The trials of the search that the next tests interrupt, if it is not interrupted."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    with working_in(folder, empty_store):
        run_command("tune", command(**LONG))
        return trials()


def in_place(these):
    """Parameters and results of the trials that were not lost, in the order of their first try."""
    whole = [each for each in these if not is_lost(each)]
    whole.sort(key=lambda each: each.system_attrs.get("failed_trial", each.number))
    return [(each.params, each.values) for each in whole]


def test_a_killed_search_continues_with_the_same_results(uninterrupted, store):
    stop(begin(**LONG), signal.SIGKILL)
    assert [trial.state for trial in trials()][:2] == [TrialState.COMPLETE, TrialState.RUNNING]
    (killed,) = runs("kind", "search")
    run, _ = tune(**LONG)
    after = trials()
    assert [is_lost(trial) for trial in after] == [False, True, False, False]
    whole = [trial for trial in after if not is_lost(trial)]
    assert [trial.state for trial in whole] == [TrialState.COMPLETE] * 3
    assert in_place(after) == in_place(uninterrupted)
    states = [each.data.tags["trial_state"] for each in runs("kind", "trial")]
    assert sorted(states) == ["complete"] * 3 + ["lost"]
    everything = mlflow.search_runs(search_all_experiments=True, output_format="list")
    running = [each for each in everything if each.info.status == "RUNNING"]
    assert not running
    assert mlflow.get_run(killed.info.run_id).info.status == "KILLED"
    assert run.info.status == "FINISHED"


def test_an_interrupted_search_enqueues_its_trial_again_and_can_continue(uninterrupted, store):
    process = begin(**LONG, executor="processes", workers=1)
    errors = stop(process, signal.SIGINT)
    assert process.returncode == 128 + signal.SIGINT
    assert errors.splitlines()[-1] == "stopped; the same command continues from here"
    assert "Traceback" not in errors
    after = trials()
    assert [is_lost(trial) for trial in after] == [False, True, False, False]
    assert [trial.state.name for trial in after[2:]] == ["WAITING"] * 2
    back = after[-1]
    assert back.params == after[1].params == uninterrupted[1].params
    assert back.system_attrs["retry_history"] == []  # so it may be interrupted again
    states = [run.data.tags["trial_state"] for run in runs("kind", "trial")]
    assert sorted(states) == ["complete", "lost"]
    everything = mlflow.search_runs(search_all_experiments=True, output_format="list")
    statuses = [run.info.status for run in everything]
    assert sorted(statuses) == ["FINISHED", "KILLED", "KILLED", "KILLED"]
    tune(**LONG)
    assert in_place(trials()) == in_place(uninterrupted)


def test_ten_failures_in_a_row_end_a_search(store, capsys):
    with pytest.raises(SystemExit) as ended:
        run_command("tune", command(trials=12, lr=1e30))
    assert ended.value.code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(
        f"error: the last 10 trials of {NAME}lottery failed, the latest with: the loss is nan"
    )
    assert [trial.state.name for trial in trials()] == ["FAIL"] * 10 + ["WAITING"] * 2
    (run,) = runs("kind", "search")
    assert run.info.status == "FAILED"
    assert "the latest with: the loss is nan" in run.data.tags["error"]


def test_a_search_without_a_complete_trial_recommends_nothing(store, capsys):
    with pytest.raises(SystemExit):
        run_command("tune", command(trials=1, lr=1e30))
    error = capsys.readouterr().err.splitlines()[-1]
    assert error == (f"error: no trial of {NAME}lottery is complete, so none can be recommended")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"storage": "sqlite:///mlflow.db"},
            "belongs to MLflow: give Optuna",
        ),
        ({"storage": "sqlite:///nowhere/optuna.db"}, "storage: the folder "),
        ({"search": "prune_rat=0.1..0.2"}, "prune_rat"),
        ({"data_root": "nowhere", "dataset": "faces"}, "nowhere"),
        ({"trials": 0}, "trials must be greater than 0, got 0"),
        ({"storage": "optuna.db"}, "storage must be a URL such as sqlite:///optuna.db or "),
        ({"storage": "sqlite://"}, "storage must be a file or a server, not in memory"),
        ({"reinit": "lotery"}, "reinit must be all, or a list of different methods of "),
        ({"search": "lr=3..1"}, "search: the low end of lr must be below its high end, got 3..1"),
        ({"prune_rate": 0.0001}, "prune_rate is too small: round 1 would remove no weight"),
    ],
)
def test_an_invalid_parameter_is_one_line_and_leaves_no_run(
    changes, message, store, monkeypatch, capsys
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(store / "cache"))  # where faces would be prepared
    before = (store / "mlflow.db").read_bytes()
    with pytest.raises(SystemExit) as ended:
        run_command("tune", command(**changes))
    assert ended.value.code == 2
    *_, error = capsys.readouterr().err.splitlines()
    assert error.startswith("error: ")
    assert message in error
    assert (store / "mlflow.db").read_bytes() == before


def test_a_tracking_server_that_does_not_answer_is_an_error_of_one_line(store, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(SystemExit) as ended:
        run_command("tune", command(patience=0.5))
    assert ended.value.code == 2
    out, err = capsys.readouterr()
    assert "the tracking server does not answer (" in out
    assert "waiting up to 0.5 s" in out
    error = err.splitlines()[-1]
    assert error.startswith("error: the tracking server does not answer, even after 0.5 s")
    assert error.endswith("the same command continues from here")
    assert not (store / "optuna.db").exists()


def test_two_searches_at_once_confirm_nothing_twice(store, tmp_path):
    words = command(executor="processes", workers=2, confirm_seeds=2, trials=2)
    assert "failed" not in two_at_once(tmp_path, "tune", words)
    everything = mlflow.search_runs(search_all_experiments=True, output_format="list")
    assert {each.info.status for each in everything} == {"FINISHED"}
    prints = [each.data.tags.get("weight_loss.fingerprint") for each in everything]
    confirmed = [tag for tag in prints if tag]
    assert len(confirmed) in (2, 4)  # two seeds of the default, and of another setting if found
    assert len(set(confirmed)) == len(confirmed)
    assert len([each for each in everything if " trial " in each.info.run_name]) == 2
