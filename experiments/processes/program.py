"""Program: where our code is, and how users start it: from a checkout, or installed by pip.

Installed, all our packages are inside the package `weight_loss` (see setup.py).
"""

import os
import sys
from pathlib import Path

INSIDE = __name__.removesuffix("experiments.processes.program")  # "", or installed "weight_loss."
CODE_ROOT = Path(__file__).resolve().parents[2]  # the folder with our packages
IMPORT_ROOT = Path(__file__).resolve().parents[__name__.count(".")]  # where imports start
PROGRAM = "weight-loss" if INSIDE else "python -m experiments"


def python_path() -> str:
    """This process's Python, as it is called from the working folder."""
    return _shorten(Path(sys.executable))


def program_path(name: str) -> str:
    """A program that pip has installed beside this Python, such as .venv/bin/mlflow.

    It may not be on the search path: users need not activate the environment. If it is not there,
    the name alone.
    """
    path = Path(sys.executable).with_name(name)
    return _shorten(path) if path.exists() else name


def _shorten(path: Path) -> str:
    """A path relative to the working folder, if it is below it."""
    return str(path).removeprefix(f"{Path.cwd()}{os.sep}")
