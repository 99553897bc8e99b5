"""Page: a search as one HTML file that needs nothing else.

To add a part: a section in page.html, and what it shows in `render_page`.
"""

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.config.parameters import as_text, default_text
from experiments.config.tune import TuneConfig
from experiments.figures.page import (
    UNKNOWN,
    Cell,
    Column,
    Table,
    number,
    number_cell,
    picture,
    render,
    table_of,
    words,
)
from experiments.tracking.environment import environment
from experiments.tuning.choose import describe_rule
from experiments.tuning.confirm import Recommendation
from experiments.tuning.figures import CAPTIONS
from experiments.tuning.search import Search
from experiments.tuning.verdict import (
    COMPARED,
    Row,
    advised,
    default_cost_note,
    edge_warning,
    headline,
    setting_rows,
)

ENDS = ("", "_low", "_high")
MINUS = "\N{MINUS SIGN}"
HIDDEN = {"workers", "executor", "ray_address", "device", "data_root", "storage", "patience"}


def render_page(
    name: str,
    recommended: list[Recommendation],
    rows: list[Row],
    tables: Mapping[str, pd.DataFrame],
    tested: pd.DataFrame,
    drawings: Mapping[str, str],
) -> str:
    """The search as one self-contained HTML file.

    Args:
        name: Of the search's run.
        recommended: A trial of each study.
        rows: Of `recommended.csv`, in the same order.
        tables: The trials of each study, by method.
        tested: As `confirm` returns.
        drawings: As `figures.page_drawings` returns; the first stands at the top.
    """
    search = recommended[0].search
    config = search.config
    captions = dict(CAPTIONS)
    if config.objective == "accuracy":
        captions["fronts"] = captions["parameters"]
    pictures = [picture(key, svg, captions[key]) for key, svg in drawings.items()]
    settings = {key: as_text(value) for key, value in config.model_dump().items()}
    fields = TuneConfig.model_fields.items()  # `mlflow run` gives all of them
    defaults = {key for key, field in fields if settings[key] == default_text(field)}
    values: dict[str, Any] = {
        "name": name,
        "question": question(search),
        "rule": describe_rule(search),
        "studies": [
            study_values(each, row, tables[each.search.method])
            for each, row in zip(recommended, rows, strict=True)
        ],
        "main": pictures[0],
        "pictures": pictures[1:],
        "tested": table_of("Networks with fresh seeds", tested, TESTED),
        "fresh_seeds": config.confirm_seeds,
        "settings": {key: settings[key] for key in settings if key not in defaults | HIDDEN},
        "defaults": {key: settings[key] for key in settings if key in defaults - HIDDEN},
        "environment": environment(search.resolved({}).device),
    }
    return render(Path(__file__).parent, values)


def question(search: Search) -> str:
    """What the search asks."""
    what = f"{search.model} on {search.dataset}"
    sparsity = f"{100 * search.config.target_sparsity:g}%"
    if search.config.objective == "pareto":
        return f"How cheaply can {sparsity} of {what} be pruned?"
    return f"How accurate is {what} after pruning {sparsity} in {search.budget} epochs?"


def study_values(recommended: Recommendation, row: Row, trials: pd.DataFrame) -> dict[str, Any]:
    """What the page shows of one study."""
    search = recommended.search
    params = advised(row, recommended)
    searched: list[Column] = [(name, partial(_value, name)) for name in search.space]
    compared = pd.DataFrame(setting_rows(recommended, row))
    return {
        "method": search.method,
        "advice": "the default" if params == search.baseline else "the recommended network",
        "headline": re.sub(r"(?<=[ [])-(?=\d)", MINUS, headline(row, recommended)),
        "warning": edge_warning(recommended),
        "note": default_cost_note(row),
        "settings": table_of(
            f"{search.method}: settings", compared, [*SETTING, *searched, *REACHED]
        ),
        "differences": differences(search.method, row),
        "command": recommended.command(params),
        "trials": table_of(f"{search.method}: trials", trials, [*TRIAL, *searched, *RESULT]),
        "space": ", ".join(f"{name} {text}" for name, text in search.ranges().items()),
        "study": search.name,
    }


def differences(method: str, row: Row) -> Table:
    """The setting that was found minus the default, in points; without rows if it is unknown."""
    found = [
        {
            "metric": name.replace("_accuracy", "").replace("valid", "validation") + " accuracy",
            "seeds": row["paired_seeds"],
            **{end: row[f"{name}_difference{end}"] for end in ENDS},
        }
        for name in COMPARED
        if f"{name}_difference" in row
    ]
    return table_of(f"{method}: differences", pd.DataFrame(found), DIFFERENCE)


def points(value: float) -> str:
    """A difference of accuracies in percentage points, such as `+0.12`."""
    return f"{100 * value:+.2f}".replace("-", MINUS)


def _percent(value: float) -> str:
    return f"{100 * value:.2f}"


def _value(name: str, row: Row) -> Cell:
    value = row[name]
    if isinstance(value, str) or pd.isna(value):
        return Cell(UNKNOWN if not isinstance(value, str) else value)
    return number_cell(value, "{:.4g}".format)


def _interval(row: Row) -> Cell:
    return number_cell(row["_low"], lambda low: f"{points(low)} to {points(row['_high'])}")


def _seconds(row: Row) -> Cell:
    cell = number_cell(row["seconds"], "{:,.0f}".format)
    return Cell(cell.text, cell.value, volatile=True)


def _run(row: Row) -> Cell:
    return Cell(str(row["run_id"])[:8], volatile=True)


SETTING: list[Column] = [("setting", words("setting")), ("trial", number("trial"))]
REACHED: list[Column] = [
    ("rounds", number("rounds")),
    ("epochs", number("total_epochs")),
    ("validation, in the trial (%)", number("valid_accuracy", _percent)),
    ("validation, fresh seeds (%)", number("fresh_valid_accuracy", _percent)),
    ("test, fresh seeds (%)", number("fresh_test_accuracy", _percent)),
]
DIFFERENCE: list[Column] = [
    ("difference in", words("metric")),
    ("points", number("", points)),
    ("95% interval", _interval),
    ("seeds", number("seeds")),
]
TRIAL: list[Column] = [("trial", number("number")), ("state", words("state"))]
RESULT: list[Column] = [
    ("rounds", number("rounds")),
    ("epochs", number("total_epochs")),
    ("validation (%)", number("valid_accuracy", _percent)),
    ("seconds", _seconds),
    ("run", _run),
]
TESTED: list[Column] = [
    ("method", words("method")),
    ("setting", words("setting")),
    ("trial", number("trial")),
    ("seed", number("seed", str)),
    ("validation (%)", number("valid_accuracy", _percent)),
    ("test (%)", number("test_accuracy", _percent)),
    ("dense test (%)", number("dense_test_accuracy", _percent)),
    ("run", _run),
]
