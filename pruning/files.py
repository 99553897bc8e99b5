"""Files: read at once and written whole, so that nobody ever sees half of one."""

import os
import stat
from pathlib import Path

MOST_BYTES = 1 << 34  # of a file that is read at once


def read_whole(path: str | os.PathLike[str], most_bytes: int = MOST_BYTES) -> bytes:
    """The content of a regular file.

    What is checked in it cannot change afterwards, as it could in a file that is mapped to memory.

    Raises:
        OSError: If it cannot be read, or there is no such file.
        ValueError: If it is a pipe, a device or a folder, or has more bytes.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe without a writer blocks
    try:
        about = os.fstat(descriptor)
        if not stat.S_ISREG(about.st_mode):
            raise ValueError(f"{path} is not a regular file")
        if about.st_size > most_bytes:
            raise ValueError(f"{path} has more than {most_bytes:,} bytes")
        with open(descriptor, "rb", closefd=False) as file:
            return file.read(about.st_size)
    finally:
        os.close(descriptor)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that is either complete or missing, even after a power failure.

    Raises:
        OSError: If it cannot be written; the error names `path`.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        partial.unlink(missing_ok=True)
