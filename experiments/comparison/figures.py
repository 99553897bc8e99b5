"""Figures: a comparison in pictures. Means and intervals are over seeds.

Numbers come from statistics.py, colours and layout from experiments/figures/style.py. Each `draw_*`
returns a `Figure` and touches no file.

To add one: a `draw_*`, its caption in `CAPTIONS`, and its line in `draw_all`.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from experiments.comparison.results import Comparison
from experiments.comparison.rewinding import draw_rewinding
from experiments.comparison.statistics import (
    dense_interval,
    measured,
    methods_of,
    overlap,
    pixels,
    pruned,
    summarise,
)
from experiments.comparison.text import count, in_percent
from experiments.figures import experiment
from experiments.figures.intervals import SHARE, accuracy_limits, mean_interval
from experiments.figures.style import DASHED, INK, new_figure, report_style, styles
from experiments.rounds.metrics import METRICS
from pruning.controls import CONTROLS
from pruning.masks import Masks

BARS = "Mean over seeds; bars are its 95% Student interval, conditional on this test set"
DENSE_LINE = "The dashed line and the faint band are the dense network's."
UNPRUNED = "Unpruned networks are drawn at the size of the pruned ones of their round."
CAPTIONS = {
    "accuracy": "Test accuracy at the end of each round against the share of weights that remain, "
    f"the dense network on the left. {BARS}; methods are drawn side by side within a round. "
    f"{DENSE_LINE} {UNPRUNED}",
    "early_stop": "Iteration of minimum validation loss against the share of weights that remain, "
    "on a log scale; where the learning rate falls, its schedule sets these iterations. Mean over "
    f"seeds; bars are its 95% Student interval. {DENSE_LINE} "
    f"{UNPRUNED}",
    "epochs": "Test accuracy against retraining epoch in the shown round. Mean over seeds; bands "
    "are its 95% Student interval, conditional on this test set. The dashed line and the faint "
    "band are the dense network's at the end of its training.",
    "barrier": "Instability: the largest error on the straight line between each network and its "
    "twin, which was trained with another order of the images, minus the mean error of the two, "
    "against the share of weights that remain. Frankle et al. (2020, arXiv:1912.05671) call a "
    f"network stable below 2 points (dotted). {BARS}. {DENSE_LINE}",
    "rewinding": "Test accuracy in the shown round, and error barriers if networks have twins, "
    f"against the epoch of dense training to which a method rewinds. {BARS}; the dashed line is "
    "the dense network's mean.",
    "tradeoff": "Test accuracy against compression ratio (parameters) and against theoretical "
    f"speed-up (multiply-adds). {BARS}. {DENSE_LINE}",
    "layers": "Share of each layer's weights that is pruned after each round, mean over seeds; "
    "layers whose lines coincide share one. The scale is logarithmic in the weights that remain.",
    "overlap": "Jaccard index of the masks of each pair of arms (method and seed) in the shown "
    "round: weights that both keep, divided by weights that either keeps; 1 means equal masks. "
    "The line in the colour bar is the value for random masks with as many weights in each layer. "
    "No intervals.",
    "pixels": "Share of each input pixel's first-layer weights that survive in the shown round, "
    "mean over the seeds of a method. No intervals.",
}


@report_style
def draw_accuracy(rounds: pd.DataFrame) -> Figure:
    """Test accuracy against remaining weights, the dense network on the left.

    If a collapse flattens the rest, a second panel shows the upper part close up.
    """
    means = 100 * summarise(rounds)[[f"test_accuracy_{end}" for end in ("mean", "low", "high")]]
    close = accuracy_limits(*(means[name] for name in means))
    two = means["test_accuracy_mean"].min() < close[0]
    figure, panels = new_figure("Test accuracy against remaining weights", 1 + two)
    for axes in panels:
        drawn = draw_rounds(axes, rounds, "test_accuracy", "remaining")
        remaining_axis(axes, rounds, narrow=two)
    show_all(panels[0], drawn)
    panels[0].set_ylabel("test accuracy (%)")
    if two:
        panels[1].set_ylim(*close)
        panels[1].set_title("the same, close up")
    add_legend(figure, rounds)
    return figure


@report_style
def draw_early_stop(rounds: pd.DataFrame) -> Figure:
    """Iteration of minimum validation loss against remaining weights."""
    figure, (axes,) = new_figure("Iteration of minimum validation loss")
    drawn = draw_rounds(axes, rounds, "early_stop_iteration", "remaining")
    ticks = [digit * 10**power for power in range(8) for digit in (1, 2, 3, 5, 7)]
    axes.set(yscale="log", ylabel="early-stop iteration (log scale)")
    axes.set_yticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.set_ylim(drawn["mean"].min() / 1.5, drawn["mean"].max() * 1.5)
    axes.minorticks_off()
    remaining_axis(axes, rounds)
    add_legend(figure, rounds)
    return figure


@report_style
def draw_epochs(epochs: pd.DataFrame, rounds: pd.DataFrame, shown_round: int) -> Figure:
    """Test accuracy against retraining epoch in one round, with a close-up if needed."""
    rows = rounds[rounds["round"] == shown_round]
    here = epochs[epochs["round"] == shown_round]
    table = mean_interval(here, ["method", "epoch"], "test_accuracy", SHARE)
    table = (100 * table[["mean", "low", "high"]]).reset_index()
    late = table[table["epoch"] > table["epoch"].max() / 2]
    close = accuracy_limits(late["mean"], late["low"], late["high"])
    two = close[1] - close[0] < 0.4 * (table["mean"].max() - table["mean"].min())
    share = f"{100 * (1 - pruned(rows)['sparsity'].mean()):.3g}%"
    title = f"Retraining with {share} of the weights (round {shown_round})"
    figure, panels = new_figure(title, 1 + two)
    for axes in panels:
        draw_dense_level(axes, rounds, "test_accuracy")
        for method, style in styles(methods_of(rounds)).items():
            own = table[table["method"] == method]
            axes.plot(own["epoch"], own["mean"], lw=1.8, markevery=len(own) // 12 + 1, **style)
            axes.fill_between(
                own["epoch"], own["low"], own["high"], color=style["color"], alpha=0.18, lw=0
            )
        axes.set_xlabel("retraining epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    lowest, highest = table["mean"].min(), min(max(table["mean"].max(), close[1]), 100)
    panels[0].set_ylim(lowest - (highest - lowest) / 12, highest + (highest - lowest) / 25)
    panels[0].set_ylabel("test accuracy (%)")
    if two:
        panels[1].set_ylim(*close)
        panels[1].set_title("the same, close up")
    add_legend(figure, rounds, shown_round=shown_round)
    return figure


@report_style
def draw_barrier(rounds: pd.DataFrame) -> Figure | None:
    """Error barriers between networks and their twins; None if they have no twins."""
    names = [name for name in ("train_barrier", "test_barrier") if name in measured(rounds)]
    if not names:
        return None
    title = "Instability: error barrier between each network and its twin"
    figure, panels = new_figure(title, len(names), sharey=True)
    highest = STABLE
    for axes, name in zip(panels, names, strict=True):
        drawn = draw_rounds(axes, rounds, name, "remaining")
        highest = max(highest, drawn["mean"].max(), drawn["high"].max())
        axes.axhline(STABLE, color=INK, lw=1, ls=":", zorder=1)
        remaining_axis(axes, rounds, narrow=len(names) > 1)
        axes.set_title(METRICS[name].label)
    panels[0].set_ylim(-highest / 25, 1.04 * highest)
    panels[0].set_ylabel("error barrier (percentage points)")
    add_legend(figure, rounds)
    return figure


@report_style
def draw_tradeoff(rounds: pd.DataFrame) -> Figure:
    """Test accuracy against compression ratio and against theoretical speed-up."""
    figure, panels = new_figure("Accuracy against size, and against work", 2, sharey=True)
    for axes, name in zip(panels, ("compression_ratio", "theoretical_speedup"), strict=True):
        drawn = draw_rounds(axes, rounds, "test_accuracy", name)
        largest = drawn["x"].max()
        powers = range(0, int(np.log2(largest)) + 2, 1 if largest < 64 else 2)
        axes.set(xscale="log", xlabel=f"{METRICS[name].label} (log scale)")
        axes.set_xticks([2**power for power in powers], [f"{2**power}×" for power in powers])  # noqa: RUF001
        axes.set_xlim(0.9, max(1.15 * largest, 2.1))
        axes.minorticks_off()
        show_all(axes, drawn)
    panels[0].set_ylabel("test accuracy (%)")
    add_legend(figure, rounds)
    return figure


@report_style
def draw_layers(rounds: pd.DataFrame) -> Figure:
    """Pruned share of each layer against round, one panel per method if they differ."""
    columns = experiment.layer_columns(rounds)
    pruned = rounds.groupby(["round", "method"])[list(columns.values())].mean()
    left = experiment.distinct_lines(
        100 * (1 - pruned.set_axis(list(columns), axis="columns")), log=True
    )
    by_round = left.groupby("round")
    same = float((by_round.max() - by_round.min()).to_numpy().max()) < 0.1
    methods = methods_of(rounds)[: 1 if same else None]
    figure, panels = new_figure("Pruned weights, layer by layer", len(methods), sharey=True)
    shades = colormaps["viridis"](np.linspace(0.3, 0.88, left.shape[1]))
    floor = left.to_numpy()[left > 0].min() / 2  # where an emptied layer is drawn
    ticks = [100, 50, 20, 10, 5, 2, 1, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01]
    for axes, method in zip(panels, methods, strict=True):
        own = by_round.mean() if same else left.xs(method, level="method")
        for shade, name in zip(shades, own, strict=True):
            axes.plot(own.index, own[name].clip(lower=floor), color=shade, lw=1.8, label=name)
        axes.set_title("the same for all methods" if same else method)
        axes.set(yscale="log", xlabel="round")
        axes.set_yticks(ticks, [f"{100 - tick:g}" for tick in ticks])
        axes.set_ylim(115, floor)
        axes.minorticks_off()
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in panels[::3]:
        axes.set_ylabel("pruned weights (%)")
    handles = panels[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=min(5, left.shape[1]))
    return figure


@report_style
def draw_overlap(masks: Mapping[tuple[str, int], Masks]) -> Figure:
    """Overlap of the masks of each pair of arms, and of random masks."""
    jaccard, expected = overlap(masks)
    below = np.tri(len(masks), k=-1, dtype=bool)
    shown = np.where(below, jaccard, np.nan)[1:, :-1]
    chance, most = float(expected.to_numpy()[below].mean()), float(np.nanmax(shown))
    names = [f"{method} {seed}" for method, seed in masks]
    figure, (axes,) = new_figure("Overlap of masks (Jaccard index), by method and seed", height=5)
    picture = axes.pcolormesh(shown, cmap="cividis", vmin=0, vmax=max(most, chance))
    size = float(np.clip(100 / len(names), 5, 9))
    axes.set_xticks(np.arange(len(names) - 1) + 0.5, names[:-1], rotation=90, fontsize=size)
    axes.set_yticks(np.arange(len(names) - 1) + 0.5, names[1:], fontsize=size)
    axes.invert_yaxis()
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    centred: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": size - 0.5}
    for (row, column), value in np.ndenumerate(shown if len(names) <= 15 else shown[:0]):
        if not np.isnan(value):
            colour = "#ffffff" if value < 0.6 * most else "#111111"
            axes.text(column + 0.5, row + 0.5, f"{value:.2f}", color=colour, **centred)
    bar = figure.colorbar(picture, ax=axes, shrink=0.8)
    bar.ax.axhline(chance, color="#ffffff", lw=2)
    bar.set_ticks([0, chance, most], labels=["0", f"random masks: {chance:.2f}", f"{most:.2f}"])
    bar.ax.tick_params(color=INK, labelcolor=INK)
    return figure


@report_style
def draw_pixels(
    masks: Mapping[tuple[str, int], Masks], image_shape: tuple[int, ...]
) -> Figure | None:
    """Input pixels that are still used; None if the first layer is not fully connected to them."""
    shares = pixels(masks, image_shape)
    if not shares:
        return None
    first = next(iter(shares.values()))
    if all(np.array_equal(share, first) for share in shares.values()):
        shares = {"the same for all methods": first}
    figure, panels = new_figure("Input pixels that are still used", len(shares), height=2.8)
    for axes, (method, share) in zip(panels, shares.items(), strict=True):
        highest = max(other.max() for other in shares.values())
        picture = axes.imshow(100 * share, cmap="cividis", vmin=0, vmax=100 * highest)
        axes.set(xticks=[], yticks=[], title=method)
        axes.spines[:].set_visible(False)
    figure.set_layout_engine("compressed")
    bar = figure.colorbar(picture, ax=panels, label="surviving weights of a pixel (%)", aspect=30)
    bar.ax.tick_params(color=INK, labelcolor=INK)
    return figure


def draw_all(comparison: Comparison) -> dict[str, Figure]:
    """The figures that apply, by name, in reading order."""
    rounds, epochs, masks = comparison.rounds, comparison.epochs, comparison.masks
    shown_round = comparison.shown_round
    figures = {
        "accuracy": draw_accuracy(rounds),
        "early_stop": draw_early_stop(rounds),
        "epochs": draw_epochs(epochs, rounds, shown_round)
        if (epochs["round"] == shown_round).any()
        else None,
        "barrier": draw_barrier(rounds),
        "rewinding": draw_rewinding(rounds, shown_round),
        "tradeoff": draw_tradeoff(rounds),
        "layers": draw_layers(rounds),
        "overlap": draw_overlap(masks) if len(masks) > 1 else None,
        "pixels": draw_pixels(masks, comparison.image_shape) if masks else None,
    }
    return {name: figure for name, figure in figures.items() if figure}


STABLE = 2.0  # points of error; below this barrier Frankle et al. call a network stable
CROWDED = 1.12  # ratio of two sizes whose labels would touch


def draw_rounds(axes: Axes, rounds: pd.DataFrame, metric: str, against: str) -> pd.DataFrame:
    """Draw each method's means and intervals; return them with their positions `x`."""
    table = summarise(rounds)
    table["remaining"] = 100 * (1 - table["sparsity"])
    shares = 100 * (1 - pruned(rounds).groupby("round")["sparsity"].mean())
    is_whole = table["control"].map(lambda name: CONTROLS[name].network == "whole").astype(bool)
    table.loc[is_whole, "remaining"] = table["round"].map(shares)
    names = {against: "x"} | {f"{metric}_{end}": end for end in ("mean", "low", "high")}
    table = table[["method", "round", *names]].rename(columns=names)
    table[["mean", "low", "high"]] *= 100 if in_percent(metric) else 1
    draw_dense_level(axes, rounds, metric)
    by_method = styles(methods_of(rounds))
    for place, (method, style) in enumerate(by_method.items()):
        own = table[table["method"] == method]
        steps = np.log(own["x"]).diff().abs()
        step = min(steps.median(), steps.sum() / 8)
        aside = np.exp(0.4 * step * ((place + 0.5) / len(by_method) - 0.5))
        table.loc[own.index, "x"] *= np.where(own["round"] > 0, aside, 1)
        below, above = own["mean"] - own["low"], own["high"] - own["mean"]
        bars = [side.where(own["round"] > 0) for side in (below, above)]  # dense: the band
        x = table.loc[own.index, "x"]
        axes.errorbar(x, own["mean"], bars, lw=1.3, elinewidth=1, capsize=1.5, **style)
    return table


def draw_dense_level(axes: Axes, rounds: pd.DataFrame, metric: str) -> None:
    """The dense networks' mean as a dashed line, its interval as a faint band."""
    dense = dense_interval(rounds, metric) * (100 if in_percent(metric) else 1)
    axes.axhline(dense["mean"], color=INK, lw=1, ls=DASHED, zorder=1)
    if dense["low"] < dense["high"]:
        axes.axhspan(dense["low"], dense["high"], color=INK, alpha=0.08, lw=0, zorder=0)


def show_all(axes: Axes, drawn: pd.DataFrame) -> None:
    """Limit the y axis to accuracies that occur: all means and intervals, within 0 and 100%."""
    lowest = np.fmin(drawn["mean"].min(), drawn["low"].min())
    highest = np.fmax(drawn["mean"].max(), drawn["high"].max())
    bottom, top = max(lowest, 0), min(highest, 100)
    room = max(top - bottom, 0.5) / 25
    axes.set_ylim(bottom - room, top + room)


def remaining_axis(axes: Axes, rounds: pd.DataFrame, narrow: bool = False) -> None:
    """An axis of remaining weights, dense on the left, with a tick for each round if there is room.

    Args:
        narrow: The axis is half as wide as the figure.
    """
    remaining = 100 * (1 - pruned(rounds).groupby("round")["sparsity"].mean())
    shown = remaining.iloc[:: len(remaining) // (7 if narrow else 16) + 1]
    axes.set(xscale="log", xlabel="remaining weights (%, log scale)")
    names = [f"{share:.3g}" for share in shown]
    if len(shown) > 2 and shown.iloc[-2] / shown.iloc[-1] < CROWDED:  # the last round may be small
        names[-2] = ""
    axes.set_xticks(shown, names)
    axes.minorticks_off()
    axes.invert_xaxis()


def add_legend(figure: Figure, rounds: pd.DataFrame, shown_round: int | None = None) -> None:
    """A legend below the axes: methods, the dense network, and the number of seeds."""
    rows = rounds if shown_round is None else rounds[rounds["round"] == shown_round]
    seeds = rows.groupby(["method", "round"]).size().groupby("method").agg(["min", "max"])
    same = seeds["min"].min() == seeds["max"].max()
    handles = []
    for method, style in styles(methods_of(rounds)).items():
        if method in seeds.index:
            label = method if same else f"{method} ({_seeds(seeds.loc[[method]])})"
            handles.append(Line2D([], [], label=label, lw=1.5, **style))
    handles.append(Line2D([], [], label="dense network", color=INK, lw=1, ls=DASHED))
    title = f"mean and 95% interval of {_seeds(seeds)}" if same else "mean and 95% interval"
    if seeds["max"].max() == 1:
        title = "one seed, so no interval"
    columns = 3 if max(len(str(handle.get_label())) for handle in handles) > 18 else 4
    figure.legend(handles=handles, title=title, loc="outside lower center", ncols=columns)


def _seeds(counts: pd.DataFrame) -> str:
    least, most = counts["min"].min(), counts["max"].max()
    return f"{least} to {most} seeds" if least < most else count(most, "seed")
