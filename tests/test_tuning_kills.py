"""Random kills: whatever dies, a search ends with exactly as many trials as it should."""

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing, suppress

import mlflow
import optuna
import pytest
from optuna.trial import TrialState

from tests.conftest import QUICK, ROOT

TRIALS, KILLS, ALL_AT_ONCE = 8, 6, 3  # every third kill hits all processes
SEARCH = {
    "train_limit": 300,
    "epochs": 1,
    "trials": TRIALS,
    "workers": 2,
    "confirm_seeds": 0,
    "search": "prune_rate=0.3..0.6,retrain_epochs=40..80",
}
NAME = "weight-loss/digits/lenet_30_20/lottery"


def start():
    settings = {name: value for name, value in QUICK.items() if name not in ("rounds", "lr")}
    flags = [f"--{name}={value}" for name, value in (settings | SEARCH).items()]
    return subprocess.Popen(
        [sys.executable, "-m", "experiments", "tune", *flags],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def running():
    """The processes that run a trial now."""
    query = """SELECT value_json FROM trials JOIN trial_user_attributes USING (trial_id)
               WHERE state = 'RUNNING' AND key = 'worker'"""
    try:
        with closing(sqlite3.connect("file:optuna.db?mode=ro", uri=True)) as storage:
            return [int(json.loads(value).split()[1]) for (value,) in storage.execute(query)]
    except sqlite3.OperationalError:  # does not exist yet
        return []


@pytest.mark.slow
def test_random_kills_neither_lose_nor_duplicate_a_trial(store):
    """Workers are killed during their trials, and sometimes all processes, with kill -9."""
    chance, killed, process = random.Random(5), [], start()
    while len(killed) < KILLS:
        assert process.poll() is None, process.stderr.read()
        workers = [worker for worker in running() if worker not in killed]
        if not workers or chance.random() < 0.5:
            time.sleep(chance.random() / 2)
            continue
        killed.append(chance.choice(workers))
        if len(killed) % ALL_AT_ONCE == 0:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            process = start()
        else:
            with suppress(ProcessLookupError):
                os.kill(killed[-1], signal.SIGKILL)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors

    study = optuna.load_study(study_name=NAME, storage="sqlite:///optuna.db")
    complete = [trial for trial in study.trials if trial.state == TrialState.COMPLETE]
    lost = [trial for trial in study.trials if trial.state == TrialState.FAIL]
    assert len(complete) == TRIALS
    assert len(complete) + len(lost) == len(study.trials)  # none RUNNING, none WAITING
    assert len(lost) >= KILLS / 2  # or the kills came too late
    tried = [trial.system_attrs.get("failed_trial", trial.number) for trial in study.trials]
    assert max(tried.count(number) for number in tried if number) <= 2  # except the default
    runs = mlflow.search_runs(search_all_experiments=True, output_format="list")
    by_id = {run.info.run_id: run.info.status for run in runs}
    done = [by_id[trial.user_attrs["mlflow_run_id"]] for trial in complete]
    assert done == ["FINISHED"] * TRIALS
    (study_run,) = [run.info.run_id for run in runs if run.data.tags.get("kind") == "study"]
    of_trials = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == study_run]
    assert {run.info.status for run in of_trials} <= {"FINISHED", "FAILED"}  # none RUNNING
    assert sum(run.info.status == "FINISHED" for run in of_trials) == TRIALS
