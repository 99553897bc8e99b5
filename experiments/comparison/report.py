"""TODO."""

import shlex
import shutil
import tempfile
from pathlib import Path

import mlflow
import pandas as pd

from experiments.comparison import figures, record
from experiments.comparison.page import Comparison, Failure, draw, page
from experiments.comparison.statistics import differences, summarise, winning_tickets
from experiments.config.comparison import CompareConfig
from experiments.config.fields import NONE
from experiments.config.parameters import AUTO, as_text, default_text

FOLDER = "reports"


PAGE = "report.html"


def make_report(run_id: str, made: record.Record, out: str = AUTO) -> Path:
    """Write the report to a folder, and log it to the comparison's run; the folder.

    Raises:
        ValueError: If something that the comparison consists of is gone.
        OSError: If the folder cannot be written to.
    """
    folder = Path(FOLDER, run_id) if out == AUTO else Path(out).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    comparison = read_comparison(run_id, made)
    tables = {
        "comparison": comparison.rounds,
        "epochs": comparison.epochs,
        "summary": summarise(comparison.rounds),
        "differences": differences(comparison.rounds),
        "tickets": winning_tickets(comparison.rounds),
    }
    with tempfile.TemporaryDirectory() as new:  # so that only what is new is logged
        for name, table in tables.items():
            table.to_csv(Path(new, f"{name}.csv"), index=False)
        Path(new, PAGE).write_text(page(comparison), encoding="utf-8")
        _write_figures(comparison, Path(new, "plots"))
        mlflow.MlflowClient().log_artifacts(run_id, new)
        shutil.copytree(new, folder, dirs_exist_ok=True)
    record.log_summary(run_id, tables["summary"])
    return folder


def read_comparison(run_id: str, made: record.Record) -> Comparison:
    """All that the page of a comparison shows.

    Raises:
        ValueError: If something that the comparison consists of is gone.
    """
    rounds, epochs = record.read_tables(made)
    config = CompareConfig(**made.config)
    asked = {name: as_text(value) for name, value in made.config.items()}
    usual = {name: default_text(field) for name, field in CompareConfig.model_fields.items()}
    changed = {name: text for name, text in asked.items() if text != usual[name]}
    return Comparison(
        name=record.name_of(run_id),
        setting=_setting(made, config, asked),
        defaults=frozenset(asked) - frozenset(changed),
        rounds=rounds,
        epochs=epochs,
        masks=record.read_masks(made),
        image_shape=tuple(made.image_shape),
        shown_round=made.shown_round,
        command=" ".join(
            ["mlflow run . -e compare", *(f"-P {n}={shlex.quote(v)}" for n, v in changed.items())]
        ),
        data_source=made.data_source,
        pretrained=config.pretrained != NONE,
        failed=tuple(
            Failure(arm["label"], arm["seed"], arm["reason"]) for arm in made.arms if arm["reason"]
        ),
        links=record.links(made),
        environment=record.environment_of(made),
        images=made.images,
    )


def _setting(made: record.Record, config: CompareConfig, asked: dict[str, str]) -> dict[str, str]:
    """What is common to all arms, as it was done where that is one thing, else as asked for."""
    done = {name: as_text(value) for name, value in made.setting.items()}
    each = {"retrain_lr", "criterion", "control", "pruning", "masks"}  # an arm has its own
    apart = {"workers", "executor", "ray_address", "device", "data_root", "shown_round"}
    if config.masks == "own":
        apart.add("trunk")
    return {
        name: text if name in each else done.get(name, text)
        for name, text in asked.items()
        if name not in apart
    }


def _write_figures(comparison: Comparison, folder: Path) -> None:
    folder.mkdir()
    for name, figure in draw(comparison).items():
        (folder / f"{name}.svg").write_text(figures.to_svg(figure), encoding="utf-8")
        figure.savefig(folder / f"{name}.png", facecolor="white")


def report_text(folder: Path) -> str:
    """What was found, and where to read on."""
    lines = [_ticket(row) for _, row in pd.read_csv(folder / "tickets.csv").iterrows()]
    return "\n".join([*lines, "", f"To read: {(folder / PAGE).resolve()}"])


def _ticket(row: pd.Series) -> str:
    if pd.isna(row["round"]):
        return f"{row['method']}: no pruned network matches the dense one"
    return (
        f"{row['method']}: the smallest network that matches the dense one has "
        f"{row['remaining']:.2%} of the weights (test accuracy {row['test_accuracy']:.4f}, dense "
        f"{row['dense_test_accuracy']:.4f})"
    )
