"""Report: what a search found, as a page, text, tables and figures.

Each study gets, in its run and in `reports/<run id>/<method>/`: `trials.csv`, `recommended.json`,
`command.txt`, `plots/` and `interactive.html`. The search gets the page, `report.html`, and
`recommended.csv`, `tested.csv`, and all fronts in one figure, `fronts.png` and `fronts.html`.
"""

import json
from pathlib import Path

import pandas as pd

from experiments.config.space import format_space
from experiments.processes.terminal import print_line, table_text
from experiments.tuning import runs
from experiments.tuning.choose import describe_rule
from experiments.tuning.confirm import Recommendation
from experiments.tuning.figures import page_drawings, save_fronts, save_study
from experiments.tuning.fronts import trials_of
from experiments.tuning.page import render_page
from experiments.tuning.verdict import (
    Row,
    advised,
    default_cost_note,
    edge_warning,
    headline,
    row_of,
    settings_table,
)

FOLDER = Path("reports")
PAGE = "report.html"
HEADLINES = ("total_epochs", "valid_accuracy", "fresh_valid_accuracy", "fresh_test_accuracy")
DIFFERENCES = ("valid_accuracy_difference", "test_accuracy_difference")


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
    figures = save_fronts(studies, [each.search for each in recommended], folder)
    drawings = page_drawings(studies, {each.search.method: each.study for each in recommended})
    page = render_page(runs.name_of(run_id), recommended, rows, tables, tested, drawings)
    (folder / PAGE).write_text(page, encoding="utf-8")
    files = [folder / name for name in (PAGE, "recommended.csv", "tested.csv")]
    metrics = {
        f"{row['method']}/{name}": row[name]
        for row in rows
        for name in (*HEADLINES[:1], HEADLINES[3], *DIFFERENCES)
        if name in row
    }
    runs.log_search(run_id, [*files, *figures], metrics, describe_search(recommended, rows))
    print_line(summarize(recommended, rows))
    print_line(f"\nReport: {(folder / PAGE).resolve()}")


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
    (folder / "command.txt").write_text(recommended.command(advised(row, recommended)) + "\n")
    save_study(recommended.study, recommended.number, folder)
    metrics = {
        f"{runs.REPORTED}{name}": float(row[name])
        for name in (*HEADLINES, *DIFFERENCES)
        if name in row
    }
    description = describe_search([recommended], [row])
    runs.log_study(recommended.study_run, folder, metrics, description)
    return row


def describe_search(recommended: list[Recommendation], rows: list[Row]) -> str:
    """A search, or one of its studies, in a few lines of Markdown."""
    parts = [f"Rule: {describe_rule(recommended[0].search)}."]
    parts += [_markdown(settings_table(recommended, rows))]
    for each, row in zip(recommended, rows, strict=True):
        parts.append(f"**{each.search.method}**: {headline(row, each)}")
        parts.append(f"Searched: {format_space(each.search.space)}")
        parts += [f"Warning: {warning}" for warning in [edge_warning(each)] if warning]
        parts.append(f"    {each.command(advised(row, each))}")
    return "\n\n".join(parts)


def _markdown(table: pd.DataFrame) -> str:
    rows: list[list[str]] = [[*table], ["---"] * len(table.columns), *table.to_numpy().tolist()]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def summarize(recommended: list[Recommendation], rows: list[Row]) -> str:
    """What was found, for the terminal."""
    search = recommended[0].search
    settings = settings_table(recommended, rows)
    lines = [
        f"\nAt {search.config.target_sparsity:g} sparsity, by the rule: {describe_rule(search)}.\n",
        table_text({str(name): column for name, column in settings.items()}),
    ]
    for each, row in zip(recommended, rows, strict=True):
        lines.append(f"\n{each.search.method}: {headline(row, each)}")
        lines += [f"  {note}" for note in [default_cost_note(row)] if note]
        lines += [f"  WARNING: {warning}" for warning in [edge_warning(each)] if warning]
        lines.append(f"  {each.command(advised(row, each), portable=False)}")
    return "\n".join(lines)
