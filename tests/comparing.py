"""Comparisons that tests run: small ones, and what they left in MLflow."""

import os
import subprocess
import sys
from pathlib import Path

import mlflow

from experiments.__main__ import run_command
from tests.conftest import QUICK, ROOT, TIMEOUT

SMALL = QUICK | {"reinits": "keep,random,lottery", "seeds": 2, "executor": "inline"}
SMALL |= {"baselines": "none"}


def command(**changes):
    return [f"--{name}={value}" for name, value in (SMALL | changes).items()]


def compare(**changes):
    """The run of a comparison, and the folder of its report."""
    run_command("compare", command(**changes))
    run = runs("kind", "comparison")[0]
    return run, Path("reports", run.info.run_id)


def started(words, *, name="compare", folder="", **streams):
    """The process of a command; `folder` is where it has its temporary files."""
    place = {"TMPDIR": str(folder)} if folder else {}
    return subprocess.Popen(
        [sys.executable, "-m", "experiments", name, *words],
        env=os.environ | {"PYTHONPATH": str(ROOT)} | place,
        **streams,
    )


def two_at_once(tmp_path, name, words, machines=1):
    """What two equal commands print; on one machine they share a temporary folder."""
    processes = []
    for number in range(2):
        folder = tmp_path / f"machine-{number % machines}"
        folder.mkdir(exist_ok=True)
        with (tmp_path / f"log-{number}").open("w") as log:
            processes.append(started(words, name=name, folder=folder, stdout=log, stderr=log))
    logs = []
    for number, process in enumerate(processes):
        status = process.wait(timeout=TIMEOUT)
        logs.append((tmp_path / f"log-{number}").read_text())
        assert status == 0, logs[-1]
    assert not list(tmp_path.glob("machine-*/*.lock"))
    return "".join(logs)


def runs(tag, value):
    return mlflow.search_runs(
        search_all_experiments=True,
        filter_string=f"tags.{tag} = '{value}'",
        output_format="list",
    )


def statuses():
    everything = mlflow.search_runs(search_all_experiments=True, output_format="list")
    return [run.info.status for run in everything]


def other_processes():
    """Processes that still work in this folder's store."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/environ"):
        try:
            if str(Path.cwd() / "mlflow.db").encode() in entry.read_bytes():
                found.append(entry.parent.name)
        except OSError:
            continue
    return [pid for pid in found if int(pid) != os.getpid()]
