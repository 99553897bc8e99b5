"""Campaign: attack for some minutes, and report what was survived and what was not.

A kind of attack is a function `(lab, dice) -> (1, what it did)`; 0 instead of 1 if it came too late
to hit anything. The seed and an attack's number determine the dice. What a signal or a fault hits
also depends on the speed of the machine, and a fault on what earlier campaigns have hit.
"""

import argparse
import json
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from itertools import count
from multiprocessing import get_context
from pathlib import Path
from random import Random
from typing import Any

from tests.chaos import faults, hostile, kills, servers, words
from tests.chaos.jobs import JOBS, Lab, processes_of
from tests.chaos.logs import NotSurvivedError

# Shares of the time. An attack in bulk counts files or command lines.
SHARES = {
    "kills": 6,
    "together": 3,
    "faults": 6,
    "tracking": 3,
    "storage": 2,
    "commands": 2,
    "hostile": 3,
    "words": 1,
}
BULK: dict[str, Callable[[Path, int], Iterator[tuple[int, str]]]] = {
    "hostile": hostile.read_hostile,
    "words": lambda made, seed: words.sets(seed),
}
Attack = Callable[[Random], tuple[int, str]]
SILENT = 120.0  # seconds without a report after which a bulk attack counts as hung
MOST_LOST = 10  # failures after which a part ends
WORKERS = max(2, os.cpu_count() or 2)


class Record:
    """What was tried and what was not survived: a file with one line of JSON for each report."""

    def __init__(self, path: Path, seed: int) -> None:
        self.path, self.seed, self.lock = path, seed, threading.Lock()
        self.tried: dict[str, int] = {}
        self.lost: list[str] = []

    def lost_by(self, part: str) -> int:
        """How many attacks of a part were not survived."""
        return sum(each.startswith(f"{part}: ") for each in self.lost)

    def add(self, part: str, count: int, what: str, problem: str = "") -> None:
        """Count attacks that hit; `problem` is why the last one was not survived."""
        line = {"part": part, "seed": self.seed, "tried": count, "what": what, "problem": problem}
        with self.lock:
            self.tried[part] = self.tried.get(part, 0) + count
            with self.path.open("a") as file:
                file.write(json.dumps(line) + "\n")
            if problem:
                self.lost.append(f"{part}: {problem}")
                print(f"LOST {part}: {problem}", flush=True)


def summary(path: Path) -> str:
    """A table of all reports in a file; the bound is 3/n if nothing was lost (rule of three)."""
    tried: dict[str, int] = {}
    lost: dict[str, int] = {}
    for line in path.read_text().splitlines():
        report = json.loads(line)
        tried[report["part"]] = tried.get(report["part"], 0) + report["tried"]
        lost[report["part"]] = lost.get(report["part"], 0) + bool(report["problem"])
    lines = [f"{'attack':<12}{'tried':>10}{'not survived':>14}{'at most (95%)':>16}"]
    for part in SHARES:
        if part in tried:
            bound = f"{3 / tried[part]:.2g}" if tried[part] and not lost[part] else "-"
            lines.append(f"{part:<12}{tried[part]:>10,}{lost[part]:>14}{bound:>16}")
    return "\n".join(lines)


def _bulk(part: str, made: Path, seed: int, seconds: float, reports: Any) -> None:
    """In a process of its own: attacks of which thousands take seconds."""
    deadline = time.monotonic() + seconds
    for report in BULK[part](made, seed):
        reports.send(report)
        if time.monotonic() > deadline:
            break
    reports.send(None)


def in_bulk(part: str, lab: Lab, dice: Random, seconds: float, record: Record) -> None:
    """Attack in a process of its own, and record what it reports."""
    ours, theirs = get_context("spawn").Pipe(duplex=False)
    args = (part, lab.root / "undisturbed", dice.getrandbits(32), seconds, theirs)
    process = get_context("spawn").Process(target=_bulk, args=args)
    process.start()
    theirs.close()
    try:
        while record.lost_by(part) < MOST_LOST:
            if not ours.poll(SILENT):
                record.add(part, 1, "", f"it has said nothing for {SILENT:g} s")
                break
            if not (report := ours.recv()):
                break
            record.add(part, report[0], "", report[1])
    except EOFError:
        process.join()
        record.add(part, 1, "", f"the process died with status {process.exitcode}")
    process.kill()
    process.join()


def one_by_one(part: str, attack: Attack, seconds: float, record: Record) -> None:
    """Attack until the time is over."""
    deadline = time.monotonic() + seconds
    for number in count():
        if time.monotonic() > deadline or record.lost_by(part) == MOST_LOST:
            return
        try:
            hit, what = attack(Random(f"{record.seed} {part} {number}"))
        except NotSurvivedError as error:
            record.add(part, 1, f"attack {number}", str(error))
        except Exception as error:  # of the campaign itself: also a reason to look
            record.add(part, 1, f"attack {number}", f"{type(error).__name__}: {error}")
        else:
            record.add(part, hit, what)


def main(argv: list[str] | None = None) -> int:
    """Attack; the exit status is 1 if anything was not survived."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos")
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--seed", type=int, default=None, help="default: the time")
    parser.add_argument("--parts", default=",".join(SHARES))
    parser.add_argument("--record", default="chaos.jsonl", help="file to add reports to")
    args = parser.parse_args(argv)
    os.environ["OMP_NUM_THREADS"] = "1"  # for processes that are forked with torch in them
    seed = int(time.time()) if args.seed is None else args.seed
    parts, record = args.parts.split(","), Record(Path(args.record).resolve(), seed)
    root = Path(tempfile.mkdtemp(prefix="chaos-"))
    print(f"seed {seed}, folders in {root}", flush=True)
    lab = Lab(root)
    lab.measure(list(JOBS))
    print("undisturbed: " + ", ".join(f"{n} {s:.1f} s" for n, s in lab.seconds.items()), flush=True)
    earlier = record.path.read_text() if record.path.exists() else ""
    if "storage" in parts and not servers.binaries():
        print("storage: left out, since PostgreSQL is not here", flush=True)
        parts.remove("storage")
    whole, attacks = sum(SHARES[part] for part in parts), attacks_of(lab, earlier)
    waiting = sorted(parts, key=lambda part: -SHARES[part])

    def attack(part: str) -> None:
        seconds = 60 * args.minutes * WORKERS * SHARES[part] / whole
        print(f"{part}: {seconds:.0f} s", flush=True)
        if part not in BULK:
            one_by_one(part, attacks[part], seconds, record)
            return
        dice, end = Random(f"{seed} {part}"), time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0 and record.lost_by(part) < MOST_LOST:
            in_bulk(part, lab, dice, left, record)

    with ThreadPoolExecutor(WORKERS) as pool:
        list(pool.map(attack, waiting))
    if left := processes_of(root):
        record.add("kills", 1, "", f"processes are left: {left}")
    for number in left:
        with suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)
    if not record.lost:
        shutil.rmtree(root)
    if "faults" in parts:
        hit = faults.hit_sites(record.path.read_text())
        missed = faults.known_sites() - hit
        print(
            f"writes that no attack in {record.path.name} has hit: {len(missed)}",
            *sorted(missed),
            sep="\n  ",
        )
    print(f"\n{summary(record.path)}")
    return 1 if record.lost else 0


def attacks_of(lab: Lab, earlier: str) -> dict[str, Attack]:
    """The kinds of attacks on whole commands, by part.

    Args:
        earlier: The record of earlier campaigns, which decides what is attacked first.
    """
    return {
        "kills": partial(kills.kills, lab),
        "together": partial(kills.together, lab),
        "faults": faults.Faults(lab, Random(0), earlier).attack,
        "tracking": partial(servers.tracking, lab),
        "storage": partial(servers.storage, lab),
        "commands": partial(words.commands, lab),
    }
