"""Servers: a tracking server and PostgreSQL that die, hang, or answer with errors and garbage."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from random import Random

from tests.chaos.jobs import JOBS, Job, Lab, NotSurvivedError, log_of
from tests.postgres import Postgres, binaries, free_port

MOODS = ("refuses", "hangs", "is slow", "answers 500", "answers garbage", "cuts answers")
GARBAGE = b"HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\nnot a JSON {"
BROKEN = b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
PATIENT = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "5"}


class Proxy:
    """Forwards connections to a server, or misbehaves as its mode says."""

    def __init__(self, target: int) -> None:
        self.target, self.mode = target, ""
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = int(self.socket.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):  # it is closed
            while True:
                connection, _ = self.socket.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        mode = self.mode
        with closing(client), suppress(OSError):
            if mode == "refuses":
                return
            if mode == "hangs":
                time.sleep(8)
                return
            if mode in ("answers 500", "answers garbage"):
                client.recv(65536)
                client.sendall(BROKEN if mode == "answers 500" else GARBAGE)
                return
            with socket.create_connection(("127.0.0.1", self.target)) as server:
                back = threading.Thread(target=self._pass, args=(server, client, mode), daemon=True)
                back.start()
                self._pass(client, server, "")
                back.join(10)

    def _pass(self, source: socket.socket, target: socket.socket, mode: str) -> None:
        with suppress(OSError):
            while content := source.recv(65536):
                if mode == "is slow":
                    time.sleep(0.3)
                if mode == "cuts answers":
                    target.sendall(content[: len(content) // 2])
                    break
                target.sendall(content)
        with suppress(OSError):
            target.shutdown(socket.SHUT_WR)


@contextmanager
def tracking_server(folder: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """MLflow's server on a database and artifacts in a folder."""
    argv = [
        *(sys.executable, "-m", "mlflow", "server", "--host=127.0.0.1", f"--port={port}"),
        *("--workers=1", f"--backend-store-uri=sqlite:///{folder}/mlflow.db"),
        f"--artifacts-destination={folder}/artifacts",
    ]
    with (folder / "server.log").open("ab") as log:
        process = subprocess.Popen(argv, cwd=folder, stdout=log, stderr=log, start_new_session=True)
    try:
        for _ in range(300):
            with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health"):
                break
            time.sleep(0.2)
        else:
            raise RuntimeError("the tracking server does not start")
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def tracking(lab: Lab, dice: Random) -> Iterator[str]:
    """The tracking server misbehaves for a while, or is killed and comes back."""
    while True:
        job = JOBS[dice.choice(("run", "compare"))]
        what = dice.choice((*MOODS, "is killed"))
        instant = dice.random() * 1.2 * lab.seconds[job.name]
        duration = dice.choice((1, 4, 10)) * dice.random()
        with lab.folder(job, dice) as folder:
            port = free_port()
            proxy = Proxy(port)
            more = PATIENT | {"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{proxy.port}"}
            described = f"{job.name}, the server {what} from {instant:.1f} s for {duration:.1f} s"
            try:
                _misbehave(lab, job, folder, proxy, more, what, instant, duration)
            except NotSurvivedError as error:
                raise NotSurvivedError(f"{described}: {error}") from None
            finally:
                proxy.socket.close()
        yield described


def _misbehave(
    lab: Lab,
    job: Job,
    folder: Path,
    proxy: Proxy,
    more: dict[str, str],
    what: str,
    instant: float,
    duration: float,
) -> None:
    with tracking_server(folder, proxy.target):
        process = lab.start(job.words, folder, **more)
        time.sleep(instant)
        if what != "is killed":
            proxy.mode = what
            time.sleep(duration)
            proxy.mode = ""
            lab.wait(process)
    if what == "is killed":
        time.sleep(duration)
    with tracking_server(folder, proxy.target):
        status = lab.wait(process)
        if status not in (0, 2):
            raise NotSurvivedError(f"it ended with status {status}: {log_of(folder)[-1000:]}")
        lab.finish(job, folder, **more)


def storage(lab: Lab, dice: Random) -> Iterator[str]:
    """PostgreSQL is stopped in the middle of a search, and comes back."""
    found, job = binaries(), JOBS["tune"]
    while found:
        instant = dice.random() * 1.2 * lab.seconds["tune"]
        duration = dice.choice((0, 3, 10)) * dice.random()
        place = Path(tempfile.mkdtemp(dir="/tmp"))  # a folder that PostgreSQL's user can enter
        with lab.folder(job, dice) as folder:
            server = Postgres(place, found)
            server.start()
            words = (*job.words, f"--storage={server.url('optuna')}")
            try:
                process = lab.start(words, folder)
                time.sleep(instant)
                server.stop()
                time.sleep(duration)
                server.start()
                statuses = [lab.wait(process)]
                while statuses[-1] and len(statuses) < 5:
                    statuses.append(lab.wait(lab.start(words, folder)))
                lab.check_gone(folder)
                trials = _states(server)
                if statuses[-1] or "Traceback" in log_of(folder):
                    raise NotSurvivedError(f"it ended with {statuses}: {log_of(folder)[-1000:]}")
                if trials.count("COMPLETE") != 4 or {"RUNNING", "WAITING"} & {*trials}:
                    raise NotSurvivedError(f"its trials are {trials}")
                lab.check_ended(folder)
            finally:
                server.stop()
                shutil.rmtree(place, ignore_errors=True)
        yield f"tune, PostgreSQL away from {instant:.1f} s for {duration:.1f} s: {statuses}"


def _states(server: Postgres) -> list[str]:
    from sqlalchemy import create_engine, text

    engine = create_engine(f"postgresql+psycopg://postgres@127.0.0.1:{server.port}/optuna")
    with engine.connect() as connection:
        return [row[0] for row in connection.execute(text("SELECT state::text FROM trials"))]
