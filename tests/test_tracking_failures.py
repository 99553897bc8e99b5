"""Runs that fail or warn: what is printed, and what MLflow then holds."""

import re
import subprocess
import sys
from pathlib import Path
from shutil import which

import mlflow
import pytest

from experiments.__main__ import run_command
from tests.conftest import TIMEOUT, command


def test_emptied_layers_are_a_warning(store, capsys):
    run_command("run", command(rounds=1, output_prune_rate=0.9999))
    warning = "WARNING: no weights are left in fc3, so the output there is constant\n"
    assert capsys.readouterr().out.count(warning) == 1


def test_a_failing_run_is_marked_with_the_reason(store, capsys):
    with pytest.raises(SystemExit) as caught:
        run_command("run", command(lr="1e30"))
    assert caught.value.code == 2
    (run,) = mlflow.search_runs(search_all_experiments=True, output_format="list")
    assert run.info.status == "FAILED"
    assert re.fullmatch(
        r"the loss is \w+ in epoch 1, .* lower lr, got 1e\+30", run.data.tags["error"]
    )
    assert capsys.readouterr().err.endswith(f"error: {run.data.tags['error']}\n")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prune_rate": "1.5"}, "error: prune_rate must be less than 1, got 1.5"),
        ({"dataset": "mnist"}, "error: MNIST is not in"),
        ({"rounds": "0", "prune_rate": "1e-9"}, "error: prune_rate is too small"),
        (
            {"prune_rate": "0.9999"},
            "error: prune_rate is too large: no weight would survive round 1",
        ),
        ({"resume": "0" * 32}, "error: resume: sqlite:"),
        ({"train_limit": "99999"}, "error: train_limit must be at most 1412 for digits"),
    ],
)
def test_an_invalid_parameter_opens_no_run(store, capsys, changes, message):
    with pytest.raises(SystemExit) as caught:
        run_command("run", command(**changes))
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(message)
    assert error.count("\n") == 1
    assert mlflow.search_runs(search_all_experiments=True, output_format="list") == []


def test_a_run_that_the_user_opened_stays_when_a_parameter_is_invalid(store, monkeypatch, capsys):
    mlflow.set_experiment("x")
    opened = mlflow.MlflowClient().create_run(mlflow.get_experiment_by_name("x").experiment_id)
    monkeypatch.setenv("MLFLOW_RUN_ID", opened.info.run_id)
    with pytest.raises(SystemExit):
        run_command("run", command(epochs="0"))
    run = mlflow.get_run(opened.info.run_id)
    assert (run.info.status, run.info.lifecycle_stage) == ("RUNNING", "active")
    assert "error: epochs must be greater than 0, got 0" in capsys.readouterr().err


def test_an_unreachable_server_is_one_line(store, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:9")
    with pytest.raises(SystemExit) as stop:
        run_command("run", command())
    assert stop.value.code == 2
    errors = capsys.readouterr().err
    assert "secret" not in errors
    assert errors.splitlines()[-1] == (
        "error: the tracking server http://127.0.0.1:9 does not answer (Connection refused): "
        "start it, or set MLFLOW_TRACKING_URI to another"
    )
    assert "Traceback" not in errors


FILL_DISK = """
import shutil, sys, tempfile
from pathlib import Path
from experiments.__main__ import run_command
from experiments.tracking.log import Run

def fill_disk(run, finish=Run.finish):
    folder = Path(tempfile.gettempdir())
    (folder / "other").write_bytes(bytes(shutil.disk_usage(folder).free - 150_000))
    finish(run)

Run.finish = fill_disk
run_command("run", sys.argv[1:])
"""


def test_a_disk_too_full_for_the_model_is_one_line_and_the_run_can_be_resumed(store):
    """PyTorch's writer raises a RuntimeError and then aborts the process."""
    alone = ["unshare", "--mount", "--map-root-user"]  # its file systems end with the process
    if not which("unshare") or subprocess.run([*alone, "true"], capture_output=True).returncode:
        pytest.skip("needs a process with file systems of its own, as on Linux")
    Path("small").mkdir()
    script = 'mount -t tmpfs -o size=2m tmpfs small && TMPDIR=small exec "$@"'
    asked = command(model="lenet_300_100", epochs=1, retrain_epochs=1, rounds=1)
    done = subprocess.run(
        [*alone, "sh", "-c", script, "sh", sys.executable, "-c", FILL_DISK, *asked],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert done.returncode == 2, done.stderr
    line = done.stderr.splitlines()[-1]
    assert line.startswith("error: the disk is full, nothing can be written to ")
    assert "Traceback" not in done.stderr
    (run,) = mlflow.search_runs(search_all_experiments=True, output_format="list")
    assert run.info.status == "FAILED"
    run_command("run", [f"--resume={run.info.run_id}"])
    assert mlflow.get_run(run.info.run_id).info.status == "FINISHED"
