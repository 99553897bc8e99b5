"""Files: read and written whole, so that no one ever sees half of one."""

import os
import stat
from pathlib import Path

MOST_BYTES = 1 << 34  # larger files are not read


def read_whole(path: str | os.PathLike[str], most_bytes: int = MOST_BYTES) -> bytes:
    """The content of a regular file.

    Unlike a memory-mapped file, the content cannot change after it is checked.

    Raises:
        OSError: If it cannot be read, or there is no such file.
        ValueError: If it is a pipe, a device or a folder, or has more than `most_bytes`.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # opening a pipe would block
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
