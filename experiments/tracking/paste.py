"""Paste: commands that a user can paste into a shell as they stand.

They call this process's Python, so they work whatever environment manager has started it, and name
the tracking store and the experiment where these are not the default.
"""

from collections.abc import Mapping
from pathlib import Path
from shlex import quote
from urllib.parse import unquote

import mlflow

from experiments.processes.program import INSIDE, PROGRAM, program_path, python_path
from experiments.processes.secrets import has_secret
from experiments.tracking.ui import experiment_name

DEFAULT_STORE = "mlflow.db"  # in the working folder


def command_to_paste(
    name: str, params: Mapping[str, str], portable: bool = False, run_id: str | None = None
) -> str:
    """The command `name` with these parameters, for a shell in this working folder.

    Args:
        portable: For another machine, whose Python and tracking store are not known.
        run_id: A run in the experiment that the command logs to; by default that of this process.
    """
    words = [f"--{key}={value}" for key, value in params.items()]
    own = {} if portable else _store()
    experiment = experiment_name(run_id)
    if experiment != "Default":
        own["MLFLOW_EXPERIMENT_NAME"] = experiment
    setting = [f"{key}={quote(value)}" for key, value in own.items()]
    return " ".join([*setting, *map(quote, (*_program(portable), name, *words))])


def _store() -> dict[str, str]:
    """The tracking store, where it is not the default; one with a login must be set already."""
    uri = str(mlflow.get_tracking_uri())
    is_default = unquote(uri) == f"sqlite:///{Path(DEFAULT_STORE).absolute()}"
    return {} if is_default or has_secret(uri) else {"MLFLOW_TRACKING_URI": uri}


def _program(portable: bool) -> list[str]:
    if portable:
        return PROGRAM.split()
    return [program_path(PROGRAM)] if INSIDE else [python_path(), *PROGRAM.split()[1:]]
