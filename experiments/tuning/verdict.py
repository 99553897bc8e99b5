"""Verdict: is what a study found better than its default, and by how much?

"Better" means, on the fresh seeds if there are any, else in the trials themselves: with
objective=pareto, fewer epochs at no more than `tolerance` lower validation accuracy, or a higher
validation accuracy; with objective=accuracy, a higher validation accuracy. An accuracy is higher if
the 95% interval of the paired difference is above 0; without an interval, if the difference is.
"""

from math import nan
from typing import Any

import pandas as pd

from experiments.config.space import Choices, edge_of, extended, format_space, parse_space
from experiments.config.tune import methods_of
from experiments.figures.intervals import SHARE, SIGNED_SHARE, mean_interval
from experiments.tuning.choose import ROUNDING, at_equal_cost, complete, describe_rule
from experiments.tuning.confirm import DEFAULT, Recommendation
from experiments.tuning.fronts import FOUND, as_text

BETTER, NOT_BETTER, IS_DEFAULT, UNKNOWN = "better", "not better", "default", "unknown"
COUNTS = ("rounds", "retraining_epochs", "total_epochs")
RECOMMENDED = "recommended"  # what was found, if it may be called so
FRESH = ("valid_accuracy", "test_accuracy", "dense_test_accuracy")
COMPARED = FRESH[:2]
Row = dict[str, Any]


def row_of(table: pd.DataFrame, recommended: Recommendation, tested: pd.DataFrame) -> Row:
    """A row of `recommended.csv`: the recommended trial, the default, and the fresh seeds of both.

    Args:
        table: The trials of the study.
        tested: The rows of the method, as `confirm` returns them.

    Returns:
        Columns `fresh_*` are means over the fresh seeds with the ends of their 95% intervals,
        `default_*` those of the default, and `*_difference` the recommended setting minus the
        default, paired by seed. What is not known is missing.
    """
    (trial,) = table[table["number"] == recommended.number].to_dict("records")
    row: Row = {"method": recommended.search.method, "trial": recommended.number}
    row |= recommended.params
    row |= {name: int(trial[name]) for name in COUNTS}
    row |= {name: float(trial[name]) for name in ("sparsity", "valid_accuracy")}
    row["best_valid_accuracy"] = float(complete(table)["valid_accuracy"].max())
    if pair := at_equal_cost(table):
        baseline, best = pair
        row["default_valid_accuracy"] = float(baseline["valid_accuracy"])
        row |= {f"default_{name}": int(baseline[name]) for name in COUNTS}
        row["best_at_default_cost"] = float(best["valid_accuracy"])
        row["best_at_default_cost_trial"] = int(best["number"])
    mine = DEFAULT if recommended.is_default else FOUND
    for setting, prefix in ((mine, "fresh"), (DEFAULT, "default_fresh")):
        row |= _means(tested[tested["setting"] == setting], prefix)
    row["fresh_seeds"] = int((tested["setting"] == mine).sum())
    if not recommended.is_default:
        row |= _differences(tested)
    row["verdict"] = verdict(row, recommended)
    return row


def _means(rows: pd.DataFrame, prefix: str) -> Row:
    row: Row = {}
    for name in FRESH if len(rows) else ():
        values = mean_interval(rows, ["method"], name, SHARE).iloc[0]
        row[f"{prefix}_{name}"] = float(values["mean"])
        row[f"{prefix}_{name}_low"] = float(values["low"])  # NaN with one seed
        row[f"{prefix}_{name}_high"] = float(values["high"])
    return row


def _differences(tested: pd.DataFrame) -> Row:
    """What was found minus the default, over the seeds that both have."""
    found, default = (
        tested[tested["setting"] == setting].set_index("seed")[[*COMPARED]]
        for setting in (FOUND, DEFAULT)
    )
    pairs = (found - default).dropna()
    row: Row = {"paired_seeds": len(pairs)} if len(pairs) else {}
    for name in COMPARED if len(pairs) else ():
        one = mean_interval(pairs.assign(all=0), ["all"], name, SIGNED_SHARE).iloc[0]
        row[f"{name}_difference"] = float(one["mean"])
        # A few seeds with the same difference do not prove that others have it.
        has_spread = one["std"] > ROUNDING
        row[f"{name}_difference_low"] = float(one["low"]) if has_spread else nan
        row[f"{name}_difference_high"] = float(one["high"]) if has_spread else nan
    return row


def verdict(row: Row, recommended: Recommendation) -> str:
    """`BETTER`, `NOT_BETTER`, `IS_DEFAULT`, or `UNKNOWN` if the default's trial is not complete."""
    if recommended.is_default:
        return IS_DEFAULT
    if "default_valid_accuracy" not in row:
        return UNKNOWN
    search = recommended.search
    change, low = row.get("valid_accuracy_difference"), row.get("valid_accuracy_difference_low")
    if change is None:
        change = row["valid_accuracy"] - row["default_valid_accuracy"]
    lowest = change if low is None or low != low else low  # NaN with one seed
    if lowest > ROUNDING:
        return BETTER
    cheaper = row["total_epochs"] < row["default_total_epochs"]
    close = change >= -search.config.tolerance - ROUNDING
    return BETTER if search.config.objective == "pareto" and cheaper and close else NOT_BETTER


def advised(row: Row, recommended: Recommendation) -> dict[str, Any]:
    """The parameters to use: those that were found, or the default if they are not better."""
    better = row["verdict"] in (BETTER, UNKNOWN)
    return recommended.params if better else recommended.search.baseline


def headline(row: Row, recommended: Recommendation) -> str:
    """The verdict in a sentence or two."""
    rule = describe_rule(recommended.search)
    params = ", ".join(f"{name}={as_text(v)}" for name, v in recommended.params.items())
    trial = f"trial {recommended.number} ({params})"
    if row["verdict"] == IS_DEFAULT:
        return f"nothing better than the default was found: the default itself is {rule}."
    if row["verdict"] == UNKNOWN:
        return f"recommended: {trial}. The trial of the default is not complete."
    if row["verdict"] == BETTER:
        return f"recommended: {trial}. It takes {evidence(row)}.{_doubt(row, recommended)}"
    return f"nothing better than the default was found: {trial}, {rule}, takes {evidence(row)}."


def _doubt(row: Row, recommended: Recommendation) -> str:
    """What the fresh seeds leave open about a recommended trial that is cheaper."""
    tolerance = recommended.search.config.tolerance
    low = row.get("valid_accuracy_difference_low", nan)
    if not low < -tolerance - ROUNDING:
        return ""
    return f" A loss of more than {100 * tolerance:g} points is not excluded."


def evidence(row: Row) -> str:
    """How the trial compares with the default: its epochs and the differences in accuracy."""
    text = f"{row['total_epochs']} epochs instead of {row['default_total_epochs']}"
    if "paired_seeds" not in row:
        change = 100 * (row["valid_accuracy"] - row["default_valid_accuracy"])
        return f"{text}; validation accuracy {change:+.2f} points in the trials, not confirmed"
    valid, test = (_difference(row, name) for name in COMPARED)
    seeds = row["paired_seeds"]
    how = (
        "with one fresh seed" if seeds == 1 else f"means and 95% intervals over {seeds} fresh seeds"
    )
    return f"{text}; validation accuracy {valid}, test accuracy {test} ({how})"


def _difference(row: Row, name: str) -> str:
    change = f"{100 * row[f'{name}_difference']:+.2f}"
    low, high = row[f"{name}_difference_low"], row[f"{name}_difference_high"]
    if low == low:
        return f"{change} [{100 * low:+.2f}, {100 * high:+.2f}] points"
    return f"{change} points{' in each seed' if row['paired_seeds'] > 1 else ''}"


def setting_rows(recommended: Recommendation, row: Row) -> list[Row]:
    """The default and what was found, one below the other, with all that is known of both."""
    found = RECOMMENDED if row["verdict"] in (BETTER, UNKNOWN) else FOUND
    if recommended.is_default:
        found = DEFAULT
    rows = []
    for number, params in reversed(recommended.settings.values()):
        is_found = number == recommended.number
        prefix = "" if is_found else "default_"
        one: Row = {"setting": found if is_found else DEFAULT, "trial": number} | params
        one |= {
            name: row[f"{prefix}{name}"] for name in ("rounds", "total_epochs", "valid_accuracy")
        }
        one |= {f"fresh_{name}": row.get(f"{prefix}fresh_{name}", nan) for name in COMPARED}
        rows.append(one)
    return rows


def settings_table(recommended: list[Recommendation], rows: list[Row]) -> pd.DataFrame:
    """The same of all methods as text, for the terminal and for MLflow."""
    records = [
        {"method": each.search.method} | one
        for each, row in zip(recommended, rows, strict=True)
        for one in setting_rows(each, row)
    ]
    names = {name: name for each in recommended for name in each.search.space}
    heads = {"method": "method", "setting": "setting", "trial": "trial"} | names
    heads |= {"rounds": "rounds", "total_epochs": "epochs", "valid_accuracy": "valid"}
    heads |= {"fresh_valid_accuracy": "fresh valid", "fresh_test_accuracy": "fresh test"}
    table = pd.DataFrame(records)[[*heads]].rename(columns=heads).astype(object)
    for name in ("valid", "fresh valid", "fresh test"):
        table[name] = table[name].map(lambda value: f"{value:.4f}" if value == value else "-")
    return table.map(lambda value: "-" if value != value else as_text(value))


def edge_warning(recommended: Recommendation) -> str:
    """Which recommended values are at an end of a range that can be widened; empty if none is.

    The command with the advised ranges continues the study, and only this one if it searches
    several methods: ranges of one method may not suit another.
    """
    search, wider, places = recommended.search, {}, []
    for name, value in recommended.params.items():
        rule = search.space[name]
        end = edge_of(rule, value)
        if not end or isinstance(rule, Choices):
            continue
        if longer := extended(name, rule, end):
            bound = rule.low if end == "smallest" else rule.high
            close = "" if value == bound else "close to "
            places.append(f"{name}={value} is {close}the {end} value of its range")
            wider[name] = longer
    if not wider:
        return ""
    asked = parse_space(search.config.search, {})
    ranges = format_space({name: asked[name] for name in asked if name in search.space} | wider)
    only = f"reinit={search.method} " if len(methods_of(search.config.reinit)) > 1 else ""
    return (
        f"{'; '.join(places)}: continue the study with {only}search={ranges} and a larger number "
        "of trials"
    )


def default_cost_note(row: Row) -> str:
    """What the best trial reaches that costs no more than the default; empty without a default."""
    if "default_valid_accuracy" not in row:
        return ""
    default, best = row["default_valid_accuracy"], row["best_at_default_cost"]
    return (
        f"Among trials that cost no more than the default ({row['default_total_epochs']} epochs), "
        f"the best validation accuracy is {best:.4f} (slightly optimistic, as the best of many); "
        f"the default has {default:.4f}."
    )
