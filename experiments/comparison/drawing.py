"""Drawing: what all figures of a comparison share, so that they read as one.

A method looks the same in every picture (`styles`). All that is not data is drawn in `INK` on a
transparent background, so that whoever shows a figure on a dark page has one colour to replace.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from textwrap import wrap
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from experiments import plots
from experiments.comparison.statistics import dense_spread, methods_of, summarise, view

INK = "#1b1f24"
CROWDED = 1.12  # ratio of two sizes whose labels would touch
COLOURS = (*plots.COLOURS[:6], "#8a8a8a")  # a grey instead of black, which is the ink's
MARKERS = "os^DvPX<>p*hd8"
DASHED = (0, (5, 3))
FIXED = ("lottery", "random", "keep", "rewind", "lr_rewind", "sign", "shuffle")
in_ink = rc_context(
    {
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.edgecolor": INK,
        "figure.facecolor": "none",
        "axes.facecolor": "none",
        "axes.axisbelow": True,
        "axes.titlelocation": "left",
        "axes.titlesize": 9.5,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "legend.frameon": False,
        "legend.fontsize": 8.5,
        "legend.title_fontsize": 8.5,
        "font.family": "sans-serif",
        "font.size": 9,
    }
)


@dataclass(frozen=True)
class Style:
    """How a method looks: a matplotlib colour, marker and line style."""

    colour: str
    marker: str
    dashes: Any


def styles(methods: Sequence[str]) -> dict[str, Style]:
    """A look for each method: a reinit's own, wherever it stands; for any other the next free one.

    Colours repeat after seven methods, then with dashes; the line styles never repeat.
    """
    fixed = {method: FIXED.index(method) for method in methods if method in FIXED}
    free = (slot for slot in count() if slot not in fixed.values())
    slots = {method: fixed[method] if method in fixed else next(free) for method in methods}
    return {method: _style(slot) for method, slot in slots.items()}


def _style(slot: int) -> Style:
    lap = slot // len(COLOURS)
    dashes = (0, (4.0, 1.5, *(1.0, 1.5) * (lap - 1))) if lap else "-"
    return Style(COLOURS[slot % len(COLOURS)], MARKERS[slot % len(MARKERS)], dashes)


def new_figure(
    title: str, panels: int = 1, height: float = 4.4, sharey: bool = False
) -> tuple[Figure, list[Axes]]:
    """An empty figure of so many panels, at most three in a row, with its title."""
    columns = min(panels, 3)
    rows = -(-panels // columns)
    size = (6.4, height if rows == 1 else 1 + 2.3 * rows)
    figure = Figure(figsize=size, layout="constrained", dpi=150, label=title)
    figure.suptitle(title, x=0.01, ha="left", fontsize=10.5)
    axes = list(figure.subplots(rows, columns, squeeze=False, sharey=sharey).flatten())
    for each in axes:  # ticks are made when drawn, outside of `in_ink`
        each.tick_params(color=INK, labelcolor=INK, grid_color=INK, grid_alpha=0.13, labelsize=8.5)
        each.grid(True, lw=0.7)
    for empty in axes[panels:]:
        empty.remove()
    return figure, axes[:panels]


def draw_rounds(
    axes: Axes, rounds: pd.DataFrame, metric: str, against: str, scale: float
) -> pd.DataFrame:
    """Draw each method's means and intervals; returns them, with where they were drawn."""
    table = summarise(rounds)
    table["remaining"] = 100 * (1 - table["sparsity"])
    names = {against: "x"} | {f"{metric}_{end}": end for end in ("mean", "low", "high")}
    table = table[["method", "round", *names]].rename(columns=names)
    table[["mean", "low", "high"]] *= scale
    draw_dense_level(axes, rounds, metric, scale)
    looks = styles(methods_of(rounds))
    for place, (method, look) in enumerate(looks.items()):
        own = table[table["method"] == method]
        steps = np.log(own["x"]).diff().abs()
        step = min(steps.median(), steps.sum() / 8)
        aside = np.exp(0.4 * step * ((place + 0.5) / len(looks) - 0.5))
        table.loc[own.index, "x"] *= np.where(own["round"] > 0, aside, 1)
        half = (own["high"] - own["mean"]).where(own["round"] > 0)  # dense: the band
        axes.errorbar(
            table.loc[own.index, "x"],
            own["mean"],
            yerr=half,
            color=look.colour,
            ls=look.dashes,
            marker=look.marker,
            ms=4,
            lw=1.3,
            elinewidth=1,
            capsize=1.5,
        )
    return table


def draw_dense_level(axes: Axes, rounds: pd.DataFrame, metric: str, scale: float) -> None:
    """The dense networks' mean as a dashed line, its interval as a faint band."""
    dense = scale * dense_spread(rounds, metric)
    axes.axhline(dense["mean"], color=INK, lw=1, ls=DASHED, zorder=1)
    if dense["low"] < dense["high"]:
        axes.axhspan(dense["low"], dense["high"], color=INK, alpha=0.08, lw=0, zorder=0)


def look_closely(axes: Axes, drawn: pd.DataFrame) -> str:
    """Show the range worth showing; mark what goes below it at the edge, and say how far."""
    bottom, top = view(drawn["mean"], drawn["low"], drawn["high"])
    axes.set_ylim(bottom, top)
    below = drawn[drawn["mean"] < bottom]
    looks = styles(methods_of(drawn))
    edge: dict[str, Any] = {
        "transform": axes.get_xaxis_transform(),
        "clip_on": False,
        "ls": "",
        "marker": "v",
    }
    for method, points in below.groupby("method", sort=False)["x"]:
        heights = [0.012] * len(points)
        axes.plot(points, heights, ms=4, color=looks[str(method)].colour, **edge)
    lowest = below.groupby("method", sort=False)["mean"].min()
    told = ", ".join(f"{method} (down to {value:.3g}%)" for method, value in lowest.items())
    return f"▾ below the range shown: {told}" if told else ""


def remaining_axis(axes: Axes, rounds: pd.DataFrame) -> None:
    """An axis of remaining weights, dense on the left, with the rounds' own percentages."""
    remaining = 100 * (1 - rounds.groupby("round")["sparsity"].mean())
    shown = remaining.iloc[:: len(remaining) // 16 + 1]
    axes.set(xscale="log", xlabel="remaining weights (%, log scale)")
    names = [f"{share:.3g}" for share in shown]
    if len(shown) > 2 and shown.iloc[-2] / shown.iloc[-1] < CROWDED:  # the last round may be small
        names[-2] = ""
    axes.set_xticks(shown, names)
    axes.minorticks_off()
    axes.invert_xaxis()


def add_legend(
    figure: Figure, rounds: pd.DataFrame, note: str = "", shown_round: int | None = None
) -> None:
    """Below the axes: the methods, the dense network, and how many seeds stand behind them."""
    rows = rounds if shown_round is None else rounds[rounds["round"] == shown_round]
    seeds = rows.groupby(["method", "round"]).size().groupby("method").agg(["min", "max"])
    same = seeds["min"].min() == seeds["max"].max()
    handles = []
    for method, look in styles(methods_of(rounds)).items():
        if method in seeds.index:
            label = method if same else f"{method} ({_seeds(seeds.loc[[method]])})"
            line = {"color": look.colour, "marker": look.marker, "ls": look.dashes}
            handles.append(Line2D([], [], label=label, ms=4, lw=1.5, **line))
    handles.append(Line2D([], [], label="dense network", color=INK, lw=1, ls=DASHED))
    title = f"mean and 95% interval of {_seeds(seeds)}" if same else "mean and 95% interval"
    if seeds["max"].max() == 1:
        title = "one seed: no interval can be given"
    title = "\n".join([title, *wrap(note, 100)])
    columns = 3 if max(len(str(handle.get_label())) for handle in handles) > 18 else 4
    figure.legend(handles=handles, title=title, loc="outside lower center", ncols=columns)


def _seeds(counts: pd.DataFrame) -> str:
    least, most = counts["min"].min(), counts["max"].max()
    if least < most:
        return f"{least} to {most} seeds"
    return "1 seed" if most == 1 else f"{most} seeds"
