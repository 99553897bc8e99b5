"""A PostgreSQL server for a single test, which can stop and start it."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

# Fast rather than safe: none of the data are kept.
SETTINGS = ("fsync=off", "full_page_writes=off", "listen_addresses=127.0.0.1")


def binaries() -> Path | None:
    """The folder of Debian's newest PostgreSQL, or of the one on the path."""
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    found = str(debian[-1]) if debian else shutil.which("initdb")
    return Path(found).parent if found else None


def free_port() -> int:
    """A TCP port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Postgres:
    """A server in a folder, listening on a port of its own; `start` and `stop` at will."""

    def __init__(self, folder: Path, bin_folder: Path) -> None:
        self.folder, self.bin, self.port = folder, bin_folder, free_port()
        # PostgreSQL refuses to run as root.
        self.user = {"user": "postgres", "group": "postgres"} if os.geteuid() == 0 else {}
        if self.user:
            shutil.chown(folder, "postgres", "postgres")
        self.run("initdb", "-D", str(folder / "data"), "-U", "postgres", "-A", "trust", "-N")
        self.process: subprocess.Popen[bytes] | None = None

    def run(self, name: str, *words: str) -> None:
        """Run one of PostgreSQL's programs."""
        argv = [str(self.bin / name), *words]
        subprocess.run(argv, cwd=self.folder, check=True, capture_output=True, **self.user)

    def start(self) -> None:
        """Start it, and wait until it answers."""
        settings = [word for setting in SETTINGS for word in ("-c", setting)]
        argv = [str(self.bin / "postgres"), "-D", "data", "-p", str(self.port), "-k", "", *settings]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                argv, cwd=self.folder, stdout=log, stderr=log, **self.user
            )
        for _ in range(300):
            argv = [str(self.bin / "pg_isready"), "-h", "127.0.0.1", "-p", str(self.port)]
            if subprocess.run(argv, capture_output=True).returncode == 0:
                return
            time.sleep(0.1)
        raise AssertionError((self.folder / "log").read_text())

    def stop(self) -> None:
        """Stop it at once, even if clients are connected."""
        if self.process:
            self.process.send_signal(signal.SIGINT)
            self.process.wait(timeout=30)
            self.process = None

    def url(self, database: str) -> str:
        """The address of a database, which this creates."""
        argv = ("-h", "127.0.0.1", "-p", str(self.port), "-U", "postgres", database)
        self.run("createdb", *argv)
        return f"postgresql+psycopg://postgres@127.0.0.1:{self.port}/{database}"


@contextmanager
def postgres() -> Iterator[Postgres]:
    """A running server; the test is skipped where there is no PostgreSQL."""
    bin_folder = binaries()
    if bin_folder is None:
        pytest.skip("needs PostgreSQL (Debian's package postgresql)")
    # Not pytest's folder, which only its owner may enter.
    with tempfile.TemporaryDirectory() as folder:
        server = Postgres(Path(folder), bin_folder)
        server.start()
        try:
            yield server
        finally:
            server.stop()
