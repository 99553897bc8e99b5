"""Bench of records: how few bytes a network takes at which test error, beside published figures.

    python -m experiments bench_records --runs <id of a run>,<id of a run>,...

The runs are those of one experiment with several seeds. Of each, the network with the best
validation accuracy at a sparsity or above is packed with shared values, as `export` does it.
"""

import argparse
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from experiments.config.export import ExportConfig
from experiments.config.parameters import validated
from experiments.deployment.formats import write_format
from experiments.deployment.source import check_source, request_of
from experiments.figures.style import COLOURS, INK, new_figure, report_style
from experiments.processes.program import PROGRAM
from experiments.processes.signals import raise_if_interrupted
from experiments.processes.terminal import print_line, table_text
from experiments.rounds.network import logits_of
from pruning.sizes import sparsity

PUBLISHED = {  # of LeNet-300-100 on MNIST: bytes, test error in %
    "Han et al. 2016": (27_000, 1.58),
    "Ullrich et al. 2017": (16_700, 1.94),
    "Louizos et al. 2017": (9_400, 1.8),
    "Oktay et al. 2020": (8_560, 1.9),
}
SETTING = ["sparsity", "shared_values"]
ROWS, PICTURE = "records.csv", "records.png"


def main(argv: Sequence[str] | None = None) -> None:
    """Pack all networks, print a table and draw it. The same command continues where it stopped."""
    parser = argparse.ArgumentParser(prog=f"{PROGRAM} bench_records")
    parser.add_argument("--runs", required=True, help="ids of runs, or folders of checkpoints")
    parser.add_argument(
        "--sparsities",
        default="0.92,0.94,0.96,0.97,0.98",
        help="least sparsity of a network (default: 0.92,0.94,0.96,0.97,0.98)",
    )
    parser.add_argument(
        "--shared_values", default="4,6,8,16", help="values of a tensor (default: 4,6,8,16)"
    )
    parser.add_argument("--out", default="records", help="output folder (default: records)")
    args = parser.parse_args(argv)
    sparsities = _numbers("sparsities", args.sparsities)
    counts = [int(count) for count in _numbers("shared_values", args.shared_values)]
    folder = Path(args.out)
    rows = _read(folder / ROWS)
    for least, count, run in product(sparsities, counts, args.runs.split(",")):
        asked = {"run": run, "sparsity": least, "shared_values": count}
        if any(asked.items() <= row.items() for row in rows):
            continue
        raise_if_interrupted()
        rows.append(asked | pack(asked))
        folder.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(rows).to_csv(folder / ROWS, index=False)
        print_line(" ".join(f"{name}={value}" for name, value in rows[-1].items()))
    table = pd.DataFrame(rows)
    print_line(f"\n{table_text(summary(table))}")
    draw_records(table).savefig(folder / PICTURE)
    print_line(f"\nTable and picture: {folder}")


def _numbers(name: str, text: str) -> list[float]:
    try:
        return [float(word) for word in text.split(",")]
    except ValueError:
        raise ValueError(f"{name} must be numbers, separated by commas, got {text}") from None


def _read(path: Path) -> list[dict[str, Any]]:
    return pd.read_csv(path).to_dict("records") if path.exists() else []  # type: ignore[return-value]


def pack(asked: dict[str, Any]) -> dict[str, Any]:
    """Pack one network with shared values; returns its results, errors in %."""
    check_source(asked["run"])
    settings = {"values": "shared", "formats": "packed"}
    request = request_of(validated(ExportConfig, asked | settings))
    network, test = request.network, request.data.test
    assert test
    with TemporaryDirectory() as place:
        made = write_format("packed", request, Path(place), logits_of(network.module, test))
    return {
        "round": network.round,
        "left": round(100 * (1 - sparsity(network.masks)), 2),  # % of the weights
        "bytes": made.bytes,
        "valid_error": round(100 * (1 - made.valid_accuracy), 4),
        "test_error": round(100 * (1 - made.test_accuracy), 4),
    }


def summary(table: pd.DataFrame) -> dict[str, list[str]]:
    """A row for each setting, as text: means over the runs, and their spread."""
    columns: dict[str, list[str]] = {}
    for (least, count), rows in table.groupby(SETTING):
        size, valid, test = (rows[name] for name in ("bytes", "valid_error", "test_error"))
        row = {
            "sparsity\nat least": f"{least:g}",
            "shared\nvalues": str(count),
            "runs": str(len(rows)),
            "weights\nleft, %": f"{rows['left'].mean():.2f}",
            "bytes\n(range)": f"{size.mean():,.0f} ({size.min():,} to {size.max():,})",
            "validation\nerror, %": f"{valid.mean():.2f}",
            "test error, %\n(range)": f"{test.mean():.2f} ({test.min():.2f} to {test.max():.2f})",
        }
        for name, text in row.items():
            columns.setdefault(name, []).append(text)
    return columns


def front_of(means: pd.DataFrame) -> pd.DataFrame:
    """The settings with a lower validation error than all that take fewer bytes."""
    ordered = means.sort_values(["bytes", "valid_error"])
    return ordered[ordered["valid_error"] < ordered["valid_error"].cummin().shift(fill_value=1e9)]


@report_style
def draw_records(table: pd.DataFrame) -> Figure:
    """Test error against bytes: means over the runs with their range, and published figures."""
    groups = table.groupby(SETTING)
    means = groups[["bytes", "valid_error", "test_error"]].mean()
    least, most = groups["test_error"].min(), groups["test_error"].max()
    figure, (axis,) = new_figure("Bytes of LeNet-300-100 on MNIST", 1)
    spread = [means["test_error"] - least, most - means["test_error"]]
    axis.errorbar(
        means["bytes"] / 1000,
        means["test_error"],
        [list(each) for each in spread],
        fmt="o",
        ms=4,
        lw=0.8,
        color=COLOURS[0],
        label=f"Weight Loss, mean and range of {groups.size().max()} runs",
    )
    front = front_of(means)
    axis.plot(front["bytes"] / 1000, front["test_error"], color=COLOURS[0], lw=1)
    for name, (size, error) in PUBLISHED.items():
        axis.plot(size / 1000, error, "D", ms=5, color=INK)
        axis.annotate(name, (size / 1000, error), (6, 4), textcoords="offset points", fontsize=8)
    axis.set_xscale("log")
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_formatter("{x:g}")
    axis.set_xlabel("file, kB")
    axis.set_ylabel("test error, %")
    axis.legend()
    return figure
