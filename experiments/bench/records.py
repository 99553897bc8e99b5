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
from experiments.tracking.networks import best_round, load_network
from pruning.files import write_whole
from pruning.sizes import sparsity

LENET = "lenet_300_100 on mnist"
PUBLISHED = {  # of LENET: bytes, test error in %
    "Han et al. 2016": (27_000, 1.58),
    "Ullrich et al. 2017": (16_700, 1.94),
    "Molchanov et al. 2017": (9_400, 1.8),  # sparse variational dropout, in Louizos et al. 2017
    "Oktay et al. 2020": (8_560, 1.9),
}
KEY = ["run", "round", "shared_values"]
SETTING = ["sparsity", "shared_values"]
RESULTS = ["left", "bytes", "valid_error", "test_error"]
ROWS, PICTURE = "records.csv", "records.png"


def main(argv: Sequence[str] | None = None) -> None:
    """Pack all networks, print a table and draw it. The same command continues where it stopped."""
    parser = argparse.ArgumentParser(prog=f"{PROGRAM} bench_records")
    parser.add_argument("--runs", required=True, help="ids of runs, or folders of checkpoints")
    parser.add_argument(
        "--sparsities",
        default="0.92,0.94,0.95,0.97,0.98",
        help="least sparsity of a network (default: 0.92,0.94,0.95,0.97,0.98)",
    )
    parser.add_argument(
        "--shared_values", default="4,6,8,16", help="values of a tensor (default: 4,6,8,16)"
    )
    parser.add_argument("--out", default="records", help="output folder (default: records)")
    args = parser.parse_args(argv)
    columns = (args.sparsities, args.shared_values, args.runs)
    configs = [
        validated(
            ExportConfig,
            {"run": run, "sparsity": least, "shared_values": count}
            | {"values": "shared", "formats": "packed"},
        )
        for least, count, run in product(*(text.split(",") for text in columns))
    ]
    title, asked = check_all(configs)
    folder = Path(args.out)
    folder.mkdir(parents=True, exist_ok=True)
    packed = read_rows(folder / ROWS)
    for key, config in asked:
        if key in packed:
            continue
        raise_if_interrupted()
        packed[key] = pack(config)
        rows = [dict(zip(KEY, known, strict=True)) | row for known, row in packed.items()]
        write_whole(folder / ROWS, pd.DataFrame(rows).to_csv(index=False).encode())
        print_line(" ".join(f"{name}={value}" for name, value in rows[-1].items()))
    table = pd.DataFrame(
        dict(zip(KEY, key, strict=True)) | {"sparsity": config.sparsity} | packed[key]
        for key, config in asked
    )
    print_line(f"\n{table_text(summary(table))}")
    draw_records(table, title).savefig(folder / PICTURE, facecolor="white")
    print_line(f"\nTable and picture: {folder}")


Key = tuple[str, int, int]  # run, round, shared values


def check_all(configs: Sequence[ExportConfig]) -> tuple[str, list[tuple[Key, ExportConfig]]]:
    """What all runs trained, as text, and the network that each config names.

    Raises:
        ValueError: If a network does not exist, or the runs have not the same model and data.
    """
    trained: dict[str, str] = {}
    asked = []
    for config in configs:
        if config.run not in trained:
            check_source(config.run)
            network = load_network(config.run, 0)
            trained[config.run] = f"{network.spec.model} on {network.metadata['config']['dataset']}"
        try:
            number = best_round(config.run, config.sparsity)
        except ValueError as error:
            raise ValueError(f"run {config.run}: {error}") from None
        asked.append(((config.run, number, config.shared_values), config))
    if len(set(trained.values())) > 1:
        raise ValueError(f"all runs must have one model and data, got {trained}")
    return next(iter(trained.values())), asked


def read_rows(path: Path) -> dict[Key, dict[str, float]]:
    """The results that a file has."""
    if not path.exists():
        return {}
    try:
        table = pd.read_csv(path, dtype={"run": str}, keep_default_na=False)
        table = table.astype({"round": int, "shared_values": int})
        table = table.astype(dict.fromkeys(RESULTS, float) | {"bytes": int})
        rows = table[KEY + RESULTS].itertuples(index=False, name=None)
        return {row[:3]: dict(zip(RESULTS, row[3:], strict=True)) for row in rows}
    except (ValueError, KeyError):
        raise ValueError(f"{path} is damaged: delete it, or use another out") from None


def pack(config: ExportConfig) -> dict[str, float]:
    """Pack one network; returns its results, errors in %."""
    request = request_of(config)
    network, test = request.network, request.data.test
    assert test
    with TemporaryDirectory() as place:
        made = write_format("packed", request, Path(place), logits_of(network.module, test))
    left = 100 * (1 - sparsity(network.masks))  # % of the weights
    errors = [round(100 * (1 - each), 4) for each in (made.valid_accuracy, made.test_accuracy)]
    return dict(zip(RESULTS, (round(left, 2), made.bytes, *errors), strict=True))


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
def draw_records(table: pd.DataFrame, title: str) -> Figure:
    """Test error against bytes: means over the runs with their range, and published figures."""
    groups = table.groupby(SETTING)
    means = groups[["bytes", "valid_error", "test_error"]].mean()
    least, most = groups["test_error"].min(), groups["test_error"].max()
    figure, (axis,) = new_figure(f"Bytes of {title}")
    spread = [means["test_error"] - least, most - means["test_error"]]
    axis.errorbar(
        means["bytes"] / 1000,
        means["test_error"],
        [list(each) for each in spread],
        fmt="o",
        ms=4,
        lw=0.8,
        color=COLOURS[0],
        label=f"Weight Loss, mean and range of {table['run'].nunique()} runs",
    )
    front = front_of(means)
    axis.plot(front["bytes"] / 1000, front["test_error"], color=COLOURS[0], lw=1)
    for name, (size, error) in PUBLISHED.items() if title == LENET else ():
        axis.plot(size / 1000, error, "D", ms=5, color=INK)
        axis.annotate(name, (size / 1000, error), (6, -3), textcoords="offset points", fontsize=8)
    axis.set_xscale("log")
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_formatter("{x:g}")
    axis.set_xlabel("file, kB")
    axis.set_ylabel("test error, %")
    axis.legend()
    return figure
