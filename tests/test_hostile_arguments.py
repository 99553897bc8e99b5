"""An unusual invalid argument ends the command quickly, with a one-line error and status 2."""

import os
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest

from experiments.__main__ import run_command
from tests.conftest import ROOT, TIMEOUT

SOON = 60  # seconds, on a busy machine; a pipe or a lock that is waited for takes forever, or 300
BOMB = "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in pairwise("abcdefghi"))
MERGES = "".join(
    f"{b}: &{b} {{<<: [{', '.join([f'*{a}'] * 9)}]}}\n" for a, b in pairwise("abcdefghi")
)
FILES = {
    "deep.yaml": "[" * 5000 + "]" * 5000,
    "bomb.yaml": f"a: &a [x]\n{BOMB}prune_rate: *i\n",
    "merges.yaml": f"a: &a {{x: 1}}\n{MERGES}",
    "list.yaml": "prune_rate: {low: [0.1], high: 0.2}",
    "log.yaml": "prune_rate: {low: 0.1, high: 0.2, log: [true]}",
    "bytes.yaml": "\0",
    "bool.yaml": "prune_rate: !!bool maybe",
    "int.yaml": "prune_rate: !!int ''",
    "time.yaml": "prune_rate: !!timestamp x",
    "date.yaml": "prune_rate: 2001-99-99",
    "large.yaml": "#" * (1 << 21),
}


@pytest.fixture
def folder(store):
    """A folder with a loop of links, a pipe, and files that are hard to read."""
    Path("loop").symlink_to("loop")
    Path("zero.yaml").symlink_to("/dev/zero")
    for name in ("pipe", "pipe.yaml"):
        os.mkfifo(name)
    for name, content in FILES.items():
        Path(name).write_text(content)
    Path("photographs/ada").mkdir(parents=True)
    return store


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("run --data_root=loop --dataset=faces", "data_root must not be a loop of symbolic links"),
        (
            "run --data_root=loop/x --dataset=mnist",
            "data_root must not be a loop of symbolic links",
        ),
        ("prepare_faces --source=loop --out=x", "source must not be a loop of symbolic links"),
        (
            "prepare_faces --source=photographs --out=loop",
            "out must not be a loop of symbolic links",
        ),
        ("tune --storage=sqlite:///loop/x.db", "storage: the folder "),
        ("tune --dataset=digits --storage=sqlite:///loop", "storage cannot be used: loop is"),
        (f"run --epochs={'9' * 400}", "epochs must be less than or equal to 1000000000"),
        (f"run --epochs={'9' * 5000}", "epochs "),
        (f"run --lr={'9' * 400}", "lr must be a finite number"),
        (f"run --seed={'9' * 400}", "seed must be less than "),
        ("run --data_root=a\0b", "data_root must not contain a null character"),
        (
            "tune --dataset=digits --search=deep.yaml",
            "search: deep.yaml is not valid YAML: it is nested too deeply",
        ),
        ("tune --dataset=digits --search=bytes.yaml", "search: bytes.yaml is not valid YAML: "),
        *(
            (
                f"tune --dataset=digits --search={kind}.yaml",
                f"search: {kind}.yaml is not valid YAML: ",
            )
            for kind in ("bool", "int", "time", "date")
        ),
        *(
            (
                f"tune --dataset=digits --search={kind}.yaml",
                f"search: {kind}.yaml is not valid YAML: aliases are not supported",
            )
            for kind in ("bomb", "merges")
        ),
        (
            "tune --dataset=digits --search=list.yaml",
            "search: prune_rate must be a valid number, got ",
        ),
        ("tune --dataset=digits --search=log.yaml", "search: prune_rate: log must be true or "),
        ("tune --dataset=digits --search=large.yaml", "search: large.yaml has more than "),
        ("tune --dataset=digits --search=pipe.yaml", "search: pipe.yaml is not a regular file"),
        ("tune --dataset=digits --search=zero.yaml", "search: zero.yaml is not a regular file"),
        (f"tune --dataset=digits --search={'[' * 5000}", "search must be name=low..high"),
        ("run --pretrained=pipe", "pretrained must be a file, not a folder, a pipe or a device"),
        ("run --pretrained=/dev/zero", "pretrained must be a file, not a folder, a pipe or a dev"),
        ("run --dataset=mnist --data_root=/proc", "MNIST is not in /proc and cannot be downloaded"),
        ("run --dataset=olivetti --data_root=/proc", "the Olivetti faces are not in /proc and"),
        ("export --run=pipe", "run must be the id of a run, a checkpoint or a folder"),
        ("predict --run=/dev/zero --images=photographs", "run must be the id of a run"),
    ],
)
def test_an_unusual_argument_is_an_error_of_one_line(folder, capsys, monkeypatch, command, message):
    if "/proc" in command:  # between attempts of a download
        monkeypatch.setattr("time.sleep", lambda seconds: None)
    name, *words = command.split(" ")
    begin = time.monotonic()
    with pytest.raises(SystemExit) as stop:
        run_command(name, words)
    assert stop.value.code == 2
    assert time.monotonic() - begin < SOON
    (line,) = capsys.readouterr().err.splitlines()[-1:]
    assert line.startswith(f"error: {message}")
    assert len(line) < 1600
    assert line.isprintable()


def test_a_store_that_cannot_be_written_is_an_error_of_one_line_soon(folder, capsys, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////proc/mlflow.db")
    begin = time.monotonic()
    with pytest.raises(SystemExit):
        run_command("run", ["--dataset=digits"])
    assert time.monotonic() - begin < SOON / 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "error: /proc/mlflow.db cannot be opened (unable to open database file): work in a folder "
        "that you can write to, or set MLFLOW_TRACKING_URI"
    )


INTERRUPTS = """
import os, signal, sys
def hook(event, args):
    if event == "import" and args[0] == {module!r}:
        os.kill(os.getpid(), signal.SIGINT)
sys.addaudithook(hook)
"""


@pytest.mark.parametrize("module", ["experiments.processes.signals", "pydantic"])
def test_a_ctrl_c_in_the_first_imports_prints_no_traceback(module, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(INTERRUPTS.format(module=module))
    done = subprocess.run(
        [sys.executable, "-m", "experiments", "run", "--dataset=digits"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert (done.returncode, done.stderr) in ((-signal.SIGINT, ""), (128 + signal.SIGINT, ""))


@pytest.mark.parametrize("seconds", [0.1, 0.2, 0.3, 0.5, 0.8, 1.3, 2.1])
def test_an_early_ctrl_c_prints_no_traceback(seconds, tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-m", "experiments", "run", "--dataset=digits"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=TIMEOUT)
    # In its first milliseconds Python itself prints one, and may end with 1.
    assert process.returncode in (-signal.SIGINT, 128 + signal.SIGINT, 1), errors
    assert "experiments" not in errors.partition("Traceback")[2]
