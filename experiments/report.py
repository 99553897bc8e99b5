"""Report: a comparison as a page, tables and figures, made from the tracking store alone.

mlflow run . -e report -P run=<id of a comparison>
"""

import shlex
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import mlflow
import pandas as pd
from pydantic import AfterValidator, Field

from experiments import leftover, parameters, server
from experiments.command import obey
from experiments.comparison import figures, store
from experiments.comparison.arms import CompareConfig
from experiments.comparison.page import Comparison, Failure, draw, page
from experiments.comparison.statistics import differences, summarise, winning_tickets
from experiments.fields import NONE, run_id
from experiments.parameters import AUTO, Parameters, as_text, default_text, parse
from experiments.run import print_line

FOLDER = "reports"
PAGE = "report.html"


class ReportConfig(Parameters):
    """What a report can be asked for."""

    run: Annotated[str, AfterValidator(run_id)] = Field(description="id of a comparison's run")
    out: parameters.Path = Field(
        AUTO, description=f"folder to write to; auto is {FOLDER}/ and the run's id"
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Report from the command line."""
    obey(lambda: report(parse(ReportConfig, "report", argv)))


def report(config: ReportConfig) -> Path:
    """Make the report of a comparison anew, and log it to its run; the folder it is in.

    Raises:
        ValueError: If there is no such comparison, or something that it consists of is gone.
    """
    server.check_tracking()
    attached = server.attached_run()
    made = store.read_record(config.run)
    folder = make(config.run, made, config.out)
    if attached and attached != config.run:  # `mlflow run` opened it for nothing
        leftover.label(attached, config.run)
        leftover.delete_when_closed(attached)
    print_line(text(folder))
    return folder


def make(run_id: str, made: store.Record, out: str = AUTO) -> Path:
    """Write the report to a folder, and log it to the comparison's run; the folder.

    Raises:
        ValueError: If something that the comparison consists of is gone.
        OSError: If the folder cannot be written to.
    """
    folder = Path(FOLDER, run_id) if out == AUTO else Path(out).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    comparison = read(run_id, made)
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
    store.log_summary(run_id, tables["summary"])
    return folder


def read(run_id: str, made: store.Record) -> Comparison:
    """All that the page of a comparison shows.

    Raises:
        ValueError: If something that the comparison consists of is gone.
    """
    rounds, epochs = store.read_tables(made)
    config = CompareConfig(**made.config)
    asked = {name: as_text(value) for name, value in made.config.items()}
    usual = {name: default_text(field) for name, field in CompareConfig.model_fields.items()}
    changed = {name: text for name, text in asked.items() if text != usual[name]}
    return Comparison(
        name=store.name_of(run_id),
        setting=_setting(made, config, asked),
        defaults=frozenset(asked) - frozenset(changed),
        rounds=rounds,
        epochs=epochs,
        masks=store.read_masks(made),
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
        links=store.links(made),
        environment=store.environment_of(made),
        images=made.images,
    )


def _setting(made: store.Record, config: CompareConfig, asked: dict[str, str]) -> dict[str, str]:
    """What is common to all arms, as it was done where that is one thing, else as asked for."""
    done = {name: as_text(value) for name, value in made.setting.items()}
    each = {"retrain_lr", "criterion", "control", "pruning", "masks"}  # an arm has its own
    apart = {"workers", "device", "data_root", "shown_round"}
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


def text(folder: Path) -> str:
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
