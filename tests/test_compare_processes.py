"""Comparisons in processes: killed at their start, stopped, and two at once."""

import os
import signal
import subprocess
import threading
import time

import mlflow
import pytest

from experiments.__main__ import run_command
from experiments.tracking.session import close_killed_runs, tracked_run
from tests.comparing import command, compare, other_processes, runs, started, statuses, two_at_once
from tests.conftest import TIMEOUT, sent_when, wait_until


def test_a_run_whose_process_died_before_it_locked_it_is_marked(store):
    with tracked_run("killed", tags={"kind": "comparison"}) as killed:
        pass
    client = mlflow.MlflowClient()
    client.set_terminated(killed, "RUNNING")
    for tag in ("lock", "heartbeat"):
        client.delete_tag(killed, f"weight_loss.{tag}")
    client.set_tag(killed, "weight_loss.pid", "999999999")
    with tracked_run("next", tags={"kind": "comparison"}) as run_id:
        close_killed_runs(run_id, "tags.kind = 'comparison'")
        assert mlflow.get_run(run_id).info.status == "RUNNING"
    assert mlflow.get_run(killed).info.status == "KILLED"


@pytest.mark.parametrize("delay", [0.0, 0.3, 1.0])
def test_a_comparison_killed_at_its_start_leaves_nothing_running(store, delay):
    words = command(executor="processes", workers=1)
    process = started(words, stdout=subprocess.DEVNULL)
    wait_until(statuses)
    time.sleep(delay)
    process.kill()
    process.wait(timeout=TIMEOUT)
    wait_until(lambda: not other_processes())
    assert "RUNNING" in statuses()
    compare()
    assert "RUNNING" not in statuses()


def test_a_run_that_could_not_be_marked_is_marked_at_the_end(store):
    """A tracking server that did not answer has a run of a process that has ended."""
    made = []

    def leave_a_run():
        wait_until(lambda: runs("kind", "comparison"))
        parent = runs("kind", "comparison")[0].info
        dead = {"host": os.uname().nodename, "pid": "999999999"}
        tags = {"mlflow.parentRunId": parent.run_id} | dead
        made.append(mlflow.MlflowClient().create_run(parent.experiment_id, tags=tags))

    thread = threading.Thread(target=leave_a_run)
    thread.start()
    compare(reinits="keep", seeds=1)
    thread.join()
    assert mlflow.get_run(made[0].info.run_id).info.status == "FAILED"


def test_sigterm_stops_a_comparison_and_marks_its_runs(store, capfd):
    with (
        pytest.raises(SystemExit) as stop,
        sent_when(signal.SIGTERM, lambda: "FINISHED" in statuses()),
    ):
        run_command("compare", command())
    assert stop.value.code == 128 + signal.SIGTERM
    assert "stopped; the same command continues from here" in capfd.readouterr().err
    (killed,) = runs("kind", "comparison")
    assert killed.info.status == "KILLED"
    assert "RUNNING" not in statuses()


@pytest.mark.parametrize("machines", [1, 2])
def test_two_comparisons_at_once_do_nothing_twice(store, machines, tmp_path):
    """On one machine, locks in the temporary folder keep them apart; on two, the store does."""
    words = command(executor="processes", workers=2)
    assert "failed" not in two_at_once(tmp_path, "compare", words, machines)
    finished = mlflow.search_runs(search_all_experiments=True, output_format="list")
    assert {run.info.status for run in finished} == {"FINISHED"}
    prints = [run.data.tags.get("weight_loss.fingerprint") for run in finished]
    assert prints.count(None) == 2  # the comparisons
    assert len(prints) == 2 + 6
    assert len(set(prints)) == 1 + 6


def test_two_comparisons_that_continue_the_same_arms_do_nothing_twice(store, tmp_path):
    words = command(executor="processes", workers=2)
    process = started(words, stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if "round 0/" in line:
            process.send_signal(signal.SIGTERM)
            break
    process.communicate(timeout=TIMEOUT)
    parent = runs("kind", "comparison")[0].info.run_id
    stopped = [
        run.info.run_id
        for run in runs("mlflow.parentRunId", parent)
        if "weight_loss.fingerprint" in run.data.tags  # others had not begun
    ]
    assert stopped
    assert "failed" not in two_at_once(tmp_path, "compare", words)
    found = mlflow.search_runs(search_all_experiments=True, output_format="list")
    assert "RUNNING" not in {run.info.status for run in found}
    prints = [run.data.tags.get("weight_loss.fingerprint") for run in found]
    assert len(set(prints)) == 1 + 6
    done = [tag for tag in prints if tag]
    assert len(done) == 6
    assert {*stopped} <= {run.info.run_id for run in found if run.info.status == "FINISHED"}
