"""Page tables: the tables of a page, cell by cell.

Ids, dates and times are `volatile`: the rest is the same on two pages of the same comparison.
experiments/figures/page.py says what tables and columns are.
"""

import inspect
from functools import partial

import numpy as np
import pandas as pd

from experiments.comparison.findings import (
    ACCURACY,
    EARLY_STOP,
    controls,
    learning_rates,
    verdict,
)
from experiments.comparison.results import Comparison
from experiments.comparison.statistics import DENSE, dense_interval
from experiments.comparison.text import in_percent, metric_text, p_value, ratio, weights
from experiments.figures.page import (
    Cell,
    Cells,
    Column,
    Row,
    Table,
    number,
    number_cell,
    table_of,
    words,
)
from experiments.rounds.metrics import COMPARED, METRICS
from pruning.reinit import REINITS

MAIN = (ACCURACY, EARLY_STOP)  # the metrics in tables of a single round


def tables(comparison: Comparison) -> dict[str, Table]:
    """All tables of a page, by the names that page.html uses."""
    summary, differences = comparison.summary, comparison.differences
    here = summary[summary["round"] == comparison.shown_round]
    gaps = differences[differences["round"] == comparison.shown_round]
    main, every = ([each for name in names for each in _mean(name)] for names in (MAIN, COMPARED))
    return {
        "methods": table_of("Methods", _methods(comparison), METHODS),
        "means": table_of(
            "Means over seeds",
            pd.concat([_dense(comparison.rounds), here]),
            [METHOD, LEFT, *main, *SIZES],
        ),
        "all_means": table_of("Means, all rounds", summary, [METHOD, ROUND, LEFT, *every, *SIZES]),
        "accuracy": table_of(
            "Differences in accuracy", gaps[gaps["metric"] == ACCURACY], DIFFERENCE
        ),
        "early_stop": table_of(
            "Differences in early stop", gaps[gaps["metric"] == EARLY_STOP], DIFFERENCE
        ),
        "all_differences": table_of(
            "Differences, all rounds", differences, [METRIC, ROUND, LEFT, *DIFFERENCE]
        ),
        "controls": table_of("Controls", controls(comparison), CONTROLS),
        "matches": table_of("Smallest matching networks", comparison.matches, MATCHES),
        "costs": table_of("Measured costs", comparison.costs, COSTS),
        "runs": table_of("Runs", _runs(comparison), RUNS),
        "failures": table_of("Failures", pd.DataFrame(comparison.failed), FAILURES),
    }


def amount(name: str, metric: str = "", sign: bool = False) -> Cells:
    """Cells of a metric: of `metric`, or of the one that the row names."""
    return lambda row: number_cell(
        row[name], lambda value: metric_text(metric or row["metric"], value, sign)
    )


def interval(low: str, high: str, metric: str = "") -> Cells:
    """Cells of an interval, sorted by its lower end."""

    def cell(row: Row) -> Cell:
        text = partial(metric_text, metric or row["metric"])
        return number_cell(row[low], lambda value: f"{text(value)} to {text(row[high])}")

    return cell


def _mean(metric: str) -> list[Column]:
    def cell(row: Row) -> Cell:
        mean, std = row[f"{metric}_mean"], row[f"{metric}_std"]
        spread = "" if np.isnan(std) else f" ± {metric_text(metric, std)}"
        return number_cell(mean, lambda value: metric_text(metric, value) + spread)

    return [
        (METRICS[metric].label + (" (%)" if in_percent(metric) else ""), cell),
        ("95% interval", interval(f"{metric}_low", f"{metric}_high", metric)),
    ]


def _methods(comparison: Comparison) -> pd.DataFrame:
    rates = learning_rates(comparison)
    methods = comparison.rounds.drop_duplicates("method")
    return methods.assign(rate=methods["method"].map(rates))


def _dense(rounds: pd.DataFrame) -> pd.DataFrame:
    """The dense network as a row of `statistics.summarise`."""
    row: dict[str, object] = {"method": DENSE, "sparsity": 0.0, "n": rounds["seed"].nunique()}
    row |= {"compression_ratio": 1.0, "theoretical_speedup": 1.0}
    for name in MAIN:
        row |= dict(dense_interval(rounds, name).add_prefix(f"{name}_"))
    return pd.DataFrame([row])


def _runs(comparison: Comparison) -> pd.DataFrame:
    """The last round of each arm, with the minutes of all its rounds and the link to its run."""
    rows = []
    for _, arm in comparison.rounds.groupby(["method", "seed"], sort=False):
        minutes = arm.loc[arm["round"] > 0, "round_seconds"].sum() / 60
        last = arm.sort_values("round").iloc[-1]
        rows.append({**last, "minutes": minutes, "href": comparison.links.get(last["run_id"], "")})
    return pd.DataFrame(rows)


def _run(row: Row) -> Cell:
    text = row["run_id"][:8] if row["href"] else row["run_id"]
    return Cell(text, href=row["href"], volatile=True)


def _restart(row: Row) -> Cell:
    name = row["reinit"]
    return Cell((inspect.getdoc(REINITS[name].values) or name).partition("\n")[0])


METHOD, ROUND = ("method", words("method")), ("round", number("round"))
SEEDS = ("seeds", number("n"))
LEFT: Column = ("weights left", lambda row: number_cell(1 - row["sparsity"], weights))
METHODS: list[Column] = [
    METHOD,
    ("where surviving weights restart", _restart),
    ("learning rate of retraining", words("rate")),
    *((name, words(name)) for name in ("criterion", "control", "pruning")),
]
SIZES: list[Column] = [
    ("fewer parameters", number("compression_ratio", ratio)),
    ("fewer multiply-adds", number("theoretical_speedup", ratio)),
    SEEDS,
]
DIFFERENCE: list[Column] = [
    METHOD,
    ("minus", words("other")),
    ("verdict", lambda row: Cell(verdict(row))),
    ("difference", amount("difference", sign=True)),
    ("95% interval", interval("low", "high")),
    ("p", number("p_value", p_value)),
    SEEDS,
]
METRIC: Column = ("metric", lambda row: Cell(METRICS[row["metric"]].label))
CONTROLS: list[Column] = [*DIFFERENCE[:4], ("meaning", words("meaning"))]
MATCHES: list[Column] = [
    METHOD,
    ("weights left", number("remaining", weights)),
    ("validation", amount("valid_accuracy", "valid_accuracy")),
    ("dense validation", amount("dense_valid_accuracy", "valid_accuracy")),
    ("test", amount("test_accuracy", "test_accuracy")),
    ("95% interval", interval("test_low", "test_high", "test_accuracy")),
    ("dense test", amount("dense_test_accuracy", "test_accuracy")),
    ("early stop", amount("early_stop_iteration", "early_stop_iteration")),
    ("dense early stop", amount("dense_early_stop_iteration", "early_stop_iteration")),
    SEEDS,
]
RUNS: list[Column] = [
    METHOD,
    ("seed", number("seed")),
    ("last round", number("round")),
    LEFT,
    ("test accuracy (%)", amount("test_accuracy", "test_accuracy")),
    (
        "minutes without dense network",
        lambda row: Cell(f"{row['minutes']:.1f}", row["minutes"], volatile=True),
    ),
    ("run", _run),
]
COSTS: list[Column] = [
    METHOD,
    ("seed", number("seed")),
    ROUND,
    ("form", words("form")),
    ("file (kB)", number("bytes", lambda size: f"{size / 1000:,.1f}")),
    ("multiply-adds (k)", number("multiply_adds", lambda count: f"{count / 1000:,.0f}")),
    ("test accuracy (%)", amount("test_accuracy", "test_accuracy")),
    ("inference memory (MB)", number("inference_mb", "{:.1f}".format)),
    ("threads", number("threads")),
    ("batch", number("batch")),
    ("median (ms)", number("p50_ms", "{:.3f}".format)),
    ("90th percentile (ms)", number("p90_ms", "{:.3f}".format)),
]
FAILURES: list[Column] = [
    ("method", words("label")),
    ("seed", number("seed", str)),
    ("reason", words("reason")),
]
