"""Program: where our code is, and how users start it: from a checkout, or installed by pip.

Installed, all our packages are inside the package `weight_loss` (see setup.py).
"""

from pathlib import Path

INSIDE = __name__.removesuffix("experiments.processes.program")  # "", or installed "weight_loss."
CODE_ROOT = Path(__file__).resolve().parents[2]  # the folder with our packages
IMPORT_ROOT = Path(__file__).resolve().parents[__name__.count(".")]  # where imports start
PROGRAM = "weight-loss" if INSIDE else "python -m experiments"
