"""Figures of one experiment. Each `draw_*` returns a `Figure` and touches no file."""

from itertools import cycle

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from torch import Tensor

from experiments.rounds.metrics import LAYER_PREFIX
from pruning.masks import Masks

MOST_NAMED = 14  # rounds in a legend or on an axis
MOST_LISTED = 4  # lines that coincide, in a legend
# Okabe and Ito's colour-blind-safe palette, without its yellow.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")


def pixel_use(masks: Masks, image_shape: tuple[int, ...]) -> NDArray[np.float64] | None:
    """Share of a pixel's dense weights that survive, [height, width] in [0, 1].

    None if the first layer is not fully connected to the pixels.
    """
    first: Tensor = next(iter(masks.values()))  # [units, channels * height * width]
    channels, height, width = image_shape
    if first.ndim != 2 or first.shape[1] != channels * height * width:
        return None
    shares = first.cpu().numpy().reshape(-1, channels, height, width)
    return np.asarray(shares.mean(axis=(0, 1)))


def layer_columns(rounds: pd.DataFrame) -> dict[str, str]:
    """The sparsity column of each layer, by the layer's name."""
    names = [str(name) for name in rounds if str(name).startswith(LAYER_PREFIX)]
    return {name.removeprefix(LAYER_PREFIX): name for name in names}


def distinct_lines(lines: pd.DataFrame, log: bool = False) -> pd.DataFrame:
    """The lines to draw, one a column: those that coincide become one that names them all.

    Lines coincide if they are never more than a tenth of a percentage point apart, or with a `log`
    axis never more than 2%.
    """
    places = np.log(lines.clip(lower=1e-9)) if log else lines
    apart = 0.02 if log else 0.1
    groups: dict[str, list[str]] = {}
    for name in map(str, lines):
        alike = (first for first in groups if (places[first] - places[name]).abs().max() < apart)
        groups.setdefault(next(alike, name), []).append(name)
    labels = {first: _all_of(names) for first, names in groups.items()}
    return lines[list(labels)].rename(columns=labels)


def _all_of(names: list[str]) -> str:
    if len(names) <= MOST_LISTED:
        return ", ".join(names)
    return f"{names[0]} to {names[-1]} ({len(names)} layers)"


def labelled_rounds(count: int) -> list[int]:
    """The rounds to label: all of them, or `MOST_NAMED` evenly spaced ones."""
    return sorted({round(place) for place in np.linspace(0, count - 1, min(count, MOST_NAMED))})


def draw_accuracy(rounds: pd.DataFrame, title: str) -> Figure:
    """Test and validation accuracy against remaining weights, the dense network on the left."""
    figure, axes = _figure(title)
    remaining = 100 * (1 - rounds["sparsity"])
    for name, label, colour, marker in (
        ("test_accuracy", "test", COLOURS[0], "o"),
        ("early_stop_test_accuracy", "test, at early stop", COLOURS[1], "s"),
        ("valid_accuracy", "validation", COLOURS[2], "^"),
    ):
        axes.plot(remaining, 100 * rounds[name], marker=marker, color=colour, label=label, ms=4)
    dense = 100 * rounds["test_accuracy"].iloc[0]
    axes.axhline(dense, color="0.5", lw=1, ls="--", label="dense, test")
    axes.set(xscale="log", xlabel="remaining weights (%)", ylabel="accuracy (%)")
    ticks = remaining[labelled_rounds(len(remaining))]
    axes.set_xticks(ticks, [f"{share:.3g}" for share in ticks], rotation=60, fontsize=8)
    axes.minorticks_off()
    axes.invert_xaxis()
    axes.legend(frameon=False)
    return figure


def draw_epochs(rounds: pd.DataFrame, epochs: pd.DataFrame, title: str) -> Figure:
    """Validation accuracy against epoch, one line per round, dense dark to sparse light."""
    figure, axes = _figure(title)
    shades = colormaps["viridis"](np.linspace(0, 0.92, len(rounds)))
    for shade, (_, row) in zip(shades, rounds.iterrows(), strict=True):
        curve = epochs[epochs["round"] == row["round"]]
        label = f"{row['round']:.0f}: {100 * (1 - row['sparsity']):.3g}%"
        if int(row["round"]) not in labelled_rounds(len(rounds)):
            label = "_"  # keeps it out of the legend
        axes.plot(curve["epoch"], 100 * curve["valid_accuracy"], ".-", color=shade, label=label)
    axes.set(xlabel="epoch of the round", ylabel="validation accuracy (%)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(title="round: remaining", frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def draw_layers(rounds: pd.DataFrame, title: str) -> Figure:
    """Sparsity of each layer against round."""
    figure, axes = _figure(title)
    columns = layer_columns(rounds)
    layers = 100 * rounds[list(columns.values())].set_axis(list(columns), axis="columns")
    lines = distinct_lines(layers.assign(**{"whole network": 100 * rounds["sparsity"]}))
    for colour, name in zip(cycle(COLOURS), lines, strict=False):
        axes.plot(rounds["round"], lines[name], color=colour, marker="o", ms=3, label=name)
    axes.set(xlabel="round", ylabel="pruned weights (%)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False)
    return figure


def draw_pixels(share: NDArray[np.float64], title: str) -> Figure:
    """Share of each input pixel's weights that survive (see `pixel_use`)."""
    figure, axes = _figure(title)
    picture = axes.imshow(100 * share, cmap="viridis", vmin=0)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    figure.colorbar(picture, ax=axes, label="surviving weights of a pixel (%)", shrink=0.85)
    return figure


def _figure(title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(6.4, 4.2), layout="constrained", dpi=150)
    axes = figure.subplots()
    axes.set_title(title, fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes
