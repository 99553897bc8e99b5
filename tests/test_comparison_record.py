import time

import mlflow
import pytest

from experiments.comparison import record as comparisons
from experiments.processes.locks import DEAD_AFTER_SECONDS, lock_name, process_tags, run_lock
from experiments.tracking.server import without_login
from experiments.tracking.session import PARENT, close_dead_runs, tracked_run


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("http://user:secret@host:5000/", "http://host:5000"),
        ("https://host/mlflow", "https://host/mlflow"),
    ],
)
def test_a_page_holds_no_password(uri, shown):
    assert without_login(uri) == shown


def test_a_run_whose_process_cannot_be_alive_is_marked_and_no_other(store):
    client = mlflow.MlflowClient()

    def nested(**tags):
        tags = {PARENT: parent} | {name: str(value) for name, value in tags.items()}
        return client.create_run(experiment, tags=tags).info.run_id

    with tracked_run("parent") as parent:
        experiment = client.get_run(parent).info.experiment_id
        dead_here, alive_here = nested(), nested()
        for run_id in (dead_here, alive_here):
            client.set_tag(run_id, "lock", lock_name(run_id))
        now = time.time()
        alive = [
            alive_here,
            nested(lock="another machine's", heartbeat=now),
            nested(**process_tags()),
            nested(host="another machine", pid=1),  # it has just been created
        ]
        dead = [
            dead_here,
            nested(lock="another machine's", heartbeat=now - DEAD_AFTER_SECONDS),
            nested(**process_tags() | {"pid": 2**22 + 1}),  # above the largest there is
        ]
        with run_lock(alive_here):
            close_dead_runs(parent, "its process died")
        runs = {run_id: client.get_run(run_id) for run_id in alive + dead}
    assert {runs[run_id].info.status for run_id in alive} == {"RUNNING"}
    assert {runs[run_id].info.status for run_id in dead} == {"FAILED"}
    assert {runs[run_id].data.tags["error"] for run_id in dead} == {"its process died"}


def adopted(kind, status, running=False):
    """Whether a child is taken over from a parent of this kind and status."""
    client = mlflow.MlflowClient()
    mlflow.set_experiment("weight-loss")
    ids = []
    for parent in (None, None, "first"):
        run = mlflow.start_run(parent_run_id=ids[0] if parent else None)
        ids.append(run.info.run_id)
        mlflow.end_run()
    former, new, child = ids
    if kind:
        client.set_tag(former, "kind", kind)
    if running:
        client.set_tag(former, "lock", "another machine's")
        client.set_tag(former, "heartbeat", str(10**12))
    client.set_terminated(former, status)
    comparisons.adopt(client.get_run(child), new)
    ended = client.get_run(former).info.status
    return client.get_run(child).data.tags[PARENT] == new, ended


def test_arms_are_taken_over_from_interrupted_comparisons_only(store):
    assert adopted("comparison", "KILLED") == (True, "KILLED")
    assert adopted("comparison", "RUNNING") == (True, "KILLED")
    assert adopted("comparison", "RUNNING", running=True) == (False, "RUNNING")
    assert adopted("comparison", "FINISHED") == (False, "FINISHED")
    assert adopted(None, "RUNNING") == (False, "RUNNING")
