"""Executors: the same contract for each, and what a process that dies costs.

Those on a cluster are tested in test_processes_ray.py.
"""

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from signal import SIGINT

import mlflow
import pytest
import torch

from experiments.processes.executors import EXECUTORS, Needs, open_inline
from experiments.processes.tasks import run_task
from experiments.tracking import server
from experiments.tracking.session import close_dead_runs, tracked_run
from tests.conftest import ROOT, TIMEOUT, wait_until


def count_threads(seconds, echo):
    echo("begin")
    time.sleep(seconds)
    echo("end")
    return str(torch.get_num_threads())


def fail(error, echo):
    raise error


@pytest.fixture(scope="module", params=["inline", "processes"])
def executor(request):
    before = worker_processes()
    with EXECUTORS[request.param](Needs(workers=1, device="cpu", tracking_uri="")) as executor:
        yield executor
    assert worker_processes() == before


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


def stay_in_a_run(uri, experiment, parent, echo):
    with server.tracking_to(uri, experiment), tracked_run("child", parent=parent) as run_id:
        echo(f"{os.getpid()} {run_id}")
        time.sleep(TIMEOUT)


@pytest.mark.parametrize("executor", ["processes"], indirect=True)
def test_a_process_that_dies_costs_its_own_task_only(executor, store):
    lines = []
    with tracked_run("parent") as parent:
        experiment = mlflow.get_run(parent).info.experiment_id
        executor.submit("a", stay_in_a_run, mlflow.get_tracking_uri(), experiment, parent)
        while not lines:
            assert executor.wait(lines.append, at_most=0.05) == {}
        process, run_id = lines[0].split()[1:]
        os.kill(int(process), signal.SIGKILL)
        outcomes = ended(executor, lines.append)
        close_dead_runs(parent, outcomes["a"].reason)
        executor.submit("b", count_threads, 0)
        outcomes |= ended(executor, lines.append)
    assert outcomes["a"].run_id is None
    assert outcomes["a"].died
    assert outcomes["a"].reason == "its process died (exit code -9)"
    assert outcomes["b"].run_id == "1"
    dead = mlflow.get_run(run_id)
    assert (dead.info.status, dead.data.tags["error"]) == ("FAILED", outcomes["a"].reason)


@pytest.fixture
def starting():
    """An executor, and the task "a" whose process has just been created."""
    with EXECUTORS["processes"](Needs(workers=1, device="cpu", tracking_uri="")) as executor:
        before = worker_processes()
        executor.submit("a", count_threads, 0)
        (process,) = worker_processes() - before
        yield executor, process


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_process_that_dies_while_it_starts_costs_its_own_task_only(starting, number, capfd):
    executor, process = starting
    os.kill(process, number)
    outcomes = ended(executor)
    executor.submit("b", count_threads, 0)
    outcomes |= ended(executor)
    assert outcomes["a"].died
    assert outcomes["a"].reason == "its process died while it was starting"
    assert outcomes["b"].run_id == "1"
    assert "Traceback" not in capfd.readouterr().err


def test_ctrl_c_does_not_stop_a_process_that_starts(starting, capfd):
    """It reaches all processes; the command itself decides what to stop."""
    executor, process = starting
    for _ in range(100):
        if is_blocked(process, SIGINT):  # until its first task begins
            os.kill(process, SIGINT)
            time.sleep(0.02)
    assert ended(executor)["a"].run_id == "1"
    assert "Traceback" not in capfd.readouterr().err


FIRST = """
from experiments.processes.executors import EXECUTORS, Needs
from tests.test_processes_executors import SIGINT, count_threads, is_blocked, worker_processes

if __name__ == "__main__":
    with EXECUTORS["processes"](Needs(workers=2, device="cpu", tracking_uri="")) as executor:
        for name in "ab":
            executor.submit(name, count_threads, 0)
        print(*(is_blocked(process, SIGINT) for process in worker_processes()))
"""


def test_the_first_processes_of_a_command_block_ctrl_c_too(tmp_path):
    """Python unblocks it when it starts its resource tracker."""
    (tmp_path / "first.py").write_text(FIRST)
    done = subprocess.run(
        [sys.executable, "first.py"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == ["True", "True"], done.stderr


def import_slow(_, echo):
    """A task whose import a signal may interrupt."""
    echo("imports")
    sys.path.insert(0, str(Path.cwd()))
    if "other" not in sys.modules:  # as torch decides whether it has imported a part of itself
        __import__("slow")
    return str(sys.modules["other"].whole)


def test_a_task_that_is_stopped_spoils_no_other(tmp_path, monkeypatch, capfd):
    """This import takes longer than a signal waits."""
    monkeypatch.chdir(tmp_path)
    Path("slow.py").write_text(
        "import other\nfrom time import sleep\nfrom pathlib import Path\n"
        "sleep(0 if Path('fast').exists() else 100)\nother.whole = True\n"
    )
    Path("other.py").touch()  # stays imported, without what `slow` adds to it
    with EXECUTORS["processes"](Needs(workers=1, device="cpu", tracking_uri="")) as executor:
        before = worker_processes()
        executor.submit("a", import_slow, 0)
        (process,) = worker_processes() - before
        lines = []
        while not lines:
            assert not executor.wait(lines.append, at_most=0.2)
        time.sleep(0.5)
        Path("fast").touch()
        os.kill(process, signal.SIGTERM)
        outcomes = ended(executor)
        executor.submit("b", import_slow, 0)
        outcomes |= ended(executor)
    assert (outcomes["a"].run_id, outcomes["a"].reason, outcomes["a"].died) == (
        None,
        "it was stopped",
        False,
    )
    assert outcomes["b"].run_id == "True"
    assert "Traceback" not in capfd.readouterr().err


class SlowToReceive:
    """An argument of a task that tells which process receives it, and takes long."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return received, (self.path,)


def received(path):
    Path(path).write_text(str(os.getpid()))
    time.sleep(TIMEOUT)


def test_a_process_that_dies_while_it_receives_a_task_stops_no_other(tmp_path):
    """Then it has a lock, which nobody releases."""
    path = tmp_path / "process"
    with EXECUTORS["processes"](Needs(workers=2, device="cpu", tracking_uri="")) as executor:
        executor.submit("a", count_threads, SlowToReceive(path))
        wait_until(lambda: path.exists() and path.read_text())
        os.kill(int(path.read_text()), signal.SIGKILL)
        executor.submit("b", count_threads, 0)
        outcomes, began = {}, time.monotonic()
        while executor.running:
            outcomes |= executor.wait(print, at_most=1.0)
            assert time.monotonic() - began < 40  # Pebble waits for a lock for 60 seconds
        executor.submit("c", count_threads, 0)
        outcomes |= ended(executor)
    assert outcomes["a"].died
    assert [outcomes[name].run_id for name in "bc"] == ["1", "1"]


def test_processes_that_cannot_start_are_an_error(monkeypatch, starting):
    executor, process = starting
    monkeypatch.setattr("experiments.processes.pool.MOST_DIED_EARLY", 1)
    os.kill(process, signal.SIGKILL)
    ended(executor)
    with pytest.raises(ConnectionError, match="processes died 1 times while they were starting"):
        executor.submit("b", count_threads, 0)


def is_blocked(process, number):
    """Whether a process blocks a signal; false if it has ended."""
    with suppress(OSError):
        status = Path(f"/proc/{process}/status").read_text()
        return bool(int(re.search(r"SigBlk:\s*(\w+)", status)[1], 16) >> (number - 1) & 1)
    return False


def worker_processes():
    """The processes that work for this one."""
    pids = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    lines = {int(pid): Path(f"/proc/{pid}/cmdline").read_bytes().decode() for pid in pids}
    return {pid for pid, line in lines.items() if "spawn_main" in line}


PARENT = """
import sys, time
from experiments.processes.executors import EXECUTORS, Needs
from tests.test_processes_executors import begin

if __name__ == "__main__":
    with EXECUTORS["processes"](Needs(workers=1, device="cpu", tracking_uri="")) as executor:
        for number in range(3):
            executor.submit(str(number), begin, number)
            while executor.running:
                executor.wait(print)
"""


def begin(number, echo):
    """A task that says that it has begun, and stops on SIGTERM as an experiment does."""
    Path(f"begun-{number}").touch()
    wait_until(lambda: False)
    return ""


def test_a_worker_whose_parent_was_killed_begins_no_other_task(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "parent.py").write_text(PARENT)
    parent = subprocess.Popen([sys.executable, "parent.py"], start_new_session=True)
    wait_until(lambda: Path("begun-0").exists())
    parent.kill()
    parent.wait()
    try:
        wait_until(lambda: not members(parent.pid))
    finally:
        with suppress(ProcessLookupError):
            os.killpg(parent.pid, signal.SIGKILL)
    assert sorted(path.name for path in tmp_path.glob("begun-*")) == ["begun-0"]


def members(group):
    """The processes of a process group that still run."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, number = entry.read_text().rpartition(") ")[2].split()[:3]
            found += [entry.parent.name] if number == str(group) and state != "Z" else []
    return found
