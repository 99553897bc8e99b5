"""Axes: what all figures of a search share, so that they read as one.

Accuracies are in percent. What is searched stands under its own name, on the scale that it is
searched on; the trial that is recommended and the default one look the same everywhere.
"""

from math import ceil, floor, log10
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from plotly.subplots import make_subplots

from experiments.config.space import Choices, Range, Value
from experiments.figures.intervals import accuracy_limits
from experiments.figures.style import INK

ACCURACY = "validation accuracy (%)"
EPOCHS = "epochs of training, all rounds together"
RECOMMENDED: dict[str, Any] = {"marker": "*", "ls": "", "ms": 13, "mec": INK, "mew": 0.7}
DEFAULT: dict[str, Any] = {"marker": "D", "ls": "", "ms": 8.5, "mfc": "none", "mew": 1.5}
POINT: dict[str, Any] = {"marker": "o", "ls": "", "ms": 3.2, "alpha": 0.45, "mew": 0}
NARROW, WIDE = 14, 40  # letters below an axis that is one of three, or alone
SPREAD = 0.3  # of points that share a word, to be told apart
ROOM = 0.05  # at both ends of an axis, as a share of it
GOLDEN = 0.618  # its multiples lie evenly between 0 and 1


def as_word(value: Value) -> str:
    """A value as one would type it."""
    return f"{value:.4g}" if isinstance(value, int | float) else str(value)


def positions(table: pd.DataFrame, name: str, rule: Range | Choices | None) -> pd.Series:
    """Where on an axis the trials of a table stand: words at 0, 1, ..., a little apart."""
    if not isinstance(rule, Choices):
        return table[name].astype(float)
    places = {as_word(value): place for place, value in enumerate(rule.values)}
    aside = (table["number"].astype(float) * GOLDEN) % 1 - 0.5
    return table[name].map(as_word).map(places).astype(float) + SPREAD * aside


def log_ticks(low: float, high: float, letters: int = NARROW) -> list[float]:
    """Round numbers on a log scale, as many as can be read side by side."""
    powers = range(floor(log10(low)), ceil(log10(high)) + 1)
    for digits in ((1, 2, 5), (1, 3), (1,)):
        all_ticks = [float(f"{digit}e{power}") for power in powers for digit in digits]
        ticks = [tick for tick in all_ticks if low * 0.999 <= tick <= high * 1.001]
        if sum(len(f"{tick:g}") for tick in ticks) <= letters:
            break
    return ticks if len(ticks) > 1 else sorted({low, high})


def set_parameter_axis(
    axes: Axes, rule: Range | Choices, axis: str = "x", letters: int = NARROW
) -> None:
    """Make an axis that of a parameter."""
    if isinstance(rule, Choices):
        names = [as_word(value) for value in rule.values]
        turned: dict[str, Any] = {"rotation": 30, "ha": "right"} if len(names) > 2 else {}
        getattr(axes, f"set_{axis}ticks")(range(len(names)), names, **turned)
        getattr(axes, f"set_{axis}lim")(-0.5, len(names) - 0.5)
    elif rule.log:
        room, ticks = (rule.high / rule.low) ** ROOM, log_ticks(rule.low, rule.high, letters)
        getattr(axes, f"set_{axis}scale")("log")
        getattr(axes, f"set_{axis}ticks")(ticks, [f"{tick:g}" for tick in ticks])
        getattr(axes, f"{axis}axis").minorticks_off()
        getattr(axes, f"set_{axis}lim")(rule.low / room, rule.high * room)
    else:
        room = (rule.high - rule.low) * ROOM
        getattr(axes, f"{axis}axis").set_major_locator(MaxNLocator(4, integer=rule.whole))
        getattr(axes, f"set_{axis}lim")(rule.low - room, rule.high + room)


def limits_of(accuracies: pd.Series) -> tuple[float, float]:
    """The range of accuracies worth showing; one collapsed trial does not flatten all others."""
    return accuracy_limits(accuracies, accuracies, accuracies)


def draw_points(axes: Axes, x: pd.Series, accuracies: pd.Series, colour: str, **look: Any) -> None:
    """Trials as points; those below the range that the axes show at its edge."""
    below = accuracies < axes.get_ylim()[0]
    axes.plot(x[~below], accuracies[~below], color=colour, **(POINT | look))
    if below.any():  # nothing, but not clipped, would be a thing in the corner for the layout
        edge: dict[str, Any] = {"transform": axes.get_xaxis_transform(), "clip_on": False}
        more: dict[str, Any] = {"ls": "", "marker": "v", "ms": 3.5, "alpha": 0.6, "mew": 0}
        axes.plot(x[below], [0.012] * int(below.sum()), color=colour, **edge, **more)


def legend_entry(label: str, **look: Any) -> Line2D:
    """An entry of a legend."""
    return Line2D([], [], label=label, **({"color": INK, "ls": ""} | look))


def hover(table: pd.DataFrame, names: list[str]) -> list[str]:
    """What is told of each trial that one points at."""
    told = []
    for row in table.to_dict("records"):
        lines = [f"<b>trial {row['number']}</b>, {row['state']}"]
        lines += [f"{name} = {as_word(row[name])}" for name in names if pd.notna(row[name])]
        if pd.notna(row["valid_accuracy"]):
            lines.append(f"validation accuracy {100 * row['valid_accuracy']:.2f}%")
            lines.append(f"{row['total_epochs']:.0f} epochs, {row['sparsity']:.1%} pruned")
        if row["reason"]:
            lines.append(str(row["reason"]))
        told.append("<br>".join(lines))
    return told


def new_page(title: str, panels: int = 1) -> go.Figure:
    """An empty figure to point at, of so many panels side by side."""
    figure = make_subplots(1, panels, shared_yaxes=True, horizontal_spacing=0.02)
    return in_style(figure, title)


def in_style(figure: go.Figure, title: str) -> go.Figure:
    """A figure to point at, with a title, that looks as ours do."""
    figure.update_layout(template="plotly_white", title=title, font={"color": INK})
    return figure


def page_axis(rule: Range | Choices, title: str, letters: int) -> dict[str, Any]:
    """What makes an axis of a page that of a parameter."""
    if isinstance(rule, Choices):
        names = [as_word(value) for value in rule.values]
        return {"title": title, "tickvals": [*range(len(names))], "ticktext": names}
    if not rule.log:
        return {"title": title}
    ticks = log_ticks(rule.low, rule.high, letters)
    names = [f"{tick:g}" for tick in ticks]
    return {"title": title, "type": "log", "tickvals": ticks, "ticktext": names}
