"""Terminal: what users read there: lines as they come, tables, and errors on one line."""

import errno
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path

from experiments.processes.secrets import redact

Echo = Callable[[str], None]  # takes a line for the user

DISK_FULL = "the disk is full"  # how the line that says so begins
DISK_FULL_TEXTS = (  # in errors without a number: of copies of folders, servers and SQLite
    "No space left on device",
    "Disk quota exceeded",
    "database or disk is full",
)
MOST_ERROR_CHARS = 1500  # longer errors are truncated
MOST_FREE = 1 << 20  # bytes of a disk that counts as full

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def print_line(text: str) -> None:
    """Print a line at once, above a progress bar if there is one; see `printable`."""
    from tqdm import tqdm  # only commands that work print lines

    tqdm.write("\n".join(map(printable, text.split("\n"))))
    sys.stdout.flush()


def table_text(columns: Mapping[str, Iterable[object]]) -> str:
    """A table as text, from headers of one or more lines to the values below them.

    Values are aligned on the right, and those of a first column of words on the left.
    """
    heads = [head.split("\n") for head in columns]
    height = max(map(len, heads))
    cells = [
        [""] * (height - len(head)) + head + [printable(str(value)) for value in values]
        for head, values in zip(heads, columns.values(), strict=True)
    ]
    widths = [max(map(len, column)) for column in cells]
    words = not cells[0][-1].isdecimal()
    lines = []
    for first, *others in zip(*cells, strict=True):
        start = first.ljust(widths[0]) if words else first.rjust(widths[0])
        rest = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([start, *rest]).rstrip())
    return "\n".join(lines)


def did_you_mean(given: str, names: Iterable[str]) -> str:
    """A hint for an error message, such as " (did you mean lottery?)"; "" if no name is near."""
    near = get_close_matches(given.lower(), names, 1)
    return f" (did you mean {near[0]}?)" if near else ""


def is_user_error(error: BaseException) -> bool:
    """Whether an error is one that the user can act on, rather than a bug.

    MLflow's errors are recognised by name, so that MLflow need not be imported.
    """
    if isinstance(error, ValueError | OSError | MemoryError) or _is_disk_full(error):
        return True
    if isinstance(error, RuntimeError):  # PyTorch raises one when it runs out of memory
        return "memory" in describe_error(error)
    return any(kind.__name__ == "MlflowException" for kind in type(error).__mro__)


def describe_error(error: BaseException) -> str:
    """What went wrong, on one line, without passwords or control characters."""
    text = printable(redact(_described(error)[: 10 * MOST_ERROR_CHARS]))  # redact is quadratic
    return text if len(text) <= MOST_ERROR_CHARS else f"{text[:MOST_ERROR_CHARS]}..."


def printable(text: str) -> str:
    """The text with control characters escaped, since a terminal would act on them."""
    return _CONTROL.sub(lambda found: repr(found[0])[1:-1], text)


def _described(error: BaseException) -> str:
    name = isinstance(error, OSError) and (error.filename2 or error.filename)
    text = str(error)
    if isinstance(error, shutil.Error) and isinstance(error.args[0], list):  # of a copied folder
        _, name, why = error.args[0][0]  # the first file that could not be copied
        text = f"{name} cannot be written: {why}"
    if _is_disk_full(error):
        name = name or _full_folder()
        where = f", nothing can be written to {name}" if name else ""
        return f"{DISK_FULL}{where}: free some space, then try again"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {name}" if name else error.strerror
    if "allocate" in text or isinstance(error, MemoryError):
        return "out of memory: use a smaller model or batch_size, or another device"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    # SQLAlchemy repeats the error before this one, in parentheses.
    own = [line for line in lines if not line.startswith("(raised as a result of")]
    return own[0] if own else type(error).__name__


def _full_folder() -> str:
    """The working folder, if there is no room in it; a database does not say where it is."""
    with suppress(OSError):
        if shutil.disk_usage(folder := Path.cwd()).free < MOST_FREE:
            return str(folder)
    return ""


def _is_disk_full(error: BaseException) -> bool:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return any(text in str(error) for text in DISK_FULL_TEXTS)
