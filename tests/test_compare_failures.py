"""Comparisons in which something fails: a worker that dies, every arm, or what was asked for."""

import os
import signal
import time
from pathlib import Path

import mlflow
import pytest

from experiments.__main__ import run_command
from experiments.config.experiment import config_from
from experiments.processes.pool import open_pool
from experiments.run import run_experiment
from tests.conftest import QUICK
from tests.test_compare import command, one_thread, runs

assert one_thread  # a fixture


def test_a_dead_worker_costs_its_experiment_and_no_other(store):
    outcomes, lines = {}, []
    mlflow.set_experiment("weight-loss")
    parent = mlflow.start_run().info.run_id
    mlflow.end_run()
    long = config_from(QUICK | {"rounds": 40, "prune_rate": 0.01})
    with open_pool(1) as workers:
        workers.start("a", run_experiment, long, parent)
        while not any(line.startswith("a: round  1/") for line in lines):
            workers.pass_on(lines.append)
            time.sleep(0.05)
        (worker,) = children("spawn_main")
        os.kill(worker, signal.SIGKILL)
        outcomes |= workers.wait(lines.append)
        workers.start("b", run_experiment, config_from(QUICK), parent)
        outcomes |= workers.wait(lines.append)
    assert outcomes["a"].run_id is None
    assert outcomes["a"].reason.startswith("its process died")
    assert outcomes["a"].died
    assert mlflow.get_run(outcomes["b"].run_id).info.status == "FINISHED"
    assert not children("spawn_main")


def children(word):
    """Processes of ours whose command line has a word in it."""
    pids = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    lines = {int(pid): Path(f"/proc/{pid}/cmdline").read_bytes().decode() for pid in pids}
    return [pid for pid, line in lines.items() if word in line]


def test_a_comparison_of_which_nothing_succeeds_fails_in_one_line(store, capsys):
    with pytest.raises(SystemExit):
        run_command("compare", command(reinits="keep", seeds="0,", lr=1e30))
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith("error: every arm failed; keep, seed 0: the loss is nan")
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
def test_a_mistake_is_one_line_and_no_run(changes, message, store, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(store / "cache"))  # where faces would be prepared
    with pytest.raises(SystemExit) as stop:
        run_command("compare", command(**changes))
    assert stop.value.code == 2
    *_, told = capsys.readouterr().err.splitlines()
    assert told.startswith("error: ")
    assert message in told
    assert not runs("kind", "comparison")
