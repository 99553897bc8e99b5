"""Jobs: commands to attack, how each is continued, and the results that it must leave."""

import hashlib
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from tests.chaos.logs import PROMPT, NotSurvivedError, check_error, has_crashed, log_of
from tests.conftest import QUICK, ROOT, command, create_store
from tests.portraits import folder as photographs

ATTEMPTS = 5  # of the command after an attack; see `Lab.finish`
PATIENCE = 180.0  # seconds after which a command counts as hung; it normally takes a few
ORPHANED = 1.0  # seconds after which a worker has noticed that its parent was killed
GONE_AFTER = 45.0  # seconds within which the processes of a killed command must end
MARK = "CHAOS"  # environment variable that all processes of an attack have
TIMES = ("round_seconds", "train_seconds")
COMPLETE = "checkpoint_bytes"  # metric of a round that is complete
FINGERPRINT = "weight_loss.fingerprint"
Results = dict[str, str]


@dataclass(frozen=True)
class Job:
    """A command, the files that it needs, and what it leaves whatever happens to it."""

    name: str
    words: tuple[str, ...]
    results: Callable[[Path], Results]
    needs: Callable[[Path, "Lab"], None] = lambda folder, lab: None
    resumes: bool = False  # continues its experiments after their last complete rounds

    def next_words(self, folder: Path) -> tuple[str, ...]:
        """The command that starts or continues it; empty if `run` has finished."""
        if self.name == "run" and (unfinished := _resumable(folder)):
            return ("run", f"--resume={unfinished}")
        if self.name == "run" and _query(folder, "mlflow.db", f"{FINISHED} LIMIT 1"):
            return ()
        return self.words


def _query(folder: Path, file: str, text: str) -> list[tuple[str, ...]]:
    if not (folder / file).exists():
        return []
    address = f"file:{folder / file}?mode=rw"
    with closing(sqlite3.connect(address, uri=True, timeout=30)) as database:
        return [tuple(map(str, row)) for row in database.execute(text)]


RUNS = "FROM runs WHERE lifecycle_stage = 'active'"
FINISHED = f"SELECT run_uuid {RUNS} AND status = 'FINISHED'"


def _resumable(folder: Path) -> str:
    """Id of the newest unfinished run that has a config, or ""."""
    found = _query(
        folder,
        "mlflow.db",
        f"SELECT run_uuid, artifact_uri {RUNS} AND status != 'FINISHED' ORDER BY start_time DESC",
    )
    for run_id, place in found:
        if (_artifacts(folder, place) / "config.json").exists():
            return run_id
    return ""


def _artifacts(folder: Path, place: str) -> Path:
    """The folder of a run's artifacts; a server has them below its own."""
    return folder / place.removeprefix("file://").replace(
        "mlflow-artifacts:", f"{folder}/artifacts"
    )


def results_of_runs(folder: Path) -> Results:
    """Metrics and checkpoints of the finished experiments, by fingerprint."""
    results = {}
    for run_id, place, key in _query(
        folder,
        "mlflow.db",
        f"""SELECT runs.run_uuid, artifact_uri, value FROM runs JOIN tags USING (run_uuid)
            WHERE key = '{FINGERPRINT}' AND lifecycle_stage = 'active' AND status = 'FINISHED'""",
    ):
        if key in results:
            raise NotSurvivedError(f"done twice: two finished runs with fingerprint {key}")
        metrics = _query(
            folder,
            "mlflow.db",
            f"SELECT key, step, value FROM metrics WHERE run_uuid = '{run_id}' ORDER BY 1, 2, 3",
        )
        digest = hashlib.sha256(repr([row for row in metrics if row[0] not in TIMES]).encode())
        for path in sorted((_artifacts(folder, place) / "checkpoints").glob("*.safetensors")):
            digest.update(path.name.encode() + path.read_bytes())
        results[key] = digest.hexdigest()
    return results


def results_of_search(folder: Path) -> Results:
    """How many trials each study has completed; which ones depends on who was first."""
    states = _query(
        folder,
        "optuna.db",
        "SELECT study_name, state FROM trials JOIN studies USING (study_id)",
    )
    if unfinished := [each for each in states if each[1] in ("RUNNING", "WAITING")]:
        raise NotSurvivedError(f"trials without an end: {unfinished}")
    done = Counter(name for name, state in states if state == "COMPLETE")
    finished = _query(folder, "mlflow.db", f"{FINISHED} AND name LIKE '% trial %'")
    return {name: str(count) for name, count in done.items()} | {"runs": str(len(finished))}


def results_of_files(*names: str) -> Callable[[Path], Results]:
    """The content of all visible files in some folders, without stamps."""

    def read(folder: Path) -> Results:
        results = {}
        for path in sorted(path for name in names for path in (folder / name).rglob("*")):
            parts = path.relative_to(folder).parts
            if path.is_file() and not any(part[0] == "." for part in parts):
                content = path.read_bytes().replace(str(folder).encode(), b"")
                content = re.sub(rb'"stamp":\[[^]]*\]|\t[0-9a-f]{8}$', b"", content, flags=re.M)
                results["/".join(parts)] = hashlib.sha256(content).hexdigest()
        return results

    return read


def _photographs(folder: Path, lab: "Lab") -> None:
    shutil.copytree(lab.photographs, folder / "source")


def _checkpoints(folder: Path, lab: "Lab") -> None:
    (found,) = lab.place("run").glob("mlruns/*/*/artifacts/checkpoints")
    shutil.copytree(found, folder / "checkpoints")


def need_files(folder: Path, lab: "Lab") -> None:
    """Put photographs and checkpoints into a folder."""
    _photographs(folder, lab)
    _checkpoints(folder, lab)


SEARCH = {name: value for name, value in QUICK.items() if name not in ("rounds", "lr")} | {
    "trials": 4,
    "workers": 2,
    "confirm_seeds": 0,
    "epochs": 1,
    "retrain_epochs": 1,
    "target_sparsity": 0.7,
    "search": "prune_rate=0.3..0.6",
}
JOBS = {
    job.name: job
    for job in (
        Job("run", ("run", *command(rounds=3)), results_of_runs, resumes=True),
        Job(
            "compare",
            ("compare", *command(seeds=2, reinits="keep,lottery", baselines="none", workers=2)),
            results_of_runs,
            resumes=True,
        ),
        Job(
            "tune",
            ("tune", *(f"--{name}={value}" for name, value in SEARCH.items())),
            results_of_search,
        ),
        Job(
            "prepare_faces",
            ("prepare_faces", "--source=source", "--out=out"),
            results_of_files("out"),
            _photographs,
        ),
        Job(
            "export",
            (
                *("export", "--run=checkpoints", "--round=2", "--out=made"),
                *("--formats=compact,packed", "--values=shared", "--shared_epochs=1"),
            ),
            results_of_files("made"),
            _checkpoints,
        ),
    )
}


@dataclass
class Lab:
    """Folders to attack commands in, and what the same commands leave undisturbed.

    Args:
        root: An empty folder.
    """

    root: Path
    expected: dict[str, Results] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)  # that a job takes undisturbed

    def __post_init__(self) -> None:
        (self.root / "undisturbed").mkdir()
        self.photographs = photographs(self.root / "photographs", ann=4, bob=4)
        create_store(self.root / "empty.db")

    def measure(self, names: list[str]) -> None:
        """Run some jobs undisturbed, "run" always: others need what it makes."""
        for name in dict.fromkeys(["run", *names]):
            job, folder = JOBS[name], self.place(name)
            self.fill(folder, job)
            began = time.monotonic()
            process = self.start(job.words, folder)
            if self.wait(process):
                raise RuntimeError(f"{name} fails undisturbed:\n{log_of(folder)}")
            self.seconds[name] = time.monotonic() - began
            self.expected[name] = job.results(folder)
            if not self.expected[name]:
                raise RuntimeError(f"{name} leaves nothing:\n{log_of(folder)}")

    def place(self, name: str) -> Path:
        """The folder of the undisturbed job."""
        return self.root / "undisturbed" / name

    def fill(self, folder: Path, job: Job) -> None:
        """Make the folder of a job with what it needs."""
        (folder / "tmp").mkdir(parents=True)
        shutil.copy(self.root / "empty.db", folder / "mlflow.db")
        job.needs(folder, self)

    @contextmanager
    def folder(self, job: Job, dice: Random) -> Iterator[Path]:
        """A folder for one attack, which stays if that fails."""
        folder = self.root / f"{job.name}-{dice.getrandbits(48):012x}"
        self.fill(folder, job)
        yield folder
        shutil.rmtree(folder)

    def environment(self, folder: Path) -> dict[str, str]:
        """Variables of the processes of an attack."""
        return {
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "TMPDIR": str(folder / "tmp"),
            "TORCHINDUCTOR_CACHE_DIR": str(folder / "tmp/inductor"),  # torch also sets it itself
            "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}",
            "MLFLOW_EXPERIMENT_NAME": "chaos",  # new, so with artifacts below the folder
            "HOME": str(folder / "tmp"),
            MARK: str(folder),
        }

    def start(self, words: tuple[str, ...], folder: Path, **more: str) -> "subprocess.Popen[bytes]":
        """Start a command; what it prints goes to the folder's log."""
        with (folder / "log").open("ab") as log:
            log.write(f"{PROMPT}{' '.join(words)}\n".encode())
            log.flush()
            return subprocess.Popen(
                [sys.executable, "-m", "experiments", *words],
                cwd=folder,
                env=os.environ | self.environment(folder) | more,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def wait(self, process: "subprocess.Popen[bytes]") -> int:
        """The exit status of a command."""
        try:
            return process.wait(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise NotSurvivedError(f"it has not ended after {PATIENCE:g} s") from None

    def check_gone(self, folder: Path) -> None:
        """Check that all processes of an attack end within `GONE_AFTER`."""
        deadline = time.monotonic() + GONE_AFTER
        while left := processes_of(folder):
            if time.monotonic() > deadline:
                for number in left:
                    with suppress(ProcessLookupError):
                        os.kill(number, signal.SIGKILL)
                raise NotSurvivedError(f"processes go on working: {left}")
            time.sleep(0.2)

    def finish(self, job: Job, folder: Path, succeeded: bool = False, **more: str) -> None:
        """Repeat the command until it succeeds, and check that it leaves what it should.

        It may fail only if it met processes that a killed command had left.

        Args:
            succeeded: Whether the attacked command did, so that nothing is left to repeat.
        """
        if succeeded:
            self.check_gone(folder)
            self.check_results(job, folder)
        begun = started_runs(folder) if job.resumes else set()
        for _ in range(ATTEMPTS):
            words, left = job.next_words(folder), processes_of(folder)
            status = self.wait(self.start(words, folder, **more)) if words else 0
            check_error(folder, status)
            if not status:
                break
            if not left:
                raise NotSurvivedError(f"the same command fails with status {status}")
        else:
            raise NotSurvivedError(
                f"it still fails after {ATTEMPTS} attempts, with status {status}"
            )
        self.check_gone(folder)
        if has_crashed(folder):
            raise NotSurvivedError("a traceback is in the log")
        self.check_results(job, folder)
        finished = {run_id for (run_id,) in _query(folder, "mlflow.db", FINISHED)}
        if lost := begun - finished:
            raise NotSurvivedError(f"complete rounds of these runs are lost: {lost}")

    def check_results(self, job: Job, folder: Path) -> None:
        """Check that each result is there, exactly once, and that no run is RUNNING."""
        found = job.results(folder)
        if found != self.expected[job.name]:
            names = sorted(found.items() ^ self.expected[job.name].items())
            raise NotSurvivedError(f"the results differ: {json.dumps(names)[:1000]}")
        self.check_ended(folder)

    def check_none_began(self, folder: Path, killed: float) -> None:
        """Check that no run began after the command's main process was killed."""
        late = int(1000 * (killed + ORPHANED))
        if found := _query(folder, "mlflow.db", f"SELECT name {RUNS} AND start_time > {late}"):
            raise NotSurvivedError(f"began after the kill: {found}")

    def check_ended(self, folder: Path) -> None:
        """Check that no run is marked RUNNING."""
        running = f"SELECT run_uuid, name {RUNS} AND status = 'RUNNING'"
        if found := _query(folder, "mlflow.db", running):
            raise NotSurvivedError(f"still marked RUNNING: {found}")


def started_runs(folder: Path) -> set[str]:
    """The runs of experiments that have complete rounds, whatever their status."""
    text = f"""SELECT DISTINCT run_uuid FROM metrics JOIN runs USING (run_uuid)
        WHERE metrics.key = '{COMPLETE}' AND lifecycle_stage = 'active'"""
    return {run_id for (run_id,) in _query(folder, "mlflow.db", text)}


def processes_of(folder: Path) -> list[int]:
    """The processes of the attacks in a folder, or below it, that are alive."""
    mark, found = f"{MARK}={folder}".encode(), []
    for place in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            words = (place / "environ").read_bytes().split(b"\0")
            if any(word == mark or word.startswith(mark + b"/") for word in words):
                found.append(int(place.name))
    return found
