"""Measure: what the network of a run costs on this machine, in several forms side by side.

mlflow run . -e measure -P run=<id of a run>
"""

import platform
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from experiments.config.export import MeasureConfig
from experiments.deployment.costs import (
    draw_costs,
    markdown_table,
    metrics_of,
    no_gain,
    printed_table,
    table_of,
)
from experiments.deployment.formats import Request
from experiments.deployment.forms import FORMS, Written, available, write_form
from experiments.deployment.source import (
    check_source,
    chosen_text,
    folder_of,
    request_of,
)
from experiments.deployment.timing import Source, Times, take_times
from experiments.processes.signals import raise_if_interrupted
from experiments.processes.terminal import print_line
from experiments.rounds.data import few_tests_warning
from experiments.tracking import orphan
from experiments.tracking.environment import processor_name, release
from experiments.tracking.networks import (
    MEASUREMENTS,
    is_run_id,
    load_network,
    log_files,
    log_metrics,
)

PACKAGES = ("torch", "onnxruntime", "numpy", "numba")


def measure(config: MeasureConfig) -> Path:
    """Measure size, memory, latency and accuracy of a network; returns the folder of the tables.

    They are also logged to the run, if there is one.

    Raises:
        ValueError: If the run, its networks or its data cannot be read.
    """
    attached = check_source(config.run)
    if Path(config.run).is_file():
        raise ValueError(f"measure needs a run or a folder of checkpoints, got {config.run}")
    request = request_of(config)
    dense = replace(request, network=load_network(config.run, 0))
    folder = folder_of(MEASUREMENTS, config.run, config.out, request.network.round)
    with TemporaryDirectory() as place:
        written = write_all(request, dense, Path(place))
        times = list(time_all(config, request, written, Path(place)))
    about = about_machine(config)
    table = table_of(written, times)
    text = f"{chosen_text(config, request.network)}\n{about}"
    folder.mkdir(parents=True, exist_ok=True)
    table.to_csv(folder / f"{MEASUREMENTS}.csv", index=False)
    lines = no_gain(table)
    (folder / f"{MEASUREMENTS}.md").write_text(markdown_table(table, text, lines))
    draw_costs(table).savefig(folder / f"{MEASUREMENTS}.png", facecolor="white")
    if is_run_id(config.run):
        files = [folder / f"{MEASUREMENTS}.{kind}" for kind in ("csv", "md", "png")]
        log_files(config.run, files, f"{MEASUREMENTS}/round_{request.network.round:02d}")
        log_metrics(config.run, metrics_of(table), request.network.round)
    if attached:
        orphan.dispose(attached, config.run if is_run_id(config.run) else "")
    images = request.network.metadata["data"]["images"]["test"]
    print_line("\n".join(["", text, "", printed_table(table), "", *lines]))
    print_line("\n".join([*few_tests_warning(images), f"\nTables and picture: {folder}"]))
    return folder


def write_all(request: Request, dense: Request, folder: Path) -> list[Written]:
    """Write and evaluate each form."""
    written = []
    for name in available(request.network):
        raise_if_interrupted()
        print_line(f"writing {name} ...")
        written.append(write_form(name, dense if FORMS[name].dense else request, folder))
    return written


def time_all(
    config: MeasureConfig, request: Request, written: list[Written], folder: Path
) -> Iterator[dict[str, Times]]:
    """Measure the forms with each number of threads and images."""
    test = request.data.test
    assert test
    batches = [int(each) for each in config.batches.split(",")]
    images = folder / "images.npy"
    np.save(images, test.images[: max(batches)].numpy())
    sources = {each.form: Source(FORMS[each.form].loader, each.path) for each in written}
    for threads in sorted({1, torch.get_num_threads()}):
        for batch in batches:
            threads_text = f"{threads} thread{'s' if threads > 1 else ''}"
            print_line(f"timing queries of {batch} with {threads_text} ...")
            yield take_times(
                sources, images, test.view.white, threads, batch, config.queries, config.seconds
            )


def about_machine(config: MeasureConfig) -> str:
    """Where it was measured, and how."""
    versions = ", ".join(f"{name} {release(name)}" for name in PACKAGES)
    return (
        f"{processor_name()}; {versions}, Python {platform.python_version()}; "
        f"{config.queries} queries of each form, in turns, or {config.seconds:g} s"
    )
