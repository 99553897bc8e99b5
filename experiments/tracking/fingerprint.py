"""Fingerprint: are two experiments the same, so that one need not be done again?

They are if the settings, the data, the device's kind and the code that decides the result are the
same; where the data lie, who runs it and how it is shown have no part in it.
"""

import hashlib
import json
from functools import cache
from pathlib import Path

from experiments.config.experiment import Resolved
from experiments.config.fields import NONE
from experiments.tracking.environment import release

FINGERPRINT = "fingerprint"  # the tag of a run
ROOT = Path(__file__).resolve().parents[2]
# Of experiments/, what rounds.py works with; what the config's files do is in the settings.
RESULT_FILES = (
    *("rounds/data", "rounds/plan", "rounds/rounds", "tracking/branch", "training/__init__"),
    *("training/gradients", "training/loop", "training/optimizers", "training/schedules"),
)
VERSIONS = ("torch", "numpy")


def fingerprint(config: Resolved, data_digest: str, threads: int) -> str:
    """32 hexadecimal digits that two experiments share if their results are to be the same.

    Args:
        data_digest: Of the splits (`Splits.digest`).
        threads: Of the process; they decide in which order sums are taken.
    """
    said = config.settings() | {
        "pretrained": pretrained_digest(config),
        "threads": threads,
        "device": config.device,
        "data": data_digest,
        "code": code_digest(),
        "versions": [release(name) for name in VERSIONS],
    }
    return _digest(json.dumps(said, sort_keys=True).encode())


@cache
def code_digest() -> str:
    """Digest of the code that decides results, committed or not."""
    files = [ROOT / "experiments" / f"{name}.py" for name in RESULT_FILES]
    for folder in ("pruning", "models", "datasets"):
        files += sorted((ROOT / folder).rglob("*.py"))
    return _digest(
        b"".join(path.relative_to(ROOT).as_posix().encode() + path.read_bytes() for path in files)
    )


def pretrained_digest(config: Resolved) -> str:
    """SHA-256 of the file of published values, or "none"."""
    if config.pretrained == NONE:
        return NONE
    with Path(config.pretrained).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()
