"""Page tables: the comparison's tables as the page shows them, cell by cell.

A cell has the text that is read and the number that it is sorted by. Ids, dates and times are
`volatile`: all else is the same on two pages of the same comparison.
"""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from experiments.comparison.statistics import DENSE, METRICS, dense_interval, methods_of
from experiments.comparison.wording import UNITS, Unit, fold, percent, remaining
from pruning.reinit import REINITS

UNKNOWN = "\N{EN DASH}"
CHIEF = ("test_accuracy", "early_stop_iteration")
DIFFERENCE_HEADS = ("method", "minus", "seeds", "difference", "95% interval", "p")
SCHEDULES = {
    "start": "starts anew",
    "rewound": "enters after the rewind epoch",
    "final": "low and constant",
}


@dataclass(frozen=True)
class Cell:
    """One cell: `value` is what a number is sorted by, None for words; NaN comes last."""

    text: str
    value: float | None = None
    href: str = ""
    volatile: bool = False


@dataclass(frozen=True)
class Table:
    """A table with a heading for each column; `numeric` says which columns hold numbers."""

    name: str
    heads: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]

    @property
    def numeric(self) -> tuple[bool, ...]:
        """Whether a column's cells are numbers."""
        columns = zip(*self.rows, strict=True) if self.rows else [() for _ in self.heads]
        return tuple(all(cell.value is not None for cell in column) for column in columns)


def methods_table(rounds: pd.DataFrame) -> Table:
    """What the methods do, as pruning/ itself says it."""
    rows = [
        (
            Cell(str(arm.method)),
            Cell(_restart(str(arm.reinit))),
            Cell(SCHEDULES[REINITS[str(arm.reinit)].schedule]),
            Cell(str(arm.criterion)),
            Cell(str(arm.control)),
            Cell(str(arm.pruning)),
        )
        for arm in rounds.drop_duplicates("method").itertuples()
    ]
    heads = (
        "method",
        "where survivors restart",
        "learning rate",
        "criterion",
        "control",
        "pruning",
    )
    return Table("Methods", heads, tuple(rows))


def _restart(reinit: str) -> str:
    return (inspect.getdoc(REINITS[reinit].values) or reinit).partition("\n")[0]


def summary_table(summary: pd.DataFrame) -> Table:
    """Means, deviations and intervals of all methods, rounds and metrics."""
    rows = [
        (Cell(str(row["method"])), whole(row["round"]), *_summary_row(row, METRICS)[1:])
        for _, row in summary.iterrows()
    ]
    heads = ("method", "round", *_summary_heads(METRICS)[1:])
    return Table("Means over seeds, all rounds", heads, tuple(rows))


def shown_table(summary: pd.DataFrame, rounds: pd.DataFrame, number: int) -> Table:
    """The same of one round, its chief metrics only, below the dense networks."""
    shown = [_dense_row(rounds), *(row for _, row in summary.iterrows() if row["round"] == number)]
    rows = [_summary_row(row, CHIEF) for row in shown]
    return Table("Means over seeds", _summary_heads(CHIEF), tuple(rows))


def _dense_row(rounds: pd.DataFrame) -> pd.Series:
    row: dict[str, object] = {"method": DENSE, "sparsity": 0.0}
    row |= {"compression_ratio": 1.0, "theoretical_speedup": 1.0}
    for name in METRICS:
        row |= dict(dense_interval(rounds, name).add_prefix(f"{name}_"))
    return pd.Series(row | {"n": row["test_accuracy_n"]})


def _summary_heads(metrics: Sequence[str]) -> tuple[str, ...]:
    heads = ("method", "weights left", "fewer parameters", "fewer multiply-adds", "seeds")
    return heads + tuple(
        head for name in metrics for head in (f"{UNITS[name].label} ±", "95% interval")
    )


def _summary_row(row: pd.Series, metrics: Sequence[str]) -> tuple[Cell, ...]:
    size = (
        Cell(str(row["method"])),
        share(1 - row["sparsity"]),
        factor(row["compression_ratio"]),
        factor(row["theoretical_speedup"]),
        whole(row["n"]),
    )
    return size + tuple(cell for name in metrics for cell in _spread_cells(row, UNITS[name]))


def _spread_cells(row: pd.Series, unit: Unit) -> tuple[Cell, Cell]:
    mean, std, low, high = (row[f"{unit.metric}_{part}"] for part in ("mean", "std", "low", "high"))
    return (
        Cell(f"{unit.number(mean)} ± {unit.number(std)}", float(mean)),
        interval(low, high, unit),
    )


def differences_table(differences: pd.DataFrame) -> Table:
    """Paired differences of all metrics, rounds and pairs."""
    rows = [
        (Cell(_label(row)), whole(row["round"]), share(1 - row["sparsity"]), *_difference_row(row))
        for _, row in differences.iterrows()
    ]
    heads = ("of", "round", "weights left", *DIFFERENCE_HEADS)
    return Table("Paired differences, all rounds", heads, tuple(rows))


def shown_differences_table(differences: pd.DataFrame, number: int) -> Table:
    """The same of one round, its chief metrics only."""
    shown = differences[(differences["round"] == number) & differences["metric"].isin(CHIEF)]
    rows = [(Cell(_label(row)), *_difference_row(row)) for _, row in shown.iterrows()]
    return Table("Paired differences", ("of", *DIFFERENCE_HEADS), tuple(rows))


def _label(row: pd.Series) -> str:
    return UNITS[str(row["metric"])].label


def _difference_row(row: pd.Series) -> tuple[Cell, ...]:
    unit = UNITS[str(row["metric"])]
    return (
        Cell(str(row["method"])),
        Cell(str(row["other"])),
        whole(row["n"]),
        amount(row["difference"], unit, sign=True),
        interval(row["low"], row["high"], unit),
        Cell(_p(row["p_value"]), float(row["p_value"])),
    )


def _p(value: float) -> str:
    if np.isnan(value):
        return UNKNOWN
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def tickets_table(tickets: pd.DataFrame) -> Table:
    """Winning tickets; dashes where a method has none."""
    rows = [
        (
            Cell(str(row["method"])),
            whole(row["n"]),
            whole(float("nan") if pd.isna(row["round"]) else row["round"]),
            share(row["remaining"]),
            accuracy(row["valid_accuracy"]),
            accuracy(row["dense_valid_accuracy"]),
            accuracy(row["test_accuracy"]),
            interval(row["test_low"], row["test_high"], UNITS["test_accuracy"]),
            accuracy(row["dense_test_accuracy"]),
            amount(row["early_stop_iteration"], UNITS["early_stop_iteration"]),
            amount(row["dense_early_stop_iteration"], UNITS["early_stop_iteration"]),
        )
        for _, row in tickets.iterrows()
    ]
    heads = ("method", "seeds", "round", "weights left", "validation", "dense validation", "test")
    more = ("test 95% interval", "dense test", "early-stop iteration", "dense early stop")
    return Table("Winning tickets", heads + more, tuple(rows))


def arms_table(rounds: pd.DataFrame, links: Mapping[str, str]) -> Table:
    """One row per method and seed: how far it came, how long it took, its run."""
    rows = []
    for (method, seed), arm in rounds.groupby(["method", "seed"], sort=False):
        last = arm.sort_values("round").iloc[-1]
        run = str(last["run_id"])
        minutes = arm.loc[arm["round"] > 0, "round_seconds"].sum() / 60
        rows.append(
            (
                Cell(str(method)),
                Cell(str(seed), float(str(seed))),
                whole(last["round"]),
                share(1 - last["sparsity"]),
                accuracy(last["test_accuracy"]),
                Cell(f"{minutes:.1f}", minutes, volatile=True),
                Cell(run[:8] if run in links else run, href=links.get(run, ""), volatile=True),
            )
        )
    order = {method: place for place, method in enumerate(methods_of(rounds))}
    rows.sort(key=lambda row: (order[row[0].text], row[1].value))
    heads = ("method", "seed", "last round", "weights left", "test accuracy (%)")
    return Table("Runs", (*heads, "minutes, dense apart", "run"), tuple(rows))


def failures_table(failures: Sequence[tuple[str, int, str]]) -> Table:
    """Arms that did not finish, each (method, seed, reason)."""
    rows = [(Cell(name), Cell(str(seed), seed), Cell(why)) for name, seed, why in failures]
    return Table("Failures", ("method", "seed", "reason"), tuple(rows))


def whole(value: float) -> Cell:
    """A count."""
    return Cell(UNKNOWN if np.isnan(value) else f"{value:,.0f}", float(value))


def share(value: float) -> Cell:
    """A share of weights in [0, 1]."""
    return Cell(UNKNOWN if np.isnan(value) else remaining(value), float(value))


def accuracy(value: float) -> Cell:
    """An accuracy in [0, 1], in percent without the sign."""
    return Cell(UNKNOWN if np.isnan(value) else percent(value).rstrip("%"), float(value))


def factor(value: float) -> Cell:
    """How many times smaller."""
    return Cell(UNKNOWN if np.isnan(value) else fold(value), float(value))


def amount(value: float, unit: Unit, sign: bool = False) -> Cell:
    """A metric, or a difference of it, in its unit."""
    return Cell(unit.number(value, sign=sign), float(value))


def interval(low: float, high: float, unit: Unit) -> Cell:
    """An interval, sorted by its lower end."""
    text = UNKNOWN if np.isnan(low) else f"{unit.number(low)} to {unit.number(high)}"
    return Cell(text, float(low))
