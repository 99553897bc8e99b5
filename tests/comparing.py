"""Comparisons that tests run: small ones, and what they left in MLflow."""

import os
from pathlib import Path

import mlflow

from experiments.__main__ import run_command
from tests.conftest import QUICK

SMALL = QUICK | {"reinits": "keep,random,lottery", "seeds": 2, "executor": "inline"}


def command(**changes):
    return [f"--{name}={value}" for name, value in (SMALL | changes).items()]


def compare(**changes):
    """The run of a comparison, and the folder of its report."""
    run_command("compare", command(**changes))
    run = runs("kind", "comparison")[0]
    return run, Path("reports", run.info.run_id)


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
