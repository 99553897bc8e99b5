"""Environment: what must be the same for a repetition to be bit for bit identical."""

import os
import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version

import torch

from experiments.processes.program import CODE_ROOT

VERSIONS = ("torch", "torchvision", "numpy", "numba", "mlflow", "safetensors")
COMMIT = {"git_commit", "git_dirty"}  # of our code; its digest holds the part that counts


def environment(device: str) -> dict[str, str]:
    """Versions, threads, hardware and commit, as tags of a run."""
    commit, changes = _git("rev-parse", "HEAD"), _git("status", "--porcelain")
    return {f"version.{name}": release(name) for name in VERSIONS} | {
        "version.python": platform.python_version(),
        "threads": str(torch.get_num_threads()),
        "processor": torch.cuda.get_device_name() if device == "cuda" else processor_name(),
        "git_commit": commit or "unknown",
        "git_dirty": "unknown" if changes is None else str(bool(changes)).lower(),
    }


def processor_name() -> str:
    """Of the CPU, with its vector instructions and number of cores."""
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}, {os.cpu_count()} cores"


@cache
def _git(*arguments: str) -> str | None:
    if not (CODE_ROOT / ".git").exists():  # a repository around it, if any, is not ours
        return None
    argv = ["git", "-C", str(CODE_ROOT), *arguments]
    try:
        done = subprocess.run(argv, capture_output=True, text=True)
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def release(name: str) -> str:
    """Version of a package, without a build such as +cu132; "none" if it is not installed."""
    try:
        return version(name).partition("+")[0]
    except PackageNotFoundError:
        return "none"
