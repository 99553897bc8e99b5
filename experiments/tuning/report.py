"""Report: what a search found, in words, tables and pictures.

For each study, in its run and in `reports/<run id>/<method>/`: `trials.csv`, `recommended.json`,
`command.txt`, `plots/` and `interactive.html`. For the search: `recommended.csv`, `tested.csv`, and
all fronts in one picture, `fronts.png` and `fronts.html`.
"""

import json
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.figures.intervals import mean_interval
from experiments.processes.terminal import print_line
from experiments.tuning import runs
from experiments.tuning.choose import at_equal_cost, complete, rule
from experiments.tuning.confirm import Chosen
from experiments.tuning.pictures import save_search, save_study
from experiments.tuning.study import Study

FOLDER = Path("reports")
Found = tuple[Study, Chosen]


def make(run_id: str, found: list[Found], tested: pd.DataFrame) -> None:
    """Write, log and print what was found.

    Args:
        run_id: Of the search.
        found: Studies, and what they recommend.
        tested: As `confirm` returns.
    """
    if not found:
        return
    folder = FOLDER / run_id
    rows = [make_study(*each, tested, folder / each[1].search.method) for each in found]
    summary = pd.DataFrame(rows)
    summary.to_csv(folder / "recommended.csv", index=False)
    tested.to_csv(folder / "tested.csv", index=False)
    tables = {study.search.method: study.table() for study, _ in found}
    numbers = {chosen.search.method: chosen.number for _, chosen in found}
    pictures = save_search(tables, numbers, found[0][0].search, folder)
    runs.log_search(run_id, [folder / "recommended.csv", folder / "tested.csv", *pictures])
    print_line(text(found, summary, folder))


def make_study(study: Study, chosen: Chosen, tested: pd.DataFrame, folder: Path) -> dict[str, Any]:
    """Write and log what one study found; its row of `recommended.csv`."""
    table = study.table()
    folder.mkdir(parents=True, exist_ok=True)
    row = row_of(table, chosen, tested[tested["method"] == study.search.method])
    table.to_csv(folder / "trials.csv", index=False)
    known = {name: value for name, value in row.items() if value == value}  # no NaN
    (folder / "recommended.json").write_text(json.dumps(known, indent=2) + "\n")
    (folder / "command.txt").write_text(chosen.command + "\n")
    save_study(study, chosen.number, folder)
    runs.log_study(chosen.run, folder, numbers_of(row), words_of(study, chosen, row))
    return row


def row_of(table: pd.DataFrame, chosen: Chosen, tested: pd.DataFrame) -> dict[str, Any]:
    """What a study recommends, and how it did on test images: a row of `recommended.csv`."""
    (trial,) = table[table["number"] == chosen.number].to_dict("records")
    row: dict[str, Any] = {"method": chosen.search.method, "trial": chosen.number}
    row |= chosen.params
    for name in ("rounds", "retraining_epochs", "total_epochs"):
        row[name] = int(trial[name])
    row["sparsity"] = float(trial["sparsity"])
    row["valid_accuracy"] = float(trial["valid_accuracy"])
    row["best_valid_accuracy"] = float(complete(table)["valid_accuracy"].max())
    equal = at_equal_cost(table)
    if equal:
        baseline, best = equal
        row["default_valid_accuracy"] = float(baseline["valid_accuracy"])
        row["default_total_epochs"] = int(baseline["total_epochs"])
        row["best_at_default_cost"] = float(best["valid_accuracy"])
        row["best_at_default_cost_trial"] = int(best["number"])
    if len(tested):
        for name in ("valid_accuracy", "test_accuracy", "dense_test_accuracy"):
            values = mean_interval(tested, ["method"], name).iloc[0]
            row[f"fresh_{name}"] = float(values["mean"])
            row[f"fresh_{name}_low"] = float(values["low"])
            row[f"fresh_{name}_high"] = float(values["high"])
        row["fresh_seeds"] = len(tested)
    return row


def numbers_of(row: dict[str, Any]) -> dict[str, float]:
    """What of a row are numbers, as metrics."""
    return {
        f"recommended/{name}": float(value)
        for name, value in row.items()
        if isinstance(value, int | float) and value == value
    }


def words_of(study: Study, chosen: Chosen, row: dict[str, Any]) -> str:
    """A study in a few lines of Markdown."""
    params = ", ".join(f"`{name}={value}`" for name, value in chosen.params.items())
    lines = [
        f"Recommended is trial {chosen.number}: {params}; {rule(study.search)}.",
        "",
        f"Validation accuracy {row['valid_accuracy']:.4f} (best {row['best_valid_accuracy']:.4f}) "
        f"after {row['total_epochs']} epochs. {tested_words(row)}",
        "",
        f"    {chosen.command}",
    ]
    return "\n".join(lines)


def tested_words(row: dict[str, Any]) -> str:
    """How what is recommended did on test images."""
    if "fresh_seeds" not in row:
        return "Not tested."
    if row["fresh_seeds"] == 1:
        return f"Test accuracy {row['fresh_test_accuracy']:.4f} with one fresh seed."
    return (
        f"Test accuracy {row['fresh_test_accuracy']:.4f} "
        f"({row['fresh_test_accuracy_low']:.4f} to {row['fresh_test_accuracy_high']:.4f}, 95% "
        f"interval of {row['fresh_seeds']} fresh seeds)."
    )


def default_words(row: dict[str, Any]) -> str:
    """How the best trial that costs no more than the default did beside it."""
    if "default_valid_accuracy" not in row:
        return ""
    default, best = row["default_valid_accuracy"], row["best_at_default_cost"]
    return (
        f"Of trials that cost no more than the default ({row['default_total_epochs']} epochs), the "
        f"best reached {best:.4f} on validation (being the best of many, a little too good), the "
        f"default {default:.4f}."
    )


def rows_of(summary: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a table as `row_of` made them."""
    return [{str(k): v for k, v in row.items()} for row in summary.to_dict("records")]


def text(found: list[Found], summary: pd.DataFrame, folder: Path) -> str:
    """What was found, for the terminal."""
    first = found[0][0].search
    names = ["method", *first.space, "rounds", "total_epochs", "valid_accuracy"]
    shown = summary[names].copy()
    shown["valid_accuracy"] = shown["valid_accuracy"].map("{:.4f}".format)
    lines = [
        f"\nWhat each method wants, to have {first.config.target_sparsity:g} of the weights gone: "
        f"{rule(first)}.\n",
        shown.to_string(index=False),
        "",
    ]
    for (study, chosen), row in zip(found, rows_of(summary), strict=True):
        lines += [f"{study.search.method}: {tested_words(row)} {default_words(row)}".rstrip()]
        lines += [f"  {chosen.command}"]
    lines.append(f"\nTables and pictures: {folder}")
    return "\n".join(lines)
