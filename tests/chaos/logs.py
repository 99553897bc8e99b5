"""Logs: what attacked commands print, and what they must not print."""

import re
import time
from pathlib import Path

from tests.conftest import ROOT

LONGEST = 1700  # characters of an error's line
PROMPT = "$ "  # begins the line of a log that shows a command
OF_THE_TRACKER = re.compile(  # of multiprocessing's resources
    r'Traceback .*\n  File "[^"]*/multiprocessing/resource_tracker\.py", .*\n.*\nKeyError: .*\n'
)


class NotSurvivedError(AssertionError):
    """An attack did what it must not: the message says what."""


def check_error(folder: Path, *statuses: int) -> None:
    """Check that each of the last commands that failed (status 2) printed an error.

    It is one printable line, which begins with "error: "; after a single command, it is the last.
    """
    lines = log_of(folder).splitlines()
    first = max((n for n, line in enumerate(lines) if line.startswith(PROMPT)), default=0)
    if len(statuses) > 1:
        first = 0
    errors = [line for line in lines[first:] if line.startswith("error: ")]
    failed = statuses.count(2)
    if len(errors) != failed:
        raise NotSurvivedError(f"{failed} commands failed, with {len(errors)} lines that say why")
    if len(statuses) == 1 and errors and lines[-1] != errors[0]:
        raise NotSurvivedError(f"the error is not the last line: {lines[-1][:200]!r}")
    for line in errors:
        if len(line) > LONGEST or not line.isprintable():
            raise NotSurvivedError(f"the error is too long or not printable: {line[:LONGEST]!r}")


def has_failures(folder: Path) -> bool:
    """Whether the last command lists arms that failed, although it succeeded."""
    return "WARNING: failed: " in log_of(folder).rpartition(f"\n{PROMPT}")[2]


def put_log_aside(folder: Path) -> None:
    """Begin a new log; processes that are left write to the old one."""
    (folder / "log").rename(folder / f"log.{time.monotonic_ns()}")


def has_crashed(folder: Path) -> bool:
    """Whether a traceback is in a log, other than Python's own.

    Python prints its own if it is interrupted while it starts, or after its tracker was killed.
    """
    for log in folder.glob("log*"):
        text = OF_THE_TRACKER.sub("", log.read_text(errors="replace"))
        if "Traceback" in text and (log.name == "log" or f'"{ROOT}/' in text):
            return True
    return False


def log_of(folder: Path) -> str:
    """What the commands in a folder have printed, since `put_log_aside`."""
    log = folder / "log"
    return log.read_text(errors="replace") if log.exists() else ""
