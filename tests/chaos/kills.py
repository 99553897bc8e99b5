"""Kills: signals at random instants, and several of the same command at once."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from random import Random

from tests.chaos.jobs import JOBS, Job, Lab, NotSurvivedError, has_crashed, log_of, processes_of
from tests.conftest import ROOT

SIGNALS = (*(signal.SIGKILL,) * 3, signal.SIGTERM, signal.SIGINT)
MOST_KILLS = 3
JOB_NAMES = tuple(JOBS)


def attacks(lab: Lab, dice: Random) -> Iterator[str]:
    """Signal a command up to three times, each at a random time; then let it finish."""
    while True:
        job = JOBS[dice.choice(JOB_NAMES)]
        with lab.folder(job, dice) as folder:
            done = []
            for _ in range(dice.randint(1, MOST_KILLS)):
                instant = dice.random() * 1.1 * lab.seconds[job.name]
                number, whom = dice.choice(SIGNALS), dice.choice(("it", "all", "one"))
                done.append(f"{number.name} to {whom} after {instant:.2f} s")
                try:
                    _kill(lab, job, folder, instant, number, whom, dice)
                except NotSurvivedError as error:
                    raise NotSurvivedError(f"{job.name}, {', '.join(done)}: {error}") from None
            try:
                lab.finish(job, folder)
            except NotSurvivedError as error:
                raise NotSurvivedError(f"{job.name}, {', '.join(done)}: {error}") from None
        yield f"{job.name}, {', '.join(done)}"


def _kill(
    lab: Lab,
    job: Job,
    folder: Path,
    instant: float,
    number: signal.Signals,
    whom: str,
    dice: Random,
) -> None:
    if not (words := job.next_words(folder)):
        return
    process = lab.start(words, folder)
    time.sleep(instant)
    killed = time.time()
    with suppress(ProcessLookupError):
        if whom == "all":
            os.killpg(process.pid, number)
        elif whom == "it" or not (others := sorted({*processes_of(folder)} - {process.pid})):
            os.kill(process.pid, number)
        else:
            os.kill(dice.choice(others), number)
    status = lab.wait(process)
    if dice.random() < 0.5:  # else the next command meets what is left of this one
        lab.check_gone(folder)
        if number == signal.SIGKILL and whom in ("it", "all"):
            lab.check_none_began(folder, killed)
    if whom == "it" and status not in (0, -number, 128 + number):
        raise NotSurvivedError(f"it ended with status {status}")
    if has_crashed(folder) and f'"{ROOT}/' in log_of(folder):  # not while Python itself starts
        raise NotSurvivedError("a traceback is in the log")
    (folder / "log").rename(folder / f"log.{time.monotonic_ns()}")


def together(lab: Lab, dice: Random) -> Iterator[str]:
    """Two or three of the same command at once: nothing is done twice."""
    while True:
        job = JOBS[dice.choice([name for name in JOB_NAMES if name != "run"])]
        count = dice.randint(2, 3)
        with lab.folder(job, dice) as folder:
            try:
                started = []
                for _ in range(count):
                    started.append(lab.start(job.words, folder))
                    time.sleep(dice.choice((0, 0, 0.3, 2)) * dice.random())
                statuses = [lab.wait(process) for process in started]
                shared = job.name in ("compare", "tune")  # the others are refused
                if not {*statuses} <= ({0} if shared else {0, 2}):
                    raise NotSurvivedError(f"they ended with {statuses}")
                lab.finish(job, folder)
            except NotSurvivedError as error:
                raise NotSurvivedError(f"{count} times {job.name}: {error}") from None
        yield f"{count} times {job.name}: {statuses}"
