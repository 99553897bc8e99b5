"""Real servers: a tracking server that stops and comes back, and a model that answers."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from contextlib import closing, contextmanager
from pathlib import Path

import mlflow
import numpy as np
import pytest
from mlflow.exceptions import MlflowException

from experiments.config.experiment import config_from
from experiments.run import run_experiment
from experiments.tracking.session import tracked_run
from tests.chaos.servers import Proxy, tracking_server
from tests.conftest import QUICK, ROOT, TIMEOUT, command, wait_until
from tests.postgres import free_port

pytestmark = pytest.mark.servers
BIN = Path(sys.executable).parent
ENV = {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "PYTHONUNBUFFERED": "1"}


@contextmanager
def serving(argv, address, folder):
    """A server of its own process group, once it answers."""
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(
            argv, cwd=folder, env=os.environ | ENV, stdout=log, stderr=log, start_new_session=True
        )
        try:
            wait_for(address, process)
            yield process
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait_for(address, process):
    give_up = time.monotonic() + TIMEOUT
    while time.monotonic() < give_up:
        assert process.poll() is None, "the server died"
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.3)
    raise AssertionError(f"{address} does not answer")


def test_a_run_outlives_a_lost_tracking_server(store, monkeypatch):
    """The run fails in one line when its server stops, and is resumed when the server is back."""
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    server = [
        *("mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
        *("--backend-store-uri", f"sqlite:///{store}/mlflow.db", "--artifacts-destination", "art"),
    ]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    env = os.environ | ENV | {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}
    run = [sys.executable, "-m", "experiments", "run"]
    with serving(server, f"{address}/health", store) as process:
        client = subprocess.Popen(
            [*run, *command(rounds=5, retrain_epochs=40)],
            cwd=ROOT,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for line in client.stdout:
            if line.startswith("round 1/"):
                os.killpg(process.pid, signal.SIGKILL)
                break
        rest, errors = client.communicate(timeout=TIMEOUT)
    assert client.returncode == 2, errors
    assert "Traceback" not in errors
    assert errors.splitlines()[-1].startswith("error: ")
    run_id = rest.partition("--resume=")[2][:32]
    with serving(server, f"{address}/health", store):
        done = subprocess.run(
            [*run, f"--resume={run_id}"], cwd=ROOT, env=env, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        resumed = mlflow.get_run(run_id)
        assert resumed.info.status == "FINISHED"
        assert resumed.data.metrics["sparsity"] == pytest.approx(1 - 0.8**5, abs=1e-3)


@pytest.fixture
def proxy(tmp_path, monkeypatch):
    """Stands between this process and a tracking server."""
    proxy = Proxy(free_port())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{proxy.port}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "6")
    with tracking_server(tmp_path, proxy.target):
        # So that a run's first request is the one that creates it.
        monkeypatch.setattr("mlflow.tracking.fluent._active_experiment_id", "0")
        yield proxy
    proxy.close()


def runs_of(tmp_path):
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as database:
        return [*database.execute("SELECT run_uuid, status, lifecycle_stage FROM runs")]


def test_a_run_whose_first_answer_is_lost_is_there_once(proxy, tmp_path):
    def get_well():
        wait_until(lambda: len(runs_of(tmp_path)) > 1)  # so the first answer has been lost
        proxy.change("")

    proxy.change("loses answers")
    threading.Thread(target=get_well, daemon=True).start()
    with tracked_run("run") as run_id:
        found = runs_of(tmp_path)
        assert len(found) > 1
        assert [each for each in found if each[2] == "active"] == [(run_id, "RUNNING", "active")]


def test_runs_that_start_in_the_same_millisecond_are_no_copies(proxy, tmp_path, monkeypatch):
    clock = "mlflow.tracking._tracking_service.client.get_current_time_millis"
    monkeypatch.setattr(clock, lambda: 1)
    for name in ("one", "another"):
        with tracked_run(name):
            pass
    assert [each[1:] for each in runs_of(tmp_path)] == [("FINISHED", "active")] * 2


def test_an_answer_that_is_cut_off_is_an_error(proxy):
    """MLflow would take it for an empty one, and create the run in its default experiment."""
    proxy.change("cuts answers")
    for call in (mlflow.search_runs, mlflow.start_run):
        with pytest.raises(MlflowException, match=r"the answer to /api/2\.0/\S+ is empty"):
            call()


def test_the_logged_model_can_be_served(store):
    run = mlflow.get_run(run_experiment(config_from(QUICK)))
    (logged,) = mlflow.search_logged_models([run.info.experiment_id], output_format="list")
    address = f"http://127.0.0.1:{free_port()}"
    argv = ["mlflow", "models", "serve", "-m", logged.model_uri, "--env-manager", "local"]
    pixels = np.concatenate([mlflow.pyfunc.load_model(logged.model_uri).input_example] * 2)[:3]
    with serving([*argv, "--port", address.rpartition(":")[2]], f"{address}/ping", store):
        request = urllib.request.Request(
            f"{address}/invocations",
            data=json.dumps({"inputs": pixels.tolist()}).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
            answer = np.array(json.load(response)["predictions"])
        request.data = json.dumps({"inputs": (np.nan * pixels).tolist()}).encode()
        with pytest.raises(urllib.error.HTTPError, match=r"^HTTP Error (400|500)") as refused:
            urllib.request.urlopen(request, timeout=TIMEOUT)
        assert "pixels must be finite" in refused.value.read().decode()
    expected = mlflow.pyfunc.load_model(logged.model_uri).predict(pixels)
    assert answer.shape == (3, 10)
    assert np.allclose(answer, expected, atol=1e-5)
