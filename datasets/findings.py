"""Findings: what was found in each photograph, kept in a file so that it is looked at once.

One line of JSON a photograph, added as soon as it is known; the last line of several counts.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import StringConstraints, TypeAdapter, ValidationError

from datasets.detection import Face
from datasets.photographs import HASH_SIDE

Hash = Annotated[str, StringConstraints(pattern=rf"^[0-9a-f]{{{HASH_SIDE**2 // 4}}}$")]


@dataclass(frozen=True)
class Facts:
    """What was found in a photograph, whatever is then made of it."""

    source: str
    label: str
    stamp: tuple[int, ...]
    digest: str = ""
    hashes: tuple[Hash, ...] = ()
    width: int = 0
    height: int = 0
    faces: tuple[Face, ...] = ()
    problem: str = ""  # why it is unreadable


_facts = TypeAdapter(Facts)


def read_findings(path: Path) -> dict[str, Facts]:
    """What has been found, by source; a line that an interruption has cut off does not count."""
    if not path.exists():
        return {}
    known = {}
    for line in path.read_bytes().splitlines():
        try:
            facts = _facts.validate_json(line)
        except ValidationError:
            continue  # that photograph is looked at again
        known[facts.source] = facts
    return known


def add_findings(path: Path, found: Iterable[Facts]) -> None:
    """Keep what was found in some more photographs."""
    with path.open("ab") as file:
        file.write(findings_text(found))


def findings_text(found: Iterable[Facts]) -> bytes:
    """The lines of a file; it begins with an empty one, after what may be half a line."""
    return b"\n" + b"".join(_facts.dump_json(facts) + b"\n" for facts in found)
