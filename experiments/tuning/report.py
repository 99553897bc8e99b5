"""Report: what a search found, as text, tables and figures.

Each study gets, in its run and in `reports/<run id>/<method>/`: `trials.csv`, `recommended.json`,
`command.txt`, `plots/` and `interactive.html`. The search gets `recommended.csv`, `tested.csv`, and
all fronts in one figure, `fronts.png` and `fronts.html`.
"""

import json
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.figures.intervals import mean_interval
from experiments.processes.terminal import print_line
from experiments.tuning import runs
from experiments.tuning.choose import at_equal_cost, complete, describe_rule
from experiments.tuning.confirm import Recommendation
from experiments.tuning.figures import save_fronts, save_study
from experiments.tuning.fronts import trials_of

FOLDER = Path("reports")
Row = dict[str, Any]


def report(run_id: str, recommended: list[Recommendation], tested: pd.DataFrame) -> None:
    """Write, log and print what was found.

    Args:
        run_id: The run of the search.
        recommended: A trial of each study to report.
        tested: As `confirm` returns.
    """
    if not recommended:
        return
    folder = FOLDER / run_id
    tables = {each.search.method: each.study.table() for each in recommended}
    rows = [_report_study(each, tables[each.search.method], tested, folder) for each in recommended]
    pd.DataFrame(rows).to_csv(folder / "recommended.csv", index=False)
    tested.to_csv(folder / "tested.csv", index=False)
    studies = trials_of(tables, {each.search.method: each.number for each in recommended})
    figures = save_fronts(studies, recommended[0].search, folder)
    runs.log_search(run_id, [folder / "recommended.csv", folder / "tested.csv", *figures])
    print_line(summarize(recommended, rows, folder))


def _report_study(
    recommended: Recommendation, table: pd.DataFrame, tested: pd.DataFrame, reports: Path
) -> Row:
    """Write and log the report of one study; its row of `recommended.csv`."""
    method = recommended.search.method
    folder = reports / method
    folder.mkdir(parents=True, exist_ok=True)
    row = row_of(table, recommended, tested[tested["method"] == method])
    table.to_csv(folder / "trials.csv", index=False)
    known = {name: value for name, value in row.items() if value == value}  # without NaN
    (folder / "recommended.json").write_text(json.dumps(known, indent=2) + "\n")
    (folder / "command.txt").write_text(recommended.command + "\n")
    save_study(recommended.study, recommended.number, folder)
    metrics = {
        f"recommended/{name}": float(value)
        for name, value in known.items()
        if isinstance(value, int | float)
    }
    runs.log_study(recommended.study_run, folder, metrics, _describe_study(recommended, row))
    return row


def row_of(table: pd.DataFrame, recommended: Recommendation, tested: pd.DataFrame) -> Row:
    """A row of `recommended.csv`: the recommended trial, and its results on test images."""
    (trial,) = table[table["number"] == recommended.number].to_dict("records")
    row: Row = {"method": recommended.search.method, "trial": recommended.number}
    row |= recommended.params
    row |= {name: int(trial[name]) for name in ("rounds", "retraining_epochs", "total_epochs")}
    row |= {name: float(trial[name]) for name in ("sparsity", "valid_accuracy")}
    row["best_valid_accuracy"] = float(complete(table)["valid_accuracy"].max())
    if pair := at_equal_cost(table):
        baseline, best = pair
        row["default_valid_accuracy"] = float(baseline["valid_accuracy"])
        row["default_total_epochs"] = int(baseline["total_epochs"])
        row["best_at_default_cost"] = float(best["valid_accuracy"])
        row["best_at_default_cost_trial"] = int(best["number"])
    if len(tested):
        for name in ("valid_accuracy", "test_accuracy", "dense_test_accuracy"):
            values = mean_interval(tested, ["method"], name).iloc[0]
            row[f"fresh_{name}"] = float(values["mean"])
            row[f"fresh_{name}_low"] = float(values["low"])  # NaN with one seed
            row[f"fresh_{name}_high"] = float(values["high"])
        row["fresh_seeds"] = len(tested)
    return row


def _describe_study(recommended: Recommendation, row: Row) -> str:
    """A study in a few lines of Markdown."""
    params = ", ".join(f"`{name}={value}`" for name, value in recommended.params.items())
    return (
        f"Recommended: trial {recommended.number} with {params}, "
        f"{describe_rule(recommended.search)}.\n\n"
        f"Validation accuracy {row['valid_accuracy']:.4f} (best {row['best_valid_accuracy']:.4f}) "
        f"after {row['total_epochs']} epochs. {_describe_test(row)}\n\n"
        f"    {recommended.command}"
    )


def _describe_test(row: Row) -> str:
    if "fresh_seeds" not in row:
        return "Not tested."
    if row["fresh_seeds"] == 1:
        return f"Test accuracy {row['fresh_test_accuracy']:.4f} with one fresh seed."
    return (
        f"Test accuracy {row['fresh_test_accuracy']:.4f} "
        f"({row['fresh_test_accuracy_low']:.4f} to {row['fresh_test_accuracy_high']:.4f}, 95% "
        f"interval over {row['fresh_seeds']} fresh seeds)."
    )


def _describe_default(row: Row) -> str:
    if "default_valid_accuracy" not in row:
        return ""
    default, best = row["default_valid_accuracy"], row["best_at_default_cost"]
    return (
        f"Among trials that cost no more than the default ({row['default_total_epochs']} epochs), "
        f"the best validation accuracy is {best:.4f} (slightly optimistic, as the best of many); "
        f"the default has {default:.4f}."
    )


def summarize(recommended: list[Recommendation], rows: list[Row], folder: Path) -> str:
    """What was found, for the terminal."""
    search = recommended[0].search
    names = ["method", *search.space, "rounds", "total_epochs", "valid_accuracy"]
    shown = pd.DataFrame(rows)[names]
    shown["valid_accuracy"] = shown["valid_accuracy"].map("{:.4f}".format)
    lines = [
        f"\nRecommended for each method, at {search.config.target_sparsity:g} sparsity: "
        f"{describe_rule(search)}.\n",
        shown.to_string(index=False),
        "",
    ]
    for each, row in zip(recommended, rows, strict=True):
        lines += [f"{each.search.method}: {_describe_test(row)} {_describe_default(row)}".rstrip()]
        lines += [f"  {each.command}"]
    lines.append(f"\nTables and figures: {folder}")
    return "\n".join(lines)
