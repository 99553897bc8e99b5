"""Costs: what was measured, as tables, as a picture, and in words where pruning does not pay."""

from collections.abc import Mapping, Sequence

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from experiments.deployment.forms import FORMS, Written
from experiments.deployment.timing import Times
from experiments.figures.experiment import COLOURS
from experiments.figures.style import INK, MARKERS, new_figure, report_style
from experiments.processes.terminal import table_text

GAIN = 0.95  # of the cost of the dense form: anything above it counts as no gain
FIXED = {"bytes": "file", "multiply_adds": "multiply-adds"}  # costs that need no clock
MEASURED = {"loading_mb": "memory of loading", "inference_mb": "memory of inference"}
LATENCY = "p50_ms"


def table_of(written: Sequence[Written], times: Sequence[Mapping[str, Times]]) -> pd.DataFrame:
    """A row for each form, number of threads and number of images in a query.

    Memory is in MB beyond the imported libraries, latency in ms, throughput in images a second.
    """
    rows = []
    for form in written:
        for cell in times:
            taken = cell[form.form]
            rows.append(
                {
                    "form": form.form,
                    "bytes": form.bytes,
                    "multiply_adds": form.multiply_adds,
                    "test_accuracy": form.test_accuracy,
                    "valid_accuracy": form.valid_accuracy,
                    "threads": taken.threads,
                    "batch": taken.batch,
                    "queries": len(taken.seconds),
                    "p50_ms": taken.percentile(50),
                    "p90_ms": taken.percentile(90),
                    "p99_ms": taken.percentile(99),
                    "images_per_second": taken.throughput,
                    "loading_mb": taken.loading,
                    "inference_mb": taken.inference,
                    "process_mb": taken.process,
                }
            )
    return pd.DataFrame(rows)


def cells_of(table: pd.DataFrame) -> list[tuple[int, int]]:
    """The numbers of threads and images that were measured together."""
    pairs = table[["threads", "batch"]].drop_duplicates()
    return [(int(threads), int(batch)) for threads, batch in pairs.itertuples(index=False)]


def _cell(table: pd.DataFrame, threads: int, batch: int) -> pd.DataFrame:
    chosen = (table["threads"] == threads) & (table["batch"] == batch)
    return table[chosen].set_index("form")


def cell_text(threads: int, batch: int) -> str:
    """Such as "batch 64, 1 thread"."""
    return f"batch {batch}, {threads} thread{'s' if threads > 1 else ''}"


def wide(table: pd.DataFrame) -> dict[str, list[str]]:
    """A row for each form, as text: sizes, memory at the first cell, and the latency of each."""
    cells = cells_of(table)
    first = _cell(table, *cells[0])
    columns = {
        "form": [str(name) for name in first.index],
        "file\nkB": [f"{size / 1000:,.1f}" for size in first["bytes"]],
        "multiply-\nadds, k": [f"{count / 1000:,.0f}" for count in first["multiply_adds"]],
        "test\naccuracy": [f"{share:.4f}" for share in first["test_accuracy"]],
        "loading\nMB": [f"{size:.1f}" for size in first["loading_mb"]],
        "inference\nMB": [f"{size:.1f}" for size in first["inference_mb"]],
    }
    for threads, batch in cells:
        cell = _cell(table, threads, batch)
        queries = " to ".join(map(str, sorted({cell["queries"].min(), cell["queries"].max()})))
        columns[f"{cell_text(threads, batch)}\n{queries} queries\nms (p90, p99)"] = [
            f"{row['p50_ms']:.3f} ({row['p90_ms']:.3f}, {row['p99_ms']:.3f})"
            for _, row in cell.iterrows()
        ]
    return columns


def printed_table(table: pd.DataFrame) -> str:
    """For a terminal."""
    return table_text(wide(table))


def markdown_table(table: pd.DataFrame, about: str, lines: Sequence[str]) -> str:
    """A page: what was measured where, the table, what each form is, where there is no gain."""
    columns = {head.replace("\n", " "): values for head, values in wide(table).items()}
    rows = [" | ".join(row) for row in zip(*columns.values(), strict=True)]
    head = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    forms = [f"* {name}: {FORMS[name].title}" for name in columns["form"]]
    page = ["# Measurements", "", *about.splitlines(), "", *head, *(f"| {row} |" for row in rows)]
    page += ["", "Memory is beyond that of the imported libraries, at the first batch and threads."]
    return "\n".join([*page, "", *forms, "", *(f"* {line}" for line in lines)]) + "\n"


def no_gain(table: pd.DataFrame) -> list[str]:
    """In words, each form and cost where the pruned network is not below the dense one."""
    lines = []
    cells = cells_of(table)
    for name in dict.fromkeys(table["form"]):
        form = FORMS[name]
        if form.dense:
            continue
        first = _cell(table, *cells[0])
        costs = {
            title: (_number(first, name, cost), _number(first, form.against, cost))
            for cost, title in (FIXED | MEASURED).items()
        }
        for pair in cells:
            cell = _cell(table, *pair)
            costs[f"latency at {cell_text(*pair)}"] = (
                _number(cell, name, LATENCY),
                _number(cell, form.against, LATENCY),
            )
        lost = [
            f"{title} ({100 * cost / dense:.0f}%)" if dense else title
            for title, (cost, dense) in costs.items()
            if cost > GAIN * dense
        ]
        if lost:
            lines.append(f"{name} gains nothing over {form.against} in: {', '.join(lost)}")
    return lines or ["every form of the pruned network costs less than the dense one, in all ways"]


def _number(cell: pd.DataFrame, form: str, column: str) -> float:
    return float(cell.loc[[form], column].iloc[0])


def metrics_of(table: pd.DataFrame) -> dict[str, float]:
    """As metrics of a run: `measure/<form>/<cost>`, and latency with batch and threads."""
    metrics: dict[str, float] = {}
    threads, batch = cells_of(table)[0]
    for name, row in _cell(table, threads, batch).iterrows():
        for cost in (*FIXED, *MEASURED, "test_accuracy"):
            metrics[f"measure/{name}/{cost}"] = float(row[cost])
    for each in table.to_dict("records"):
        where = f"batch_{each['batch']}_threads_{each['threads']}"
        for name in ("p50_ms", "p90_ms"):
            metrics[f"measure/{each['form']}/{where}_{name}"] = float(each[name])
    return metrics


@report_style
def draw_costs(table: pd.DataFrame) -> Figure:
    """Test accuracy against each cost, all forms, lower cost to the left."""
    cells = cells_of(table)
    first = _cell(table, *cells[0])
    panels = [
        ("file, kB", first["bytes"] / 1000),
        ("multiply-adds, millions", first["multiply_adds"] / 1e6),
        ("inference memory, MB", first["inference_mb"].clip(lower=0.01)),
    ]
    for threads, batch in (cells[0], cells[-1]):
        cell = _cell(table, threads, batch)
        panels.append((f"ms, {cell_text(threads, batch)}", cell[LATENCY]))
    figure, axes = new_figure("Test accuracy against what a network costs", len(panels) + 1)
    for axis, (label, costs) in zip(axes, panels, strict=False):
        for number, name in enumerate(first.index):
            axis.plot(
                costs[name],
                100 * first.loc[name, "test_accuracy"],
                MARKERS[number],
                color=_colour(name),
                label=name,
                ms=6,
            )
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 3), numticks=6))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.margins(x=0.15)
        axis.set_title(label)
        accuracy = 100 * first["test_accuracy"]
        axis.set_ylim(accuracy.min() - 0.5, min(100.1, accuracy.max() + 0.5))
    for axis in axes[:-1:3]:
        axis.set_ylabel("test accuracy, %")
    axes[-1].axis("off")
    handles, labels = axes[0].get_legend_handles_labels()
    axes[-1].legend(handles, labels, loc="center", ncols=2, labelcolor=INK)
    return figure


def _colour(name: str) -> str:
    return "#8a8a8a" if FORMS[name].dense else COLOURS[list(FORMS).index(name) % 6]
