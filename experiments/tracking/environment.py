"""Environment: what a bit-identical repetition needs to have the same."""

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import torch

VERSIONS = ("torch", "torchvision", "numpy", "mlflow", "safetensors")


def environment(device: str) -> dict[str, str]:
    """Versions, threads, machine and code, as tags of a run."""
    commit, dirty = _git("rev-parse", "HEAD"), _git("status", "--porcelain")
    return {f"version.{name}": release(name) for name in VERSIONS} | {
        "version.python": platform.python_version(),
        "threads": str(torch.get_num_threads()),
        "processor": torch.cuda.get_device_name() if device == "cuda" else _processor(),
        "git_commit": commit or "unknown",
        "git_dirty": "unknown" if dirty is None else str(bool(dirty)).lower(),
    }


def _processor() -> str:
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}, {os.cpu_count()} cores"


def _git(*words: str) -> str | None:
    root = Path(__file__).resolve().parents[2]
    try:
        done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True)
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def release(name: str) -> str:
    """Version of an installed package, without a build such as +cu132."""
    return version(name).partition("+")[0]
