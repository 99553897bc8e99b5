"""Page tables: the tables of a page, cell by cell.

Ids, dates and times are `volatile`: the rest is the same on two pages of the same comparison.
experiments/figures/page.py says what tables and columns are.
"""

import inspect
import re
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from experiments.comparison.families import HEADLINE
from experiments.comparison.findings import controls, difference, learning_rates, verdict_text
from experiments.comparison.results import EARLY_STOP, Comparison
from experiments.comparison.statistics import ACCURACY, DENSE, dense_interval, measured
from experiments.comparison.text import in_percent, metric_text, p_value, ratio, weights
from experiments.figures.page import (
    UNKNOWN,
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
from experiments.rounds.metrics import METRICS
from pruning.reinit import REINITS

MAIN = (ACCURACY, EARLY_STOP)  # the metrics in tables of a single round


def tables(comparison: Comparison) -> dict[str, Table]:
    """All tables of a page, by the names that page.html uses."""
    summary, differences = comparison.summary, comparison.differences
    here = summary[summary["round"] == comparison.shown_round]
    gaps = differences[differences["round"] == comparison.shown_round]
    main, every = (
        [each for name in names for each in _mean(name)]
        for names in (MAIN, measured(comparison.rounds))
    )
    means = pd.concat([_dense(comparison), here])
    tested = TESTED if comparison.constant_rate else NOT_TESTED
    return {
        "methods": table_of("Methods", _methods(comparison), METHODS),
        "means": table_of("Means over seeds", means, [METHOD, LEFT, *main, *SIZES]),
        "all_means": table_of("Means, all rounds", summary, [METHOD, ROUND, LEFT, *every, *SIZES]),
        "family": table_of("Tested differences in accuracy", _family(comparison), FAMILY),
        "accuracy": table_of(
            "All differences in accuracy", gaps[gaps["metric"] == ACCURACY], DIFFERENCE
        ),
        "early_stop": table_of(
            "Differences in early stop", gaps[gaps["metric"] == EARLY_STOP], tested
        ),
        "all_differences": table_of(
            "Differences, all rounds", differences, [METRIC, ROUND, LEFT, *TESTED]
        ),
        "controls": table_of("Controls", controls(comparison), CONTROLS),
        "matches": table_of("Smallest matching networks", comparison.matches, MATCHES),
        "overlap": table_of("Overlap of masks", comparison.mask_overlap, OVERLAP),
        "costs": table_of("Measured costs", comparison.costs, COSTS),
        "runs": table_of("Runs", _runs(comparison), RUNS),
        "failures": table_of("Failures", pd.DataFrame(comparison.failed), FAILURES),
    }


def _family(comparison: Comparison) -> pd.DataFrame:
    """The rows of the headline's family, each as the best method minus another."""
    table, number = comparison.differences, comparison.shown_round
    pairs = comparison.families[HEADLINE]
    return pd.DataFrame([difference(table, ACCURACY, number, *pair) for pair in pairs])


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
        mean, std, known = (row[f"{metric}_{name}"] for name in ("mean", "std", "n"))
        spread = "" if np.isnan(std) else f" ± {metric_text(metric, std)}"
        if known < row["n"]:  # the other seeds have no value
            spread = f" ({known:.0f} of {row['n']:.0f} seeds)"
        return number_cell(mean, lambda value: metric_text(metric, value) + spread)

    columns: list[Column] = [
        (METRICS[metric].label + (" (%)" if in_percent(metric) else ""), cell),
        ("95% interval", interval(f"{metric}_low", f"{metric}_high", metric)),
    ]
    if metric == ACCURACY:
        ends = (f"{metric}_images_low", f"{metric}_images_high")
        columns.append(("with new test images", interval(*ends, metric)))
    return columns


def _methods(comparison: Comparison) -> pd.DataFrame:
    rates = learning_rates(comparison)
    methods = comparison.rounds.drop_duplicates("method")
    restarts = methods["reinit"].map(partial(_restart, masks=comparison.setting["masks"]))
    return methods.assign(rate=methods["method"].map(rates), restart=restarts)


def _dense(comparison: Comparison) -> pd.DataFrame:
    """The dense network as a row of `statistics.summarise`."""
    rounds, seeds = comparison.rounds, comparison.rounds["seed"].nunique()
    row: dict[str, object] = {"method": DENSE, "sparsity": 0.0, "n": seeds}
    row |= {"compression_ratio": 1.0, "theoretical_speedup": 1.0}
    for name in MAIN:
        values = dense_interval(rounds, name, comparison.test_images, comparison.correct)
        row |= dict(values.add_prefix(f"{name}_"))
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


def _yes_or_no(value: Any) -> str:
    return UNKNOWN if pd.isna(value) else "yes" if value else "no"


def _restart(reinit: str, masks: str) -> str:
    """The first words of a method's docstring, up to the paper that it cites."""
    first = (inspect.getdoc(REINITS[reinit].values) or reinit).partition("\n")[0]
    words = re.split(r"[.:]", first)[0]
    if reinit == "random" and masks == "shared":  # with masks of its own it is another control
        return f"{words}: the control of Frankle & Carbin 2019, arXiv:1803.03635"
    return words


METHOD, ROUND = ("method", words("method")), ("round", number("round"))
SEEDS = ("seeds", number("n"))
LEFT: Column = ("weights left", lambda row: number_cell(1 - row["sparsity"], weights))
METHODS: list[Column] = [
    METHOD,
    ("where surviving weights restart", words("restart")),
    ("learning rate of retraining", words("rate")),
    *((name, words(name)) for name in ("criterion", "control", "pruning")),
]
SIZES: list[Column] = [
    ("fewer parameters", number("compression_ratio", ratio)),
    ("fewer multiply-adds", number("theoretical_speedup", ratio)),
    SEEDS,
]
OTHER: Column = ("minus", words("other"))
VERDICT: Column = ("verdict", lambda row: Cell(verdict_text(row)))
GAP: list[Column] = [
    ("difference", amount("difference", sign=True)),
    ("95% interval", interval("low", "high")),
]
IMAGES: Column = ("with new test images", interval("images_low", "images_high"))
RAW: Column = ("p", number("p_value", p_value))
HOLM: Column = ("p, Holm", number("p_holm", p_value))
COULD: Column = ("could have been shown", amount("detectable"))
NOT_TESTED: list[Column] = [METHOD, OTHER, *GAP, SEEDS]
TESTED: list[Column] = [METHOD, OTHER, *GAP, RAW, SEEDS]
FAMILY: list[Column] = [METHOD, OTHER, VERDICT, *GAP, IMAGES, RAW, HOLM, SEEDS]
DIFFERENCE: list[Column] = [METHOD, OTHER, *GAP, IMAGES, RAW, COULD, SEEDS]
METRIC: Column = ("metric", lambda row: Cell(METRICS[row["metric"]].label))
CONTROLS: list[Column] = [METHOD, OTHER, *GAP, RAW, HOLM, COULD, ("meaning", words("meaning"))]
MATCHES: list[Column] = [
    METHOD,
    ("what it is", lambda row: Cell(row["name"] or "none shown")),
    ("weights left", number("remaining", weights)),
    ("validation", amount("valid_accuracy", "valid_accuracy")),
    ("dense", amount("dense_valid_accuracy", "valid_accuracy")),
    ("difference", amount("gain", "valid_accuracy", sign=True)),
    ("95% bound", amount("gain_low", "valid_accuracy", sign=True)),
    ("all larger match", lambda row: Cell(_yes_or_no(row["larger_match"]))),
    ("test", amount("test_accuracy", "test_accuracy")),
    ("95% interval", interval("test_low", "test_high", "test_accuracy")),
    ("dense test", amount("dense_test_accuracy", "test_accuracy")),
    SEEDS,
]
OVERLAP: list[Column] = [
    ("differ in", words("differs")),
    METHOD,
    ("and", lambda row: Cell("" if row["other"] == row["method"] else row["other"])),
    ("Jaccard index", number("jaccard", "{:.3f}".format)),
    ("smallest to largest", lambda row: Cell(f"{row['lowest']:.3f} to {row['highest']:.3f}")),
    ("random masks", number("expected", "{:.3f}".format)),
    ("pairs", number("n")),
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
