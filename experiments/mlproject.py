"""MLproject: written from the config's fields, so that the two cannot drift apart."""

from collections.abc import Sequence
from pathlib import Path

from experiments.config import Config, default_text

PATH = Path(__file__).resolve().parent.parent / "MLproject"
HEAD = """\
# Written by `python -m experiments mlproject` from experiments/config.py: change that, not this.
name: weight-loss
conda_env: conda.yaml

entry_points:
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Write MLproject."""
    del argv
    PATH.write_text(mlproject())


def mlproject() -> str:
    """The text of MLproject."""
    return HEAD + _entry_point("main", "run")


def _entry_point(name: str, command: str) -> str:
    lines = [f"  {name}:", "    parameters:"]
    for parameter, field in Config.model_fields.items():
        lines += [
            f"      # {field.description}",
            f'      {parameter}: {{type: string, default: "{default_text(field)}"}}',
        ]
    lines += ["    command: >-", f"      python -m experiments {command}"]
    lines += [f"      --{parameter}={{{parameter}}}" for parameter in Config.model_fields]
    return "\n".join(lines) + "\n"
