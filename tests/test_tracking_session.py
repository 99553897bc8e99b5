"""Runs that a process works on, and runs whose process has died."""

import os
import time

import mlflow
import pytest
from mlflow import MlflowClient
from sqlalchemy import create_engine, text

from experiments.processes.locks import lock_name, run_lock
from experiments.processes.signals import Interrupted
from experiments.tracking.session import (
    PARENT,
    claim_run,
    close_dead_runs,
    close_killed_runs,
    dead_runs,
    describe,
    tracked_run,
)


def begin(parent, **tags):
    """A run nested under another, RUNNING, with these tags."""
    client = mlflow.MlflowClient()
    experiment = client.get_run(parent).info.experiment_id
    return client.create_run(experiment, tags={PARENT: parent} | tags).info.run_id


@pytest.fixture
def parent(store):
    with tracked_run("parent") as run_id:
        yield run_id


def test_runs_whose_process_has_died_are_found_and_marked(parent):
    dead_pid, here = "999999999", os.uname().nodename
    later, long_ago = str(time.time() + 1000), str(time.time() - 1000)
    alive = begin(parent, lock="elsewhere", heartbeat=later)
    starting = begin(parent, host=here, pid=str(os.getpid()))
    silent = begin(parent, lock="elsewhere", heartbeat=long_ago)
    impossible = begin(parent, lock="elsewhere", heartbeat=str(time.time() + 100_000))
    never_started = begin(parent, host=here, pid=dead_pid)
    held, released = begin(parent), begin(parent)
    for run_id in (held, released):
        mlflow.MlflowClient().set_tag(run_id, "weight_loss.lock", lock_name(run_id))
    ended = begin(parent, lock="elsewhere", heartbeat=long_ago)
    mlflow.MlflowClient().set_terminated(ended, "FINISHED")
    experiment = mlflow.get_run(parent).info.experiment_id
    with run_lock(held):
        found = {run.info.run_id for run in dead_runs(experiment, f"tags.`{PARENT}` = '{parent}'")}
        assert found == {silent, impossible, never_started, released}
        close_dead_runs(parent, "its process died")
    status = {run_id: mlflow.get_run(run_id).info.status for run_id in (*found, alive, starting)}
    assert {status.pop(run_id) for run_id in found} == {"FAILED"}
    assert set(status.values()) == {"RUNNING"}
    assert mlflow.get_run(silent).data.tags["error"] == "its process died"
    assert mlflow.get_run(ended).info.status == "FINISHED"


def test_dead_runs_nested_under_one_that_has_ended_are_marked(parent):
    """As when the disk was full, and their process could not mark them."""
    ended = begin(parent)
    mlflow.MlflowClient().set_terminated(ended, "FAILED")
    here = {"weight_loss.host": os.uname().nodename, "rounds_planned": "3"}
    dead, alive = {"weight_loss.pid": "999999999"}, {"weight_loss.pid": str(os.getpid())}
    left = begin(ended, **here, **dead)
    others = [
        begin(ended, **here, **alive),
        begin(ended, **{"weight_loss.host": "elsewhere"}, **dead),
        begin(parent, **here, **dead),  # its parent marks it
        begin(ended, **{"weight_loss.host": here["weight_loss.host"]}, **dead),  # of a trial
    ]
    close_killed_runs(parent, "tags.kind = 'comparison'")
    assert mlflow.get_run(left).info.status == "FAILED"
    assert mlflow.get_run(left).data.tags["error"] == "its process died"
    assert {mlflow.get_run(run_id).info.status for run_id in others} == {"RUNNING"}


def test_a_run_is_claimed_unless_another_process_works_on_it(parent):
    run_id = begin(parent, lock="elsewhere", heartbeat=str(time.time() + 1000))
    with claim_run(run_id) as ours:
        assert not ours
    assert mlflow.get_run(run_id).info.status == "RUNNING"
    mlflow.MlflowClient().set_tag(run_id, "weight_loss.heartbeat", "0")
    with run_lock(run_id), claim_run(run_id) as ours:
        assert not ours
    with claim_run(run_id) as ours:
        assert ours
        assert mlflow.get_run(run_id).data.tags["weight_loss.lock"] == lock_name(run_id)
    assert mlflow.get_run(run_id).info.status == "FINISHED"


@pytest.mark.parametrize(
    ("error", "status", "tag"),
    [
        (ValueError("bad\nlines"), "FAILED", ("error", "bad")),
        (OSError("no http://me:secret@host/x"), "FAILED", ("error", "no http://host/x")),
        (Interrupted(15), "KILLED", ("interrupted", "SIGTERM")),
    ],
)
def test_a_run_is_marked_with_how_its_block_ended(parent, error, status, tag):
    claimed = begin(parent)
    with pytest.raises(type(error)), claim_run(claimed):
        raise error
    assert mlflow.get_run(claimed).info.status == status
    assert tag in mlflow.get_run(claimed).data.tags.items()
    with claim_run(claimed):  # the next command completes it
        pass
    assert mlflow.get_run(claimed).info.status == "FINISHED"
    assert tag[0] not in mlflow.get_run(claimed).data.tags


def test_two_processes_may_create_the_experiment_at_once(store, monkeypatch):
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "new")
    look = MlflowClient.get_experiment_by_name

    def look_before_the_other_creates_it(client, name):
        found = look(client, name)
        if not found:
            MlflowClient().create_experiment(name)
        return found

    monkeypatch.setattr(MlflowClient, "get_experiment_by_name", look_before_the_other_creates_it)
    with tracked_run("mine") as run_id:
        pass
    experiment = mlflow.get_experiment(mlflow.get_run(run_id).info.experiment_id)
    assert experiment.name == "new"


def test_a_run_interrupted_in_the_middle_of_a_write_is_marked(parent):
    claimed = begin(parent)

    def write():
        connection = create_engine(mlflow.get_tracking_uri()).connect()
        connection.execute(text("UPDATE runs SET name = 'half written'"))
        raise Interrupted(15)

    with pytest.raises(Interrupted), claim_run(claimed):
        write()
    assert mlflow.get_run(claimed).info.status == "KILLED"
    assert mlflow.get_run(claimed).info.run_name != "half written"


def test_a_long_name_fits_into_every_database(store):
    with tracked_run("n" * 300) as run_id:
        assert mlflow.get_run(run_id).info.run_name == "n" * 250


def test_params_that_are_logged_already_stay(parent):
    mlflow.log_param("lr", "0.1")
    describe(parent, {"lr": 0.2, "model": None, "shown": True}, {"kind": "test"})
    data = mlflow.get_run(parent).data
    assert data.params == {"lr": "0.1", "model": "auto", "shown": "true"}
    assert data.tags["kind"] == "test"
