"""Faults: at one write to a file or to the database, the process dies or the disk fails.

An audit hook sees each write before it happens, in our code and in MLflow's. A first run of each
command lists them, and the attacks choose among them; `known_sites` says in which functions they
are, so that a new one is noticed. In workers, `inject` installs the hook.
"""

import errno
import os
import re
import signal
import sqlite3
import sys
import tempfile
from collections import defaultdict
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path
from random import Random
from typing import Any

from tests.chaos.jobs import JOBS, PATIENCE, Job, Lab
from tests.chaos.logs import (
    PROMPT,
    NotSurvivedError,
    check_error,
    has_crashed,
    has_failures,
    log_of,
)
from tests.conftest import ROOT

PRELOADED = ["experiments.run", "experiments.export", "experiments.prepare_faces", "mlflow"]
JOB_NAMES = ("run", "compare", "prepare_faces", "export")
KINDS = ("dies", "is full", "breaks once")  # the process dies; the disk is full, or fails once
CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink")
FREEING = ("os.rename", "os.remove", "os.rmdir", "os.truncate", "DELETE")  # work on a full disk
RENEWED = "UPDATE tags SET in experiments/tracking/session.py:write_heartbeat"  # only in slow runs
WORKER_WRITES = 150  # of a worker of `compare`, about
ATTACKED = re.compile(rf'"(\w+) ({"|".join(KINDS)}) at write \d+: ([^"]*)"')  # in a record
KNOWN = Path(__file__).with_name("writes.txt")
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Hook:
    """Counts the writes of this process, and lets one of them fail.

    Args:
        folder: Only writes below it count. `fired(folder)` then lists those that failed.
        at: Number of the write that fails, from 1; 0 is none.
        kind: Of `KINDS`.
        seen: Where the writes are listed, if anywhere.
    """

    def __init__(self, folder: Path, at: int, kind: str, seen: list[str] | None) -> None:
        self.folder, self.at, self.kind, self.seen = f"{folder}/", at, kind, seen
        self.count, self.owner = 0, os.getpid()
        self.fired = fired(folder)

    def install(self) -> None:
        """See all writes from now on."""
        if self.at:
            self._note("installed")
        from sqlalchemy import event
        from sqlalchemy.engine import Engine

        sys.addaudithook(self._audit)
        event.listen(Engine, "before_cursor_execute", self._statement)
        event.listen(Engine, "commit", lambda connection: self._commit())

    def _audit(self, name: str, args: tuple[Any, ...]) -> None:
        if name == "open":
            if not isinstance(args[0], (str, bytes)) or not args[2] & WRITES:
                return
        elif name not in CHANGES:
            return
        path = os.path.abspath(os.fsdecode(args[0]))  # noqa: PTH100  # a hook must be fast
        if path.startswith(self.folder) and not path.endswith("/log"):
            self._write(name, path, OSError)

    def _statement(self, connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        if statement.split(" ", 1)[0] in ("INSERT", "UPDATE", "DELETE"):
            self._write(" ".join(statement.split()[:3]), statement, sqlite3.Error)

    def _commit(self) -> None:
        self._write("COMMIT", "COMMIT", sqlite3.Error)

    def _note(self, line: str) -> None:
        with self.fired.open("a") as file:  # not below the folder, so that it is no write itself
            file.write(f"{line}\n")

    def _write(self, what: str, path: str, error: type[Exception]) -> None:
        if os.getpid() != self.owner:
            return
        self.count += 1
        if self.seen is not None:
            self.seen.append(f"{what} in {site()}")
        full = self.kind == "is full"
        if not self.at or self.count < self.at or (self.count > self.at and not full):
            return
        if full and what.split(" ", 1)[0] in FREEING:
            return
        self._note(f"{what} in {site()}")
        if self.kind == "dies":
            os.kill(self.owner, signal.SIGKILL)
        if error is OSError:
            number = errno.ENOSPC if full else errno.EIO
            raise OSError(number, os.strerror(number), path)
        from sqlalchemy.exc import OperationalError

        text = "database or disk is full" if full else "disk I/O error"
        raise OperationalError(path, None, sqlite3.OperationalError(text))


def fired(folder: Path) -> Path:
    """Where hooks list the writes that failed, after a line for each process that has a hook."""
    return folder.with_name(f"{folder.name}.fired")


def failed_writes(folder: Path) -> list[str]:
    """The writes that a fault has hit.

    Raises:
        RuntimeError: If no process had a hook.
    """
    lines = fired(folder).read_text().splitlines() if fired(folder).exists() else []
    if "installed" not in lines:
        raise RuntimeError("no process has installed the hook")
    fired(folder).unlink()
    return [line for line in lines if line != "installed"]


def site() -> str:
    """The function of ours that a write comes from."""
    frame = sys._getframe(1)
    while frame:
        path = frame.f_code.co_filename
        if path.startswith(f"{ROOT}/") and "/tests/" not in path and "/.venv/" not in path:
            return f"{path.removeprefix(f'{ROOT}/')}:{frame.f_code.co_name}"
        frame = frame.f_back
    return "elsewhere"


def _child(
    words: tuple[str, ...],
    folder: Path,
    variables: dict[str, str],
    at: int,
    kind: str,
    record: Any,
    in_workers: bool,
) -> None:
    """In a process of its own: a command with one fault."""
    os.setsid()
    os.chdir(folder)
    os.environ.update(variables)
    if in_workers:
        os.environ["CHAOS_FAULT"] = f"{at} {kind.replace(' ', '_')} {folder}"
        os.environ["PYTHONPATH"] = f"{KNOWN.parent / 'inject'}{os.pathsep}{ROOT}"
        at = 0
    with (folder / "log").open("ab") as log:
        log.write(f"{PROMPT}{' '.join(words)}\n".encode())
        log.flush()
        for number in (1, 2):
            os.dup2(log.fileno(), number)
    tempfile.tempdir = None  # it was chosen before
    seen: list[str] | None = [] if record else None
    Hook(folder, at, kind, seen).install()
    from experiments.__main__ import run_command

    try:
        run_command(words[0], words[1:])
    finally:
        if record:
            record.send(seen)


class Faults:
    """Attacks on the writes of commands, each in a process that has imported everything."""

    def __init__(self, lab: Lab, dice: Random, earlier: str = "") -> None:
        self.lab, self.dice = lab, dice
        self.context = get_context("forkserver")
        self.context.set_forkserver_preload(PRELOADED)
        self.writes: dict[str, list[str]] = {}
        self.seen: list[str] = []
        self.tried: dict[tuple[str, ...], int] = defaultdict(int)  # job and write; with its kind
        for name, kind, write in ATTACKED.findall(earlier):
            self.count_attack(name, kind, write)

    def start(
        self,
        job: Job,
        folder: Path,
        at: int,
        kind: str,
        listed: bool = False,
        in_workers: bool = False,
    ) -> int:
        """Run a command with one fault; returns its exit status. `listed` fills `seen`."""
        ours, theirs = self.context.Pipe(duplex=False)
        record = theirs if listed else None
        variables = self.lab.environment(folder)
        args = (job.words, folder, variables, at, kind, record, in_workers)
        process = self.context.Process(target=_child, args=args)
        process.start()
        if listed:
            theirs.close()
            with suppress(EOFError):
                self.seen = ours.recv()
        process.join(PATIENCE)
        if process.exitcode is None:
            assert process.pid
            os.killpg(process.pid, signal.SIGKILL)
            raise NotSurvivedError(f"it has not ended after {PATIENCE:g} s")
        return process.exitcode

    def count(self, name: str) -> list[str]:
        """The writes of a job, in order."""
        if name not in self.writes:
            with self.lab.folder(JOBS[name], self.dice) as folder:
                if self.start(JOBS[name], folder, 0, "", listed=True) or not self.seen:
                    raise NotSurvivedError(f"{name} fails undisturbed:\n{log_of(folder)}")
                self.writes[name] = self.seen
        return self.writes[name]

    def attack(self, dice: Random) -> tuple[int, str]:
        """Make one write fail, in a function that was tried least."""
        kind = dice.choice(KINDS)
        if dice.random() < 0.1:
            return self.attack_workers(kind, dice)
        places = [(name, number) for name in JOB_NAMES for number in range(len(self.count(name)))]

        def order(place: tuple[str, int]) -> tuple[int, int, float]:
            name, write = place[0], self.writes[place[0]][place[1]]
            return self.tried[name, write], self.tried[name, write, kind], dice.random()

        name, number = min(places, key=order)
        self.count_attack(name, kind, self.writes[name][number])
        what = f"{name} {kind} at write {number + 1}"
        with self.lab.folder(JOBS[name], dice) as folder:
            try:
                status = self.start(JOBS[name], folder, number + 1, kind)
                hit = failed_writes(folder)
                allowed = {-signal.SIGKILL} if kind == "dies" and hit else {0, 2}
                self.check_and_finish(JOBS[name], folder, status, allowed)
            except NotSurvivedError as error:
                raise NotSurvivedError(f"{what}: {error}") from None
        return int(bool(hit)), f"{what}: {hit[0] if hit else 'not reached'}"

    def count_attack(self, name: str, kind: str, write: str) -> None:
        """Note that a write of a job has been attacked."""
        self.tried[name, write] += 1
        self.tried[name, write, kind] += 1

    def attack_workers(self, kind: str, dice: Random) -> tuple[int, str]:
        """Let one write fail in each worker of a comparison, as far as they get to it."""
        at = round(WORKER_WRITES ** dice.random())
        what = f"compare {kind} at write {at} of its workers"
        with self.lab.folder(JOBS["compare"], dice) as folder:
            try:
                status = self.start(JOBS["compare"], folder, at, kind, in_workers=True)
                hit = failed_writes(folder)
                self.check_and_finish(JOBS["compare"], folder, status, {0, 2})
            except NotSurvivedError as error:
                raise NotSurvivedError(f"{what}: {error}") from None
        return int(bool(hit)), f"{what}: {', '.join(sorted({*hit})) or 'not reached'}"

    def check_and_finish(self, job: Job, folder: Path, status: int, allowed: set[int]) -> None:
        """Check what a command with a fault left, and repeat it until it succeeds."""
        if status not in allowed:
            raise NotSurvivedError(f"it ended with status {status}")
        check_error(folder, status)
        if has_crashed(folder):
            raise NotSurvivedError("a traceback is in the log")
        self.lab.check_gone(folder)
        succeeded = status == 0 and not has_failures(folder)
        self.lab.finish(job, folder, succeeded)


def hit_sites(record: str) -> set[str]:
    """The sites that the attacks of a record have hit, as `known_sites`."""
    return {f"{name}: {write}" for name, _, write in ATTACKED.findall(record)}


def known_sites() -> set[str]:
    """Each job, kind of write and function of ours in which the attacks are known to write."""
    return set(KNOWN.read_text().splitlines())


def sites(root: Path) -> set[str]:
    """Where the commands write now, as `known_sites`; `root` is an empty folder."""
    faults = Faults(Lab(root), Random(0))
    faults.lab.measure(["run"])
    found = {f"{name}: {write}" for name in JOB_NAMES for write in faults.count(name)}
    return {each for each in found if not each.endswith(RENEWED)}


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"  # for processes that are forked with torch in them
    with tempfile.TemporaryDirectory() as place:
        KNOWN.write_text("\n".join(sorted(sites(Path(place)))) + "\n")
