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

from tests.chaos.jobs import JOBS, Job, Lab
from tests.chaos.logs import NotSurvivedError, check_error, has_crashed, has_failures, log_of
from tests.postgres import Postgres, binaries, free_port

MOODS = (
    *("refuses", "hangs", "is slow"),
    *("answers 500", "answers garbage", "cuts answers", "loses answers"),
)
GARBAGE = b"HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\nnot a JSON {"
BROKEN = b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
HANGS = 8.0  # seconds before a server that hangs closes the connection
PATIENT = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "5"}


class Proxy:
    """Forwards connections to a server, or misbehaves as its mood says.

    Clients keep connections open, so the mood is looked at whenever something arrives.
    """

    def __init__(self, target: int) -> None:
        self.target, self.mood = target, ""
        self.met = 0  # how often a client has met a mood
        self.open: set[socket.socket] = set()  # connections of clients
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = int(self.socket.getsockname()[1])
        self._listen()

    def _listen(self) -> None:
        threading.Thread(target=self._accept, args=(self.socket,), daemon=True).start()

    def change(self, mood: str) -> None:
        """Behave in another way; "" is as the server does."""
        before, self.mood = self.mood, mood
        if mood == "refuses":
            with suppress(OSError):
                self.socket.shutdown(socket.SHUT_RDWR)  # ends `accept`, which close() would not
            self.socket.close()
            self.met += 1  # a refused connection is seen by nobody here
            for connection in [*self.open]:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        elif before == "refuses":
            self.socket = socket.create_server(("127.0.0.1", self.port))
            self._listen()

    def close(self) -> None:
        """Accept no more connections."""
        self.socket.close()

    def _accept(self, listening: socket.socket) -> None:
        with suppress(OSError):  # it is closed
            while True:
                connection, _ = listening.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        self.open.add(client)
        with closing(client), suppress(OSError):
            server: socket.socket | None = None
            while content := client.recv(65536):
                mood = self.mood
                self.met += bool(mood)
                if mood in ("hangs", "answers 500", "answers garbage"):
                    if mood == "hangs":
                        time.sleep(HANGS)
                    else:
                        client.sendall(BROKEN if mood == "answers 500" else GARBAGE)
                    break
                if not server:
                    server = socket.create_connection(("127.0.0.1", self.target))
                    args = (server, client)
                    threading.Thread(target=self._answer, args=args, daemon=True).start()
                server.sendall(content)
            if server:
                with suppress(OSError):
                    server.shutdown(socket.SHUT_RDWR)
        self.open.discard(client)

    def _answer(self, server: socket.socket, client: socket.socket) -> None:
        with closing(server), suppress(OSError):
            while content := server.recv(65536):
                if self.mood == "is slow":
                    time.sleep(0.3)
                if self.mood == "loses answers":
                    break
                if self.mood == "cuts answers":
                    client.sendall(content[: len(content) // 2])
                    break
                client.sendall(content)
        with suppress(OSError):
            client.shutdown(socket.SHUT_RDWR)


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


def tracking(lab: Lab, dice: Random) -> tuple[int, str]:
    """The tracking server misbehaves for a while, or is killed and comes back."""
    job = JOBS[dice.choice(("run", "compare"))]
    mood = dice.choice((*MOODS, "is killed"))
    instant = dice.random() * 1.2 * lab.seconds[job.name]
    duration = dice.choice((1, 4, 10)) * dice.random()
    described = f"{job.name}, the server {mood} from {instant:.1f} s for {duration:.1f} s"
    with lab.folder(job, dice) as folder:
        proxy = Proxy(free_port())
        more = PATIENT | {"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{proxy.port}"}
        try:
            met = _misbehave(lab, job, folder, proxy, more, mood, instant, duration)
        except NotSurvivedError as error:
            raise NotSurvivedError(f"{described}: {error}") from None
        finally:
            proxy.close()
    return int(met), described + ("" if met else ", which it did not notice")


def _misbehave(
    lab: Lab,
    job: Job,
    folder: Path,
    proxy: Proxy,
    more: dict[str, str],
    mood: str,
    instant: float,
    duration: float,
) -> bool:
    """Whether the command met the mood."""
    with tracking_server(folder, proxy.target):
        process = lab.start(job.words, folder, **more)
        time.sleep(instant)
        worked = process.poll() is None
        if mood != "is killed":
            proxy.change(mood)
            time.sleep(duration)
            proxy.change("")
            lab.wait(process)
    if mood == "is killed":
        time.sleep(duration)
    with tracking_server(folder, proxy.target):
        status = lab.wait(process)
        if status not in (0, 2):
            raise NotSurvivedError(f"it ended with status {status}: {log_of(folder)[-1000:]}")
        check_error(folder, status)
        succeeded = status == 0 and not has_failures(folder)
        lab.finish(job, folder, succeeded, **more)
    return worked and (mood == "is killed" or proxy.met > 0)


def storage(lab: Lab, dice: Random) -> tuple[int, str]:
    """PostgreSQL is stopped in the middle of a search, and comes back."""
    found, job = binaries(), JOBS["tune"]
    assert found, "there is no PostgreSQL on this machine"
    instant = dice.random() * 1.2 * lab.seconds["tune"]
    duration = dice.choice((0, 3, 10)) * dice.random()
    what = f"tune, PostgreSQL away from {instant:.1f} s for {duration:.1f} s"
    place = Path(tempfile.mkdtemp(dir="/tmp"))  # a folder that PostgreSQL's user can enter
    with lab.folder(job, dice) as folder:
        server = Postgres(place, found)
        server.start()
        words = (*job.words, f"--storage={server.url('optuna')}")
        try:
            process = lab.start(words, folder)
            time.sleep(instant)
            worked = process.poll() is None
            server.stop()
            time.sleep(duration)
            server.start()
            statuses = [lab.wait(process)]
            check_error(folder, statuses[0])
            if statuses[0]:
                statuses.append(lab.wait(lab.start(words, folder)))
                check_error(folder, statuses[1])
            lab.check_gone(folder)
            trials = _states(server)
            if statuses[-1] or has_crashed(folder) or not {*statuses} <= {0, 2}:
                raise NotSurvivedError(f"it ended with {statuses}: {log_of(folder)[-1000:]}")
            if trials.count("COMPLETE") != 4 or {"RUNNING", "WAITING"} & {*trials}:
                raise NotSurvivedError(f"its trials are {trials}")
            lab.check_ended(folder)
        except NotSurvivedError as error:
            raise NotSurvivedError(f"{what}: {error}") from None
        finally:
            server.stop()
            shutil.rmtree(place, ignore_errors=True)
    return int(worked), f"{what}: {statuses}"


def _states(server: Postgres) -> list[str]:
    from sqlalchemy import create_engine, text

    engine = create_engine(f"postgresql+psycopg://postgres@127.0.0.1:{server.port}/optuna")
    with engine.connect() as connection:
        return [row[0] for row in connection.execute(text("SELECT state::text FROM trials"))]
