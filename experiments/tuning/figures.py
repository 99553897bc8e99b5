"""Figures: how did a study go, and what did it find?

Numbers come from findings.py, what all pictures share from axes.py; each `draw_*` returns a
`Figure`, and writes no file. A picture is left out that has too little to show.

To add one: a `draw_*`, its line in `draw`, and its twin in interactive.py.
"""

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from matplotlib.tri import Triangulation, TriContourSet

from experiments.figures.experiment import COLOURS
from experiments.figures.style import DASHED, INK, new_figure, report_style, styles
from experiments.tuning.axes import (
    ACCURACY,
    DEFAULT,
    POINT,
    RECOMMENDED,
    draw_points,
    legend_entry,
    limits_of,
    log_ticks,
    positions,
    set_parameter_axis,
)
from experiments.tuning.findings import Findings, history_of, on_scales
from experiments.tuning.fronts import draw_fronts, draw_marks

STOPPED, RED = "#8a8a8a", COLOURS[1]
Look = dict[str, Any]
BANDS = 14  # of colour between the best accuracy and the lowest that is shown


def draw(found: Findings) -> dict[str, Figure]:
    """The pictures that apply, by name, in the order in which a reader wants them."""
    search, chosen = found.search, int(found.found.chosen["number"].iloc[0])
    figures = {
        "front": draw_fronts({search.method: found.table}, {search.method: chosen}, search)
        if search.config.objective == "pareto"
        else None,
        "history": draw_history(found),
        "importances": draw_importances(found) if len(found.importances.columns) else None,
        "slices": draw_slices(found),
        "contours": draw_contours(found) if found.pairs else None,
        "levels": draw_levels(found) if len(found.levels) else None,
    }
    return {name: figure for name, figure in figures.items() if figure}


def colour_of(found: Findings) -> str:
    """The colour of the study's method."""
    return styles([found.search.method])[found.search.method].colour


@report_style
def draw_history(found: Findings) -> Figure:
    """Accuracy of one trial after the other, and what became of those that did not end well."""
    rows, colour = history_of(found.table), colour_of(found)
    figure, (axes,) = new_figure(f"{found.search.method}: how the search went")
    bottom, top = limits_of(found.found.complete["accuracy"])
    axes.set_ylim(bottom, max(top, rows["accuracy"].max()))
    axes.plot(rows["number"], rows["best"], drawstyle="steps-post", color=colour, lw=1.2)
    looks: dict[str, tuple[str, Look]] = {
        "complete": (colour, {}),
        "stopped early": (STOPPED, {"mfc": "none", "mew": 1}),
    }
    handles = [legend_entry("best so far", color=colour, ls="-", lw=1.2)]
    for state, (shade, look) in looks.items():
        own = rows[rows["state"] == state]
        draw_points(axes, own["number"], own["accuracy"], shade, alpha=0.8, **look)
        more = " (with more weights left)" if state != "complete" else ""
        handles += [legend_entry(state + more, color=shade, **POINT | look)] * bool(len(own))
    gone = rows.loc[rows["accuracy"].isna(), "number"]
    cross: Look = {"color": RED, "marker": "x", "ls": "", "ms": 6, "mew": 1.5}
    axes.plot(gone, [0.03] * len(gone), transform=axes.get_xaxis_transform(), **cross)
    handles += [legend_entry("failed, or its process died", **cross)] * bool(len(gone))
    draw_marks(axes, found.found, "number", None, colour)
    handles += _marks_key(found, colour)
    axes.set(xlabel="trial", ylabel=ACCURACY)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return figure


def _marks_key(found: Findings, colour: str) -> list[Line2D]:
    handles = [legend_entry("the default", color=colour, **DEFAULT)] * len(found.found.default)
    return [*handles, legend_entry("recommended", color=colour, **RECOMMENDED)]


@report_style
def draw_importances(found: Findings) -> Figure:
    """Which parameter accounts for how much of the differences between trials."""
    shares = 100 * found.importances
    title = f"{found.search.method}: what makes the difference between trials"
    figure, (axes,) = new_figure(title, height=1.8 + 0.45 * len(shares))
    height = 0.8 / len(shares.columns)
    for place, label in enumerate(shares):
        at = [row + 0.4 - height * (place + 0.5) for row in range(len(shares))]
        colour = (colour_of(found), STOPPED)[place]
        bars = axes.barh(at, shares[label], height, color=colour, label=f"in {label}")
        axes.bar_label(bars, [f"{share:.0f}%" for share in shares[label]], padding=3, fontsize=8.5)
    axes.set_yticks(range(len(shares)), list(shares.index))
    axes.set(xlabel="variance that a parameter alone explains (%)", xlim=(0, 110))
    axes.grid(False, axis="y")
    figure.legend(loc="outside lower center", ncols=2)
    return figure


@report_style
def draw_slices(found: Findings) -> Figure:
    """Accuracy over each parameter."""
    space, rows, colour = found.search.space, found.found.complete, colour_of(found)
    title = f"{found.search.method}: where the good trials lie"
    figure, panels = new_figure(title, len(space), height=3.8, sharey=True)
    panels[0].set_ylim(*limits_of(rows["accuracy"]))
    for axes, (name, rule) in zip(panels, space.items(), strict=True):
        set_parameter_axis(axes, rule)
        axes.set_xlabel(name)
        draw_points(axes, positions(rows, name, rule), rows["accuracy"], colour)
        draw_marks(axes, found.found, name, rule, colour)
    for axes in panels[::3]:
        axes.set_ylabel(ACCURACY)
    handles = [legend_entry("complete trial", color=colour, **POINT), *_marks_key(found, colour)]
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return figure


@report_style
def draw_contours(found: Findings) -> Figure:
    """Accuracy over two parameters at a time."""
    title = f"{found.search.method}: accuracy between the trials"
    figure, panels = new_figure(title, len(found.pairs), height=4.4)
    for axes, pair in zip(panels, found.pairs, strict=True):
        picture = _draw_contour(axes, found, pair)
    bar = figure.colorbar(picture, ax=panels, label=ACCURACY, aspect=30)
    bar.ax.tick_params(color=INK, labelcolor=INK)
    handles = [legend_entry("complete trial", **POINT | {"alpha": 0.7}), *_marks_key(found, RED)]
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return figure


def _draw_contour(axes: Axes, found: Findings, pair: tuple[str, str]) -> TriContourSet:
    """Interpolated between neighbours on the scales of both; trials that are alike are averaged."""
    rows = found.found.complete.astype(dict.fromkeys(pair, float))
    means = rows.groupby(list(pair))["accuracy"].mean().reset_index()
    triangles = Triangulation(*on_scales(means, pair, found.search).T).triangles
    bands = MaxNLocator(BANDS).tick_values(*limits_of(rows["accuracy"]))
    x, y = (means[name] for name in pair)
    for axis, name in zip("xy", pair, strict=True):
        set_parameter_axis(axes, found.search.space[name], axis)
    look: Look = {"levels": bands, "cmap": "cividis", "extend": "min"}
    picture = axes.tricontourf(Triangulation(x, y, triangles), means["accuracy"], **look)
    axes.plot(x, y, color=INK, **(POINT | {"alpha": 0.7}))
    for row, mark in ((found.found.default, DEFAULT), (found.found.chosen, RECOMMENDED)):
        axes.plot(row[pair[0]], row[pair[1]], color=RED, zorder=4, **mark)
    axes.set(xlabel=pair[0], ylabel=pair[1])
    return picture


@report_style
def draw_levels(found: Findings) -> Figure:
    """Accuracy of each trial as weights go, and where trials were stopped early."""
    title = f"{found.search.method}: trials compared at equal sparsity"
    figure, (axes,) = new_figure(title)
    chosen, colour = int(found.found.chosen["number"].iloc[0]), colour_of(found)
    axes.set_ylim(*limits_of(found.levels["accuracy"]))
    looks: dict[str, Look] = {
        "complete": {"color": colour, "lw": 0.9, "alpha": 0.45},
        "stopped early": {"color": STOPPED, "lw": 0.9, "ls": DASHED},
    }
    for number, rows in found.levels.groupby("number"):
        state = str(rows["state"].iloc[0])
        axes.plot(rows["remaining"], rows["accuracy"], **looks[state])
        if state == "stopped early":
            axes.plot(*rows[["remaining", "accuracy"]].iloc[-1], "x", color=STOPPED, ms=5)
        if number == chosen:
            axes.plot(rows["remaining"], rows["accuracy"], color=colour, lw=2.4, zorder=4)
    axes.set(xscale="log", xlabel="remaining weights (%, log scale)", ylabel=ACCURACY)
    ticks = log_ticks(found.levels["remaining"].min(), 100)
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.invert_xaxis()
    handles = [legend_entry(state, **({"ls": "-"} | look)) for state, look in looks.items()]
    handles.append(legend_entry("recommended", color=colour, ls="-", lw=2.4))
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return figure
