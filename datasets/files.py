"""Files: written whole or not at all, and named so that any system takes it."""

import hashlib
import os
import re
from pathlib import Path

LONGEST = 100  # bytes of a name


def write_whole(path: Path, content: bytes) -> None:
    """All of it or nothing, whenever the process ends.

    Raises:
        OSError: If it cannot be written; names the file.
    """
    partial = path.with_name(".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(content)
        partial.replace(path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


def text_of(path: Path | str) -> str:
    """A path as one line of text, with "/" between its parts; different ones stay different.

    What is no text, or would end the line, is written as a backslash and its code.
    """
    content = os.fsencode(path).replace(b"\\", rb"\\")
    text = content.decode("utf-8", "backslashreplace").replace(os.sep, "/")
    return re.sub(r"[\x00-\x1f\x7f\x85\u2028\u2029]", lambda found: _escape(found[0]), text)


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode()


def file_name(text: str) -> str:
    """A text as the name of a file: itself if it is short, or else its beginning and a digest."""
    content = text.encode()
    if len(content) <= LONGEST:
        return text
    digest = hashlib.blake2b(content, digest_size=4).hexdigest()
    return f"{content[:LONGEST].decode(errors='ignore')}~{digest}"
