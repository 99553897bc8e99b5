"""Executors: the same contract for each, and what a process that dies costs.

Those on a cluster are tested in test_processes_ray.py.
"""

import os
import signal
import time
from pathlib import Path

import mlflow
import pytest
import torch

from experiments.config.experiment import config_from
from experiments.processes.executors import EXECUTORS, Needs, open_inline
from experiments.processes.tasks import run_task
from experiments.run import run_experiment
from experiments.tracking.session import close_dead_runs, tracked_run
from tests.conftest import QUICK


def count_threads(seconds, echo):
    echo("begin")
    time.sleep(seconds)
    echo("end")
    return str(torch.get_num_threads())


def fail(error, echo):
    raise error


@pytest.fixture(scope="module", params=["inline", "processes"])
def executor(request):
    with EXECUTORS[request.param](Needs(workers=1, device="cpu", tracking_uri="")) as executor:
        yield executor


def ended(executor, echo=print):
    outcomes = {}
    while executor.running:
        outcomes |= executor.wait(echo)
    return outcomes


def test_a_task_computes_with_one_thread_and_its_lines_carry_its_name(executor):
    lines = []
    assert executor.count == 1
    executor.submit("a", count_threads, 1)
    assert not executor.has_room
    assert executor.wait(lines.append, at_most=0.1) == {}
    outcomes = ended(executor, lines.append)
    executor.submit("b", count_threads, 0)
    outcomes |= ended(executor, lines.append)
    assert executor.has_room
    assert {name: outcome.run_id for name, outcome in outcomes.items()} == {"a": "1", "b": "1"}
    assert lines == ["a: begin", "a: end", "b: begin", "b: end"]


def test_an_exception_becomes_the_reason_of_the_outcome(executor):
    executor.submit("user", fail, ValueError("lr must be positive"))
    outcomes = ended(executor)
    executor.submit("bug", fail, ZeroDivisionError("division by zero"))
    outcomes |= ended(executor)
    assert outcomes["user"].reason == "lr must be positive"
    assert outcomes["bug"].reason == "ZeroDivisionError: division by zero"
    assert {outcome.run_id for outcome in outcomes.values()} == {None}


def test_only_a_bug_leaves_a_traceback(capsys):
    run_task(fail, (ValueError("lr must be positive"),), print)
    assert capsys.readouterr().err == ""
    run_task(fail, (ZeroDivisionError("division by zero"),), print)
    assert "Traceback" in capsys.readouterr().err


def test_inline_leaves_the_thread_count_as_it_was():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with open_inline() as executor:
            executor.submit("a", count_threads, 0)
            assert ended(executor)["a"].run_id == "1"
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_process_that_dies_costs_its_own_experiment_only(store):
    lines, others = [], worker_processes()
    long = config_from(QUICK | {"rounds": 40, "prune_rate": 0.01})
    needs = Needs(workers=1, device="cpu", tracking_uri="")
    with tracked_run("parent") as parent, EXECUTORS["processes"](needs) as executor:
        executor.submit("a", run_experiment, long, parent)
        while not any(line.startswith("a: round  1/") for line in lines):
            executor.wait(lines.append, at_most=0.05)
        (worker,) = worker_processes() - others
        os.kill(worker, signal.SIGKILL)
        outcomes = ended(executor, lines.append)
        close_dead_runs(parent, outcomes["a"].reason)
        executor.submit("b", run_experiment, config_from(QUICK), parent)
        outcomes |= ended(executor, lines.append)
    assert outcomes["a"].run_id is None
    assert outcomes["a"].died
    assert outcomes["a"].reason.startswith("its process died")
    assert mlflow.get_run(outcomes["b"].run_id).info.status == "FINISHED"
    (dead,) = mlflow.search_runs(
        search_all_experiments=True,
        filter_string="attributes.status = 'FAILED'",
        output_format="list",
    )
    assert dead.data.tags["error"] == outcomes["a"].reason
    assert worker_processes() == others


def worker_processes():
    """The processes that work for this one."""
    pids = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    lines = {int(pid): Path(f"/proc/{pid}/cmdline").read_bytes().decode() for pid in pids}
    return {pid for pid, line in lines.items() if "spawn_main" in line}
