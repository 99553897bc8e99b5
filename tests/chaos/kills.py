"""Kills: signals at random instants, and several of the same command at once."""

import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from random import Random

from tests.chaos.jobs import JOBS, Job, Lab, processes_of
from tests.chaos.logs import NotSurvivedError, check_error, has_crashed, has_failures, put_log_aside

SIGNALS = (*(signal.SIGKILL,) * 3, signal.SIGTERM, signal.SIGINT)
MOST_KILLS = 3
JOB_NAMES = tuple(JOBS)
REFUSED = ("prepare_faces",)  # commands of which only one at a time may work in a folder


def kills(lab: Lab, dice: Random) -> tuple[int, str]:
    """Signal a command up to three times, each at a random time; then let it finish."""
    job, done = JOBS[dice.choice(JOB_NAMES)], []
    hit, clean, succeeded = 0, True, False
    with lab.folder(job, dice) as folder:
        try:
            for _ in range(dice.randint(1, MOST_KILLS)):
                if not (words := job.next_words(folder)):
                    break
                instant = dice.random() * 1.1 * lab.seconds[job.name]
                number, whom = dice.choice(SIGNALS), dice.choice(("it", "all", "one"))
                done.append(f"{number.name} to {whom} after {instant:.2f} s")
                attack = _Kill(words, instant, number, whom, waits=dice.random() < 0.5)
                clean &= number != signal.SIGKILL and attack.waits
                attack.run(lab, folder, dice)
                succeeded = attack.succeeded
                hit += attack.hit
                if clean:  # so that none may be marked RUNNING
                    lab.check_ended(folder)
            lab.finish(job, folder, succeeded)
        except NotSurvivedError as error:
            raise NotSurvivedError(f"{job.name}, {', '.join(done)}: {error}") from None
    return int(hit > 0), f"{job.name}, {', '.join(done)}"


class _Kill:
    """One signal to a command."""

    def __init__(
        self, words: tuple[str, ...], instant: float, number: signal.Signals, whom: str, waits: bool
    ) -> None:
        self.words, self.instant, self.number, self.whom = words, instant, number, whom
        self.waits = waits  # for all processes; else the next command meets what is left of them
        self.hit = False  # whether the signal reached a process of the command
        self.succeeded = False  # whether nothing is left to do

    def run(self, lab: Lab, folder: Path, dice: Random) -> None:
        """Start the command, signal it, and check how it ends."""
        process = lab.start(self.words, folder)
        time.sleep(self.instant)
        whom, killed = self.whom, time.time()
        # Not reaped yet, so that its number cannot belong to another process.
        ended = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        self.hit = ended is None
        others = sorted({*processes_of(folder)} - {process.pid})
        if whom == "one" and not others:
            whom = "it"
        with suppress(ProcessLookupError):
            if whom == "all":
                os.killpg(process.pid, self.number)
            else:
                os.kill(process.pid if whom == "it" else dice.choice(others), self.number)
        status = lab.wait(process)
        if self.waits:
            lab.check_gone(folder)
            if self.number == signal.SIGKILL and whom in ("it", "all"):
                lab.check_none_began(folder, killed)
        allowed = (0, 2) if whom == "one" else (0, -self.number, 128 + self.number)
        if status not in allowed:
            raise NotSurvivedError(f"it ended with status {status}")
        check_error(folder, status)
        self.succeeded = status == 0 and not has_failures(folder)
        put_log_aside(folder)
        if has_crashed(folder):
            raise NotSurvivedError("a traceback is in the log")


def together(lab: Lab, dice: Random) -> tuple[int, str]:
    """Two or three of the same command at once: nothing is done twice."""
    job: Job = JOBS[dice.choice([name for name in JOB_NAMES if name != "run"])]
    count = dice.randint(2, 3)
    with lab.folder(job, dice) as folder:
        try:
            started = []
            for _ in range(count):
                started.append(lab.start(job.words, folder))
                time.sleep(dice.choice((0, 0, 0.3, 2)) * dice.random())
            statuses = [lab.wait(process) for process in started]
            allowed = {0, 2} if job.name in REFUSED else {0}
            if 0 not in statuses or not {*statuses} <= allowed:
                raise NotSurvivedError(f"they ended with {statuses}")
            check_error(folder, *statuses)
            lab.finish(job, folder, succeeded=True)
        except NotSurvivedError as error:
            raise NotSurvivedError(f"{count} times {job.name}: {error}") from None
    return 1, f"{count} times {job.name}: {statuses}"
