"""MLproject: written from the parameters of each command, so that the two cannot drift apart."""

from collections.abc import Sequence
from pathlib import Path

from experiments.config.comparison import CompareConfig, ReportConfig
from experiments.config.experiment import Config
from experiments.config.faces import FacesConfig
from experiments.config.parameters import entry_point
from experiments.config.tune import TuneConfig

PATH = Path(__file__).resolve().parent.parent / "MLproject"
HEAD = """\
# Written by `python -m experiments mlproject` from the fields of
# experiments/fields.py, config.py and prepare_faces.py: change those, not this.
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
    points = [
        entry_point(Config, "main", "run"),
        entry_point(CompareConfig, "compare", "compare"),
        entry_point(TuneConfig, "tune", "tune"),
        entry_point(ReportConfig, "report", "report"),
        entry_point(FacesConfig, "prepare_faces", "prepare_faces"),
    ]
    return HEAD + "\n".join(points)
