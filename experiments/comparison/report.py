"""Report: a comparison as a page, tables and figures, written to a folder and to its run."""

import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import mlflow
import pandas as pd

from experiments.comparison import record
from experiments.comparison.figures import draw_all
from experiments.comparison.findings import caveats, headline, learning_rates
from experiments.comparison.matching import WINNING
from experiments.comparison.page import render_page
from experiments.comparison.results import Comparison
from experiments.comparison.statistics import ACCURACY
from experiments.comparison.text import listed, percent, points, weights
from experiments.config.comparison import CompareConfig
from experiments.config.fields import NONE
from experiments.config.parameters import AUTO, STORED, as_text, validated
from experiments.figures.page import UNKNOWN, to_svg
from experiments.processes.terminal import table_text
from experiments.tracking.paste import command_to_paste

FOLDER = "reports"
PAGE = "report.html"


def make_report(run_id: str, made: record.Record, out: str = AUTO) -> Path:
    """Write the report to a folder, log it to the comparison's run, and return the folder.

    Raises:
        ValueError: If a run or a file of the comparison is gone.
        OSError: If the folder cannot be written to.
    """
    folder = Path(FOLDER, run_id) if out == AUTO else Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    comparison = read_comparison(run_id, made)
    with tempfile.TemporaryDirectory() as new:  # so that only new files are logged
        _write_files(comparison, Path(new))
        mlflow.MlflowClient().log_artifacts(run_id, new)
        shutil.copytree(new, folder, dirs_exist_ok=True)
    record.log_summary(run_id, comparison.summary, describe(comparison))
    return folder


def read_comparison(run_id: str, made: record.Record) -> Comparison:
    """A comparison with its results, from the tracking store.

    Raises:
        ValueError: If a run or a file of the comparison is gone.
    """
    stored = {"baselines": NONE} | made.config  # older versions had no baselines
    # A report needs no GPU.
    config = validated(CompareConfig, stored | {"device": AUTO}, STORED)
    requested = {name: as_text(value) for name, value in stored.items()}
    given = config.model_dump(exclude_defaults=True)
    if made.config["device"] != AUTO:
        given["device"] = made.config["device"]
    changed = {name: text for name, text in requested.items() if name in given}
    setting, rounds = _setting(made, config, requested), record.read_table(made, "rounds.csv")
    return Comparison(
        name=str(mlflow.get_run(run_id).info.run_name),
        setting=setting,
        defaults=frozenset(setting) - frozenset(changed),
        rounds=rounds,
        epochs=record.read_table(made, "epochs.csv"),
        retrain_lr=record.read_numbers(made, "retrain_lr"),
        retrain_epochs=record.read_numbers(made, "retrain_epochs"),
        masks=record.read_masks(made, made.shown_round),
        earlier_masks=record.read_masks(made, made.shown_round // 2),
        image_shape=tuple(made.image_shape),
        shown_round=made.shown_round,
        command=command_to_paste("compare", changed, portable=True, run_id=run_id),
        data_source=made.data_source,
        failed=[arm for arm in made.arms if arm["reason"]],
        links=record.links(made),
        environment=record.environment_of(made),
        images=made.images,
        costs=record.read_costs(made),
        margin=config.margin,
        correct=record.read_correct(made, rounds),
    )


def _setting(
    made: record.Record, config: CompareConfig, requested: dict[str, str]
) -> dict[str, str]:
    """What all arms share: resolved values where they share them, else the requested ones."""
    resolved = {name: as_text(value) for name, value in made.setting.items()}
    per_arm = {"retrain_lr", "criterion", "control", "pruning", "masks"}
    hidden = {"workers", "executor", "ray_address", "device", "data_root", "shown_round"}
    if config.masks == "own":
        hidden.add("trunk")
    return {
        name: text if name in per_arm else resolved.get(name, text)
        for name, text in requested.items()
        if name not in hidden
    }


def _write_files(comparison: Comparison, folder: Path) -> None:
    comparison.rounds.to_csv(folder / "comparison.csv", index=False)
    for name in ("epochs", "summary", "differences", "matches", "mask_overlap"):
        getattr(comparison, name).to_csv(folder / f"{name}.csv", index=False)
    if len(comparison.costs):
        comparison.costs.to_csv(folder / "costs.csv", index=False)
    figures, drawings, plots = draw_all(comparison), {}, folder / "plots"
    plots.mkdir()
    for name, figure in figures.items():
        drawings[name] = to_svg(figure)
        (plots / f"{name}.svg").write_text(drawings[name], encoding="utf-8")
        figure.savefig(plots / f"{name}.png", facecolor="white")
    (folder / PAGE).write_text(render_page(comparison, drawings), encoding="utf-8")


def describe(comparison: Comparison) -> str:
    """The comparison for MLflow's UI, in Markdown: the answer, and a table of the shown round."""
    summary, rates = comparison.summary, learning_rates(comparison)
    matches = comparison.matches.set_index("method")
    shares, names_of = dict(matches["remaining"]), dict(matches["name"])
    here = summary[summary["round"] == comparison.shown_round]
    lines = [
        "| method | learning rate | test accuracy | 95% interval | smallest matching subnetwork |",
        "|---|---|---|---|---|",
    ]
    for _, row in here.iterrows():
        names = (f"{ACCURACY}_{part}" for part in ("mean", "images_low", "images_high"))
        mean, low, high = (row[name] for name in names)
        interval = UNKNOWN if pd.isna(low) else f"{percent(low)} to {percent(high)}"
        share = "none"
        if names_of.get(row["method"]):
            share = f"{weights(shares[row['method']])} ({names_of[row['method']]})"
        lines.append(
            f"| {row['method']} | {rates[row['method']]} | {percent(mean)} | {interval} | {share} |"
        )
    note = " ".join(caveats(comparison)[:-1])
    page = f"Page: artifact `{PAGE}`. Tables: `*.csv`."
    return "\n".join([*headline(comparison)[:2], "", *lines, "", note, "", page])


def report_text(folder: Path) -> str:
    """The smallest matching subnetwork of each method, and where the page is, for the terminal."""
    matches = pd.read_csv(folder / "matches.csv")
    margin = float(matches["margin"].iloc[0])
    columns: dict[str, Iterable[object]] = {
        "method": matches["method"],
        "weights\nleft": [_or_none(weights, share) for share in matches["remaining"]],
        "bound\n(points)": [_or_none(_points, bound) for bound in matches["gain_low"]],
        "test\naccuracy": [_or_none(percent, value) for value in matches["test_accuracy"]],
        "dense test\naccuracy": matches["dense_test_accuracy"].map(percent),
    }
    return "\n".join(
        [
            "The smallest network that is shown to match the dense one: the one-sided 95% lower",
            f"bound of its validation accuracy minus dense is above -{points(margin)}.",
            "",
            table_text(columns),
            "",
            *_tickets(matches),
            f"Report: {(folder / PAGE).resolve()}",
        ]
    )


def _points(difference: float) -> str:
    return f"{100 * difference:+.2f}"


def _tickets(matches: pd.DataFrame) -> list[str]:
    """Which of them are winning tickets, if any."""
    won = list(matches.loc[matches["name"] == WINNING, "method"])
    return (
        [
            "Winning ticket (its early stop is also no later than the dense network's): "
            f"{listed(won)}.",
            "",
        ]
        if won
        else []
    )


def _or_none(text: Callable[[float], str], value: float) -> str:
    return "none" if pd.isna(value) else text(value)
