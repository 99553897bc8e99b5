"""Searches that end early: killed, stopped, failing all the time, or asked for by mistake."""

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
from tests.conftest import ROOT, TIMEOUT, working_in
from tests.test_tune import NAME, command, one_thread, runs, trials, tune

assert one_thread  # a fixture

# Trials of a second, so that there is time to stop one half-way.
LONG = {
    "trials": 3,
    "retrain_epochs": 300,
    "search": "prune_rate=0.4..0.6,retrain_epochs=300..400",
}


def begin(**changes):
    """A search in a process, and a group, of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "experiments", "tune", *command(**changes)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def stop(process, number):
    """Send a signal half-way through the second trial; what was told."""
    while not is_training(1):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    if number == signal.SIGTERM:  # only to the command, as `kill` and a cluster's queue do
        process.send_signal(number)
    else:  # to all its processes, as a terminal does
        os.killpg(process.pid, number)
    return process.communicate(timeout=TIMEOUT)[1]


def is_training(number):
    """Whether the trial of a number has a run, which it gets before it trains."""
    query = """SELECT 1 FROM trials JOIN trial_user_attributes USING (trial_id)
               WHERE number = ? AND key = 'mlflow_run_id'"""
    try:
        with closing(sqlite3.connect("file:optuna.db?mode=ro", uri=True)) as storage:
            return storage.execute(query, (number,)).fetchone() is not None
    except sqlite3.OperationalError:  # it is not there yet
        return False


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, empty_store):
    """What the trials of the search that the next tests stop come to if nobody does."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with working_in(folder, empty_store):
        run_command("tune", command(**LONG))
        return trials()


def in_place(these):
    """Parameters and results of trials that were not lost, each where it was first tried."""
    whole = [each for each in these if not is_lost(each)]
    whole.sort(key=lambda each: each.system_attrs.get("failed_trial", each.number))
    return [(each.params, each.values) for each in whole]


def test_killed_and_started_again_it_is_what_it_would_have_been(undisturbed, store):
    stop(begin(**LONG), signal.SIGKILL)
    assert [trial.state for trial in trials()][:2] == [TrialState.COMPLETE, TrialState.RUNNING]
    (killed,) = runs("kind", "search")
    run, _ = tune(**LONG)
    after = trials()
    assert [is_lost(trial) for trial in after] == [False, True, False, False]
    whole = [trial for trial in after if not is_lost(trial)]
    assert [trial.state for trial in whole] == [TrialState.COMPLETE] * 3
    assert in_place(after) == in_place(undisturbed)
    states = [each.data.tags["trial_state"] for each in runs("kind", "trial")]
    assert sorted(states) == ["complete"] * 3 + ["lost"]
    everything = mlflow.search_runs(search_all_experiments=True, output_format="list")
    running = [each for each in everything if each.info.status == "RUNNING"]
    assert [each.info.run_id for each in running] in ([], [killed.info.run_id])
    assert run.info.status == "FINISHED"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopped_by_a_signal_it_says_so_gives_its_trial_back_and_can_go_on(
    undisturbed, number, store
):
    process = begin(**LONG)
    errors = stop(process, number)
    assert process.returncode == 128 + number
    assert errors.splitlines()[-1] == "stopped; the same command goes on from here"
    assert "Traceback" not in errors
    after = trials()
    assert [is_lost(trial) for trial in after] == [False, True, False, False]
    assert [trial.state.name for trial in after[2:]] == ["WAITING"] * 2
    back = after[-1]
    assert back.params == after[1].params == undisturbed[1].params
    assert back.system_attrs["retry_history"] == []  # so that it can be stopped again and again
    states = [run.data.tags["trial_state"] for run in runs("kind", "trial")]
    assert sorted(states) == ["complete", "lost"]
    everything = mlflow.search_runs(search_all_experiments=True, output_format="list")
    statuses = [run.info.status for run in everything]
    assert sorted(statuses) == ["FINISHED", "KILLED", "KILLED", "KILLED"]
    tune(**LONG)
    assert in_place(trials()) == in_place(undisturbed)


def test_ten_failures_in_a_row_end_a_search(store, capsys):
    with pytest.raises(SystemExit) as ended:
        run_command("tune", command(trials=12, lr=1e30))
    assert ended.value.code == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith(
        f"error: the last 10 trials of {NAME}lottery failed in a row, at last with: the loss is nan"
    )
    assert [trial.state.name for trial in trials()] == ["FAIL"] * 10 + ["WAITING"] * 2
    (run,) = runs("kind", "search")
    assert run.info.status == "FAILED"
    assert "failed in a row" in run.data.tags["error"]


def test_a_search_without_a_complete_trial_recommends_nothing(store, capsys):
    with pytest.raises(SystemExit):
        run_command("tune", command(trials=1, lr=1e30))
    told = capsys.readouterr().err.splitlines()[-1]
    assert told == (f"error: no trial of {NAME}lottery is complete, so nothing can be recommended")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"storage": "sqlite:///mlflow.db"}, "is MLflow's: give Optuna a database of its own"),
        ({"storage": "sqlite:///nowhere/optuna.db"}, "storage: there is no folder"),
        ({"search": "prune_rat=0.1..0.2"}, "prune_rat"),
        ({"data_root": "nowhere", "dataset": "faces"}, "nowhere"),
        ({"trials": 0}, "trials must be greater than 0, got 0"),
        ({"storage": "optuna.db"}, "storage must be an address such as sqlite:///optuna.db or "),
        ({"storage": "sqlite://"}, "storage must be a file or a server, which can be shared"),
        ({"reinit": "lotery"}, "reinit must be all, or one or several of "),
        ({"search": "lr=3..1"}, "search: lr must have a low below its high, got 3..1"),
        ({"prune_rate": 0.0001}, "prune_rate is too small: round 1 would remove no weight"),
    ],
)
def test_a_mistake_is_one_line_and_no_run(changes, message, store, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(store / "cache"))  # where faces would be prepared
    before = (store / "mlflow.db").read_bytes()
    with pytest.raises(SystemExit) as ended:
        run_command("tune", command(**changes))
    assert ended.value.code == 2
    *_, told = capsys.readouterr().err.splitlines()
    assert told.startswith("error: ")
    assert message in told
    assert (store / "mlflow.db").read_bytes() == before


def test_a_tracking_server_that_does_not_answer_is_told_in_one_line(store, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(SystemExit) as ended:
        run_command("tune", command(patience=0.5))
    assert ended.value.code == 2
    out, err = capsys.readouterr()
    assert "the tracking server does not answer (" in out
    assert "waiting for it, 0.5 s at most" in out
    told = err.splitlines()[-1]
    assert told.startswith("error: the tracking server has not answered for 0.5 s")
    assert told.endswith("the same command goes on from here")
    assert not (store / "optuna.db").exists()
