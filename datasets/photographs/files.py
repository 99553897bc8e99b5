"""Files: the photographs of a folder, portable names, and atomic writes."""

import hashlib
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from datasets.splits import DataUnavailableError

# .heic and .heif cannot be decoded; they are listed so that they are reported as unreadable.
SUFFIXES = (
    *(".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".pgm", ".ppm", ".pnm", ".tif", ".tiff"),
    *(".gif", ".avif", ".heic", ".heif"),
)
LONGEST_NAME = 100  # bytes
MOST_BYTES = 1 << 34  # of a file that is read at once
_FORMULA = re.compile(r"'*[=+\-@\t\r]")  # a cell that a spreadsheet computes, or that was escaped
NO_CLASS = "(no class)"  # in counts and file names: photographs outside class folders


@dataclass(frozen=True)
class Photograph:
    """A file that should be a picture; `label` is "" if it is not in a class folder."""

    source: str  # path relative to the folder of class folders, with "/" as separator
    label: str
    path: Path
    stamp: tuple[int, ...]  # changes when the file is modified, moved or replaced


def find_photographs(source: Path) -> list[Photograph]:
    """All photographs below a folder, sorted by path; hidden files and folders are skipped.

    Raises:
        DataUnavailableError: If it is not a folder, has no photographs, or has no class folders.
    """
    if not source.is_dir():
        raise DataUnavailableError(f"{source} is not a folder of class folders of photographs")
    photographs = [_photograph(path, source) for path in _picture_files(source)]
    if any(photograph.label == NO_CLASS for photograph in photographs):
        raise DataUnavailableError(f"{source}/{NO_CLASS} has a reserved name: rename this folder")
    if not photographs:
        raise DataUnavailableError(f"{source} has no photographs ({', '.join(SUFFIXES)})")
    if not any(photograph.label for photograph in photographs):
        raise DataUnavailableError(
            f"{source} has photographs but no class folders: put each class in its own folder"
        )
    return sorted(photographs, key=lambda photograph: photograph.source)


def find_pictures(source: Path) -> list[Photograph]:
    """A file, or all photographs below a folder, sorted by path; class folders are not required.

    Raises:
        DataUnavailableError: If it does not exist, or is a folder without photographs.
    """
    if source.is_file():
        return [_photograph(source, source.parent)]
    if not source.is_dir():
        raise DataUnavailableError(f"{source} is not a picture or a folder of pictures")
    pictures = [_photograph(path, source) for path in _picture_files(source)]
    if not pictures:
        raise DataUnavailableError(f"{source} has no pictures ({', '.join(SUFFIXES)})")
    return sorted(pictures, key=lambda picture: picture.source)


def _photograph(path: Path, source: Path) -> Photograph:
    relative = path.relative_to(source)
    status = path.stat() if path.exists() else path.lstat()  # lstat for a broken link
    stamp = status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino
    label = relative.parts[0] if len(relative.parts) > 1 else ""
    return Photograph(path_text(relative), path_text(label), path, stamp)


def _picture_files(source: Path) -> Iterator[Path]:
    """Follows links to folders, but enters no folder twice."""
    seen = set()
    for folder, below, names in os.walk(source, onerror=_raise, followlinks=True):
        status = Path(folder).stat()
        seen.add((status.st_dev, status.st_ino))
        below[:] = [name for name in below if name[0] != "." and not _is_seen(folder, name, seen)]
        paths = (Path(folder, name) for name in names if name[0] != ".")
        yield from (path for path in paths if path.suffix.lower() in SUFFIXES)


def _raise(error: OSError) -> None:
    raise error


def _is_seen(folder: str, name: str, seen: set[tuple[int, int]]) -> bool:
    status = Path(folder, name).stat()
    return (status.st_dev, status.st_ino) in seen


def path_text(path: Path | str) -> str:
    """A path as one line of text with "/" as separator; different paths give different texts.

    Bytes that are not UTF-8 and characters that would end the line become escape sequences.
    """
    content = os.fsencode(path).replace(b"\\", rb"\\")
    text = content.decode("utf-8", "backslashreplace").replace(os.sep, "/")
    ends_line = r"[\x00-\x1f\x7f\x85\u2028\u2029]"
    return re.sub(ends_line, lambda match: match[0].encode("unicode_escape").decode(), text)


def short_name(text: str) -> str:
    """A file name for a text: the text itself if it is short, else its beginning and a digest."""
    content = text.encode()
    if len(content) <= LONGEST_NAME:
        return text
    digest = hashlib.blake2b(content, digest_size=4).hexdigest()
    return f"{content[:LONGEST_NAME].decode(errors='ignore')}~{digest}"


def escape_formula(text: str) -> str:
    """Escape a text for a CSV file, so that no spreadsheet reads it as a formula."""
    return f"'{text}" if _FORMULA.match(text) else text


def unescape_formula(text: str) -> str:
    """Undo `escape_formula`."""
    return text[1:] if text[:1] == "'" and _FORMULA.match(text[1:]) else text


def read_regular_file(path: Path, most_bytes: int = MOST_BYTES) -> bytes:
    """The content of a file in a prepared folder, which may come from someone else.

    Raises:
        FileNotFoundError: If it does not exist.
        DataUnavailableError: If it is not a regular file, or has more than `most_bytes`.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode) or status.st_size > most_bytes:
        raise DataUnavailableError(
            f"{path} is not a regular file of at most {most_bytes:,} bytes: remove it"
        )
    return path.read_bytes()


def write_atomically(path: Path, content: bytes) -> None:
    """Write all of a file or nothing, even if the process is killed.

    Raises:
        OSError: If the file cannot be written; names the file.
    """
    partial = path.with_name(".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.unlink(missing_ok=True)  # it could be a link to another file
        with partial.open("xb") as file:
            file.write(content)
        partial.replace(path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
