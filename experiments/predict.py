"""Predict: the names of the faces or digits in pictures, from a run's pruned network.

mlflow run . -e predict -P run=<id of a run> -P images=<picture or folder>
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd
import torch
from PIL import Image
from pydantic import ValidationError

from datasets.photographs import SIDE
from datasets.photographs.contact_sheets import COLUMNS, ROWS, Tile, draw_page
from datasets.photographs.crops import write_image
from datasets.photographs.files import escape_formula, find_pictures
from datasets.photographs.inputs import Input, face_inputs, is_light, whole_inputs
from datasets.photographs.options import FaceOptions
from experiments.config.parameters import AUTO
from experiments.config.predict import PredictConfig
from experiments.processes.signals import raise_if_interrupted
from experiments.processes.terminal import print_line, table_text
from experiments.rounds.data import few_tests_warning
from experiments.rounds.network import Network
from experiments.tracking import orphan, server
from experiments.tracking.networks import folder_name, is_run_id, load_network

FOLDER = "predictions"
TABLE = "predictions.csv"
CELLS = ("file", "outcome", "name", "probability", "second_name", "second_probability", "reason")
TEXT_CELLS = ("file", "name", "second_name", "reason")  # of these, cells with text that users chose
SHEET = "contact_sheet"
BATCH = 64  # images in one pass through the network, at most
BATCH_PIXELS = 1 << 24
SHOWN_ROWS = 100  # of the printed table


T = TypeVar("T")


@dataclass(frozen=True)
class Prediction:
    """An input, and what the network takes it for."""

    input: Input
    ranking: tuple[tuple[str, float], ...]  # classes and their probabilities, the highest first

    @property
    def note(self) -> str:
        """The class, or why the network did not get the picture."""
        if not self.ranking:
            return f"{self.input.outcome}: {self.input.reason}"
        name, probability = self.ranking[0]
        return f"{name} ({probability:.1%})"


def predict(config: PredictConfig) -> pd.DataFrame:
    """Predict the class of each picture; write and print the predictions.

    Returns:
        One row per picture, or per face: file, outcome, name, probability, second_name,
        second_probability, reason. Probabilities are in [0, 1].

    Raises:
        ValueError: If the run, its network or the pictures cannot be read, or `out` is in `images`.
    """
    if is_run_id(config.run):
        server.check_tracking()
    attached = server.attached_run()
    folder = Path(FOLDER, folder_name(config.run)) if config.out == AUTO else Path(config.out)
    if folder.resolve().is_relative_to(Path(config.images).resolve()):  # its sheets are pictures
        raise ValueError(f"out must not be inside images, got {folder}")
    network = load_network(config.run, config.number)
    made = list(predictions(network, config))
    table = as_table(made)
    folder.mkdir(parents=True, exist_ok=True)
    texts = {name: table[name].map(escape_formula, na_action="ignore") for name in TEXT_CELLS}
    table.assign(**texts).to_csv(folder / TABLE, index=False)
    title = f"{Path(config.run).resolve().name}, round {network.round}"
    sheets = draw_sheets(made, title, folder)
    if attached:
        orphan.dispose(attached, config.run if is_run_id(config.run) else "")
    print_line(describe(network, made, table, config.invert))
    print_line(f"\nTable: {folder / TABLE}\nPictures: {', '.join(map(str, sheets))}")
    return table


def predictions(network: Network, config: PredictConfig) -> Iterator[Prediction]:
    """The predictions for the pictures that the config names.

    Raises:
        ValueError: If there are no pictures, or `invert` does not apply.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    device = device if config.device == AUTO else config.device
    pictures = find_pictures(Path(config.images))
    preparation = network.metadata["data"].get("preparation")
    channels, height, width = network.spec.image_shape
    if channels > 1 or (preparation and (height, width) != (SIDE, SIDE)):
        raise ValueError(
            f"run: its images have the shape {channels}x{height}x{width}, which no picture has"
        )
    if preparation is None:
        inputs = whole_inputs(pictures, (height, width), config.invert)
    elif config.invert:
        raise ValueError("invert is not for networks that recognise faces, got true")
    else:
        inputs = face_inputs(pictures, _options(preparation), device)
    network.module.to(device)
    for some in in_batches(inputs, max(1, min(BATCH, BATCH_PIXELS // (height * width)))):
        raise_if_interrupted()
        found = iter(_rankings(network, [each.image for each in some if each.image]))
        yield from (Prediction(each, next(found) if each.image else ()) for each in some)


def _options(preparation: dict[str, object]) -> FaceOptions:
    try:
        return FaceOptions.model_validate(preparation)
    except ValidationError:
        raise ValueError("run: its metadata do not say how faces were cut") from None


def in_batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` items; the last may be shorter."""
    left = iter(items)
    while some := list(islice(left, size)):
        yield some


@torch.no_grad()
def _rankings(
    network: Network, images: Sequence[Image.Image]
) -> list[tuple[tuple[str, float], ...]]:
    if not images:
        return []
    device = next(network.module.parameters()).device
    pixels = torch.from_numpy(np.stack([np.asarray(image) for image in images])).unsqueeze(1)
    logits = network.module(pixels.to(device).float() / 255)  # from [N, 1, height, width]
    if not logits.isfinite().all():
        raise ValueError("run: the answers of its network are not finite numbers")
    shares, classes = logits.softmax(1).sort(descending=True)
    names = network.class_names
    return [
        tuple((names[number], share) for number, share in zip(*row, strict=True))
        for row in zip(classes.tolist(), shares.tolist(), strict=True)
    ]


def as_table(made: Sequence[Prediction]) -> pd.DataFrame:
    """The predictions as a table; cells that do not apply are empty."""
    rows = []
    for each in made:
        row: dict[str, object] = {"file": each.input.source, "outcome": each.input.outcome}
        for place, (name, share) in zip(("", "second_"), each.ranking, strict=False):
            row |= {f"{place}name": name, f"{place}probability": share}
        rows.append(row | {"reason": each.input.reason})
    return pd.DataFrame(rows, columns=list(CELLS))


def draw_sheets(made: Sequence[Prediction], title: str, folder: Path) -> list[Path]:
    """Draw the contact sheets, and remove those of earlier predictions; returns their paths."""
    for old in folder.glob(f"{SHEET}*.png"):
        if re.fullmatch(rf"{SHEET}(\.\d+)?\.png", old.name):  # others are not ours
            old.unlink()
    tiles = [
        Tile(each.input.shown, each.input.source, each.note, rejected=not each.ranking)
        for each in made
    ]
    paths = []
    for number, some in enumerate(in_batches(tiles, COLUMNS * ROWS), start=1):
        paths.append(folder / (f"{SHEET}.png" if number == 1 else f"{SHEET}.{number}.png"))
        write_image(draw_page(some, title), paths[-1])
    return paths


def describe(
    network: Network, made: Sequence[Prediction], table: pd.DataFrame, inverted: bool
) -> str:
    """The predictions as text, and how far to trust them."""
    unused = ["outcome", "reason"] if all(each.ranking for each in made) else ["reason"]
    shown = table.drop(columns=unused).head(SHOWN_ROWS)
    for name in ("probability", "second_probability"):
        shown[name] = shown[name].map(lambda share: "" if pd.isna(share) else f"{share:.1%}")
    lines = [table_text({str(name): column for name, column in shown.fillna("").items()})]
    if len(table) > SHOWN_ROWS:
        lines += [f"... and {len(table) - SHOWN_ROWS} more"]
    images = network.metadata["data"]["images"].get("test", 0)
    if "test_accuracy" in network.metrics and images:
        accuracy = network.metrics["test_accuracy"]
        lines += ["", f"Test accuracy of this network: {accuracy:.1%} of {images} images."]
        lines += few_tests_warning(images)
    lights = [p.input.source for p in made if p.input.image and is_light(p.input.image)]
    if lights and not network.spec.crop:
        how = "look dark on light once inverted" if inverted else "look dark on light"
        lines += [
            f"WARNING: {len(lights)} of {len(made)} pictures {how}, such as {lights[0]}; the "
            f"network was trained on light on dark: set invert={'false' if inverted else 'true'}"
        ]
    return "\n".join(lines)
