"""Export: the network of a run as files to use elsewhere, each checked on all test images.

mlflow run . -e export -P run=<id of a run>
"""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd

from experiments.config.export import MODEL, ExportConfig
from experiments.config.fields import NONE
from experiments.deployment.formats import (
    FORMATS,
    Measured,
    Request,
    accuracy_of,
    write_format,
)
from experiments.deployment.model import write_model
from experiments.deployment.source import (
    check_source,
    chosen_text,
    folder_of,
    request_of,
)
from experiments.processes.program import program_path
from experiments.processes.signals import raise_if_interrupted
from experiments.processes.terminal import print_line, table_text
from experiments.rounds.data import few_tests_warning
from experiments.rounds.network import Network, logits_of
from experiments.tracking import orphan
from experiments.tracking.networks import (
    is_run_id,
    log_files,
)
from experiments.tracking.registry import log_served, register

FOLDER = "exports"
TABLE = "export.csv"


def export(config: ExportConfig) -> Path:
    """Write a network in several formats, check and list them; returns the folder.

    The files and their list are also logged to the run, if there is one.

    Raises:
        ValueError: If the run, its network or its data cannot be read, or a format cannot hold it.
    """
    if config.register_as != NONE and not is_run_id(config.run):
        raise ValueError(f"register_as needs the id of a run, got run={config.run}")
    attached = check_source(config.run)
    request = request_of(config)
    folder = folder_of(FOLDER, config.run, config.out, request.network.round)
    folder.mkdir(parents=True, exist_ok=True)
    made = list(write_all(request, config.chosen, folder))
    table = pd.DataFrame([each.row for each in made])
    table.to_csv(folder / TABLE, index=False)
    if MODEL in config.chosen:
        print_line("model ...")
        write_model(request, folder / FORMATS[config.served].file, folder / MODEL)
    if is_run_id(config.run):
        names = [TABLE, *(each.file for each in made), *([MODEL] if MODEL in config.chosen else [])]
        where = f"{FOLDER}/round_{request.network.round:02d}"
        log_files(config.run, [folder / name for name in names], where)
    if attached:
        orphan.dispose(attached, config.run if is_run_id(config.run) else "")
    print_line(describe(request, made))
    if MODEL in config.chosen:
        serve = f"{program_path('mlflow')} models serve -m {folder / MODEL} --env-manager=local"
        print_line(f"\nTo serve the model: {serve}")
    if config.register_as != NONE:
        print_line(register_model(config, request.network, made, folder))
    print_line(f"\nFiles and table: {folder}")
    return folder


def register_model(
    config: ExportConfig, network: Network, made: Sequence[Measured], folder: Path
) -> str:
    """Log the model to the run and register it; returns what happened, as text."""
    (served,) = (each for each in made if each.format == config.served)
    params = {"round": str(network.round), "network": served.file}
    with TemporaryDirectory() as place:
        model = Path(shutil.copytree(folder / MODEL, Path(place, MODEL)))
        model_id = log_served(config.run, model, config.register_as, params)
    digest = network.metadata["data"]["digest"]
    return register(model_id, config.register_as, served.valid_accuracy, served.bytes, digest)


def write_all(request: Request, formats: Sequence[str], folder: Path) -> Iterator[Measured]:
    """Write the checkpoint, and each of the formats that is a file."""
    test = request.data.test
    assert test
    module = request.network.module
    logits = logits_of(module, test)
    if not logits.isfinite().all():
        raise ValueError("run: the answers of its network are not finite numbers")
    path = folder / "checkpoint.safetensors"
    size = request.network.save(path)
    valid = accuracy_of(logits_of(module, request.data.valid), request.data.valid)
    yield Measured("checkpoint", path.name, size, accuracy_of(logits, test), valid, 0.0, 0)
    for name in (name for name in formats if name in FORMATS):
        raise_if_interrupted()
        print_line(f"{name} ...")
        yield write_format(name, request, folder, logits)


def describe(request: Request, made: Sequence[Measured]) -> str:
    """The formats as a table, and how the network was chosen."""
    network, config = request.network, request.config
    images = network.metadata["data"]["images"]["test"]
    columns = {
        "format": [each.format for each in made],
        "file": [each.file for each in made],
        "bytes": [f"{each.bytes:,}" for each in made],
        "test\naccuracy": [f"{each.test_accuracy:.4f}" for each in made],
        "largest\ndifference": [f"{each.largest_difference:.1e}" for each in made],
        f"of {images:,} images\nchanged": [str(each.changed) for each in made],
    }
    lines = [chosen_text(config, network), ""]
    return "\n".join([*lines, table_text(columns), *few_tests_warning(images)])
