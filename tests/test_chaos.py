"""The attacks of `make chaos`, for a few minutes, and whether its checks can fail."""

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import requests

from tests.chaos.campaign import SHARES
from tests.chaos.faults import failed_writes, known_sites, sites
from tests.chaos.jobs import FINGERPRINT, JOBS, Lab, started_runs
from tests.chaos.logs import NotSurvivedError, check_error, has_crashed, put_log_aside
from tests.chaos.servers import MOODS, Proxy, binaries
from tests.conftest import ROOT, TIMEOUT

MINUTES = 2.5


@pytest.mark.slow
@pytest.mark.servers
def test_attacks_are_survived(tmp_path):
    record = tmp_path / "chaos.jsonl"
    parts = set(SHARES) - (set() if binaries() else {"storage"})
    words = [f"--minutes={MINUTES}", "--seed=0", f"--record={record}"]
    words.append(f"--parts={','.join(sorted(parts))}")
    done = subprocess.run(
        [sys.executable, "-m", "tests.chaos", *words],
        cwd=ROOT,
        env=os.environ | {"TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for part in parts:
        assert f'"part": "{part}"' in record.read_text()


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    lab = Lab(tmp_path_factory.mktemp("lab"))
    lab.measure(["run"])
    return lab


@pytest.fixture
def finished(lab, tmp_path):
    """A copy of the folder of a run that has finished."""
    folder = tmp_path / "finished"
    shutil.copytree(lab.place("run"), folder)
    for table, place in (("runs", "artifact_uri"), ("experiments", "artifact_location")):
        moved = f"replace({place}, '{lab.place('run')}', '{folder}')"
        change(folder, f"UPDATE {table} SET {place} = {moved}")
    lab.check_results(JOBS["run"], folder)  # the tests below change what makes it fail
    return folder


def change(folder, statement):
    with closing(sqlite3.connect(folder / "mlflow.db")) as database:
        database.execute(statement)
        database.commit()


def log(folder, *lines):
    (folder / "log").write_text("".join(f"{line}\n" for line in ("$ run", *lines)))


# What each check must notice: what happens to the folder of a finished run, and the message.
NOTICED = {
    "another metric": (
        lambda folder: change(folder, "UPDATE metrics SET value = 0.5 WHERE key = 'test_accuracy'"),
        "the results differ",
    ),
    "no checkpoint": (
        lambda folder: next(folder.rglob("round_01.safetensors")).unlink(),
        "the results differ",
    ),
    "a deleted run": (
        lambda folder: change(folder, "UPDATE runs SET lifecycle_stage = 'deleted'"),
        "the results differ",
    ),
    "a run that is RUNNING": (
        lambda folder: change(
            folder,
            "INSERT INTO runs (run_uuid, status, lifecycle_stage, experiment_id) "
            "SELECT 'x', 'RUNNING', 'active', experiment_id FROM runs LIMIT 1",
        ),
        "still marked RUNNING",
    ),
    "work done twice": (
        lambda folder: (
            change(
                folder,
                "INSERT INTO runs (run_uuid, status, lifecycle_stage, experiment_id, artifact_uri) "
                "SELECT 'x', status, 'active', experiment_id, artifact_uri FROM runs LIMIT 1",
            ),
            change(
                folder,
                "INSERT INTO tags (run_uuid, key, value) "
                f"SELECT 'x', key, value FROM tags WHERE key = '{FINGERPRINT}'",
            ),
        ),
        "done twice",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("what", NOTICED)
def test_what_a_command_must_not_leave_is_noticed(lab, finished, what):
    happens, message = NOTICED[what]
    happens(finished)
    with pytest.raises(NotSurvivedError, match=message):
        lab.check_results(JOBS["run"], finished)


@pytest.mark.slow
def test_a_result_that_a_repeat_would_mend_is_noticed(lab, tmp_path):
    job = replace(JOBS["export"], needs=lambda folder, lab: None)
    lab.expected["export"] = {"made/compact.safetensors": "a digest"}
    lab.fill(tmp_path / "export", job)
    with pytest.raises(NotSurvivedError, match="the results differ"):
        lab.finish(job, tmp_path / "export", succeeded=True)


@pytest.mark.slow
def test_lost_rounds_are_noticed(lab, finished):
    change(finished, "UPDATE runs SET status = 'FAILED'")
    begun = started_runs(finished)
    assert begun
    next(finished.rglob("config.json")).unlink()  # so that another run begins
    with pytest.raises(NotSurvivedError, match=f"complete rounds of these runs .*{begun.pop()}"):
        lab.finish(JOBS["run"], finished)


@pytest.mark.slow
def test_a_run_that_begins_after_a_kill_is_noticed(lab, finished):
    lab.check_none_began(finished, time.time())
    with pytest.raises(NotSurvivedError, match="began after the kill"):
        lab.check_none_began(finished, 0.0)


@pytest.mark.slow
def test_a_process_that_is_left_is_noticed(lab, tmp_path, monkeypatch):
    monkeypatch.setattr("tests.chaos.jobs.GONE_AFTER", 0.5)
    left = subprocess.Popen(["sleep", "100"], env=os.environ | lab.environment(tmp_path))
    with pytest.raises(NotSurvivedError, match=rf"processes go on working: \[{left.pid}\]"):
        lab.check_gone(tmp_path)
    assert left.wait(timeout=TIMEOUT) == -signal.SIGKILL


@pytest.mark.parametrize(
    ("lines", "status", "message"),
    [
        (["error: a"], 0, "0 commands failed, with 1 lines"),
        ([], 2, "1 commands failed, with 0 lines"),
        (["error: a", "error: b"], 2, "1 commands failed, with 2 lines"),
        (["error: a", "more"], 2, "not the last line"),
        (["error: \x1b[31m"], 2, "not printable"),
        ([f"error: {'a' * 5000}"], 2, "too long"),
    ],
)
def test_an_error_that_is_not_one_line_is_noticed(tmp_path, lines, status, message):
    log(tmp_path, "error: of the last command", "$ run", *lines)
    with pytest.raises(NotSurvivedError, match=message):
        check_error(tmp_path, status)


def test_an_error_of_one_line_is_accepted(tmp_path):
    log(tmp_path, "a line of MLflow", "error: a")
    check_error(tmp_path, 2)
    log(tmp_path, "$ run", "error: a", "done")
    check_error(tmp_path, 2, 0)


def test_tracebacks_of_commands_are_noticed(tmp_path):
    log(tmp_path, "Traceback (most recent call last):")
    assert has_crashed(tmp_path)
    put_log_aside(tmp_path)
    assert not has_crashed(tmp_path)  # Python's own, when it is interrupted while it starts
    log(tmp_path, "Traceback (most recent call last):", f'  File "{ROOT}/experiments/run.py"')
    put_log_aside(tmp_path)
    assert has_crashed(tmp_path)


def test_a_fault_hits_what_it_says(tmp_path):
    folder = tmp_path / "x"
    folder.mkdir()
    program = "from tests.chaos.faults import Hook; from pathlib import Path; import sys\n"
    program += "Hook(Path(sys.argv[1]), 2, 'dies', None).install()\n"
    program += "[Path(sys.argv[1], str(number)).touch() for number in range(int(sys.argv[2]))]"
    for count, status, hit in ((1, 0, []), (3, -signal.SIGKILL, ["open in elsewhere"])):
        done = subprocess.run(
            [sys.executable, "-c", program, folder, str(count)],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
        assert done.returncode == status
        assert failed_writes(folder) == hit
    with pytest.raises(RuntimeError, match="no process has installed the hook"):
        failed_writes(folder)


class Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # connections stay open

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "100")
        self.end_headers()
        self.wfile.write(b"x" * 100)

    def log_message(self, *args):
        pass


@pytest.mark.parametrize("mood", MOODS)
def test_a_mood_of_the_server_reaches_connections_that_are_open(mood, monkeypatch):
    monkeypatch.setattr("tests.chaos.servers.HANGS", 1.0)
    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server, requests.Session() as session:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        proxy = Proxy(server.server_port)
        address = f"http://127.0.0.1:{proxy.port}/"
        assert session.get(address, timeout=10).text == "x" * 100
        assert proxy.met == 0
        proxy.change(mood)
        began = time.monotonic()
        try:
            answer = session.get(address, timeout=10)
        except requests.RequestException:
            answer = None
        if mood == "is slow":
            assert answer.text == "x" * 100
            assert time.monotonic() - began > 0.3
        elif mood == "answers 500":
            assert answer.status_code == 500
        elif mood == "answers garbage":
            assert answer.text == "not a JSON {"
        elif mood == "cuts answers":
            assert answer is None or answer.text != "x" * 100
        else:
            assert answer is None
        assert proxy.met > 0
        proxy.change("")
        assert requests.get(address, timeout=10).text == "x" * 100
        proxy.close()
        server.shutdown()


@pytest.mark.slow
def test_the_writes_of_the_commands_are_known(tmp_path):
    """After a change, `python -m tests.chaos.faults` lists them; `make chaos` must hit new ones."""
    assert sites(tmp_path) == known_sites()
