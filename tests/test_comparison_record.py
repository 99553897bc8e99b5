import os
import signal
import subprocess
import sys

import mlflow
import pytest

from experiments.comparison import record as comparisons
from experiments.tracking.server import without_login
from experiments.tracking.session import PARENT, close_dead_runs, tracked_run
from tests.conftest import ROOT


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("http://user:secret@host:5000/", "http://host:5000"),
        ("https://host/mlflow", "https://host/mlflow"),
    ],
)
def test_a_page_holds_no_password(uri, shown):
    assert without_login(uri) == shown


def nested(parent, then):
    """A run in a process of its own, nested under `parent`, that then does something."""
    code = f"""
import os, signal, time
from experiments.tracking.session import tracked_run
with tracked_run("child", parent="{parent}") as run_id:
    print(run_id, flush=True)
    {then}
"""
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )


def test_a_run_whose_process_died_is_marked_and_one_at_work_is_not(store):
    with tracked_run("parent") as parent:
        dead, alive = (nested(parent, "time.sleep(60)") for _ in range(2))
        ids = [process.stdout.readline().strip() for process in (dead, alive)]
        os.kill(dead.pid, signal.SIGKILL)
        dead.wait()
        close_dead_runs(parent, "its process died")
        states = [mlflow.get_run(run_id).info.status for run_id in ids]
        alive.terminate()
        alive.wait()
        for process in (dead, alive):
            process.stdout.close()
    assert states == ["FAILED", "RUNNING"]
    assert mlflow.get_run(ids[0]).data.tags["error"] == "its process died"


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
