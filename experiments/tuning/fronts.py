"""Fronts: what does accuracy cost, and which method wants what?

For objective=pareto: validation accuracy against epochs of training, of one study or of all of a
search. For objective=accuracy, where all trials may cost the same: how far each study got, and
where in each range its good trials lie. Tables are those of `Study.table`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from textwrap import wrap
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from experiments.config.space import Choices, Range
from experiments.figures.style import INK, new_figure, report_style, styles
from experiments.tuning.axes import (
    ACCURACY,
    DEFAULT,
    EPOCHS,
    NARROW,
    RECOMMENDED,
    WIDE,
    as_word,
    draw_points,
    hover,
    legend_entry,
    limits_of,
    new_page,
    page_axis,
    positions,
    set_parameter_axis,
)
from experiments.tuning.choose import at_equal_cost, complete, front
from experiments.tuning.choose import rule as rule_of
from experiments.tuning.search import Search

LETTERS = 56  # in a line of the legend


@dataclass(frozen=True)
class Found:
    """What a picture shows of a study: rows of its table, with `accuracy` in percent."""

    complete: pd.DataFrame
    front: pd.DataFrame  # those that no other one beats without costing more, by cost
    best: pd.Series  # accuracy of the best complete trial up to each, by number
    chosen: pd.DataFrame  # one row
    default: pd.DataFrame  # one row; none if the default trial is not complete

    def wanted(self, search: Search) -> str:
        """The recommended trial in words."""
        row = self.chosen.iloc[0]
        said = ", ".join(f"{name}={as_word(row[name])}" for name in search.space)
        return f"trial {row['number']}, {said}"


def found_in(tables: Mapping[str, pd.DataFrame], chosen: Mapping[str, int]) -> dict[str, Found]:
    """The numbers of a picture, by method.

    Args:
        tables: Of the studies, by method.
        chosen: Number of the trial that is recommended, by method.
    """
    found = {}
    for method, whole in tables.items():
        table = whole.assign(accuracy=100 * whole["valid_accuracy"].astype(float))
        rows, equal = complete(table).sort_values("number"), at_equal_cost(table)
        default = [equal[0]["number"]] if equal else []
        found[method] = Found(
            complete=rows,
            front=front(table),
            best=rows.set_index("number")["accuracy"].cummax(),
            chosen=rows[rows["number"] == chosen[method]],
            default=rows[rows["number"].isin(default)],
        )
    return found


def tolerated(one: Found, search: Search) -> tuple[float, float]:
    """The accuracies (%) among which the cheapest trial is recommended."""
    best = float(one.complete["accuracy"].max())
    return best - 100 * search.config.tolerance, best


def title_of(found: Mapping[str, Found], search: Search) -> str:
    """What a picture of fronts shows."""
    whose = f"{next(iter(found))}: what" if len(found) == 1 else "What"
    if search.config.objective == "pareto":
        gone = f"{100 * search.config.target_sparsity:.4g}% of the weights gone"
        return f"{whose} accuracy costs, to have {gone}"
    return f"{whose} is wanted within {search.budget} epochs of retraining"


def cost_rule(found: Mapping[str, Found]) -> Range:
    """The axis of epochs."""
    epochs = pd.concat([one.complete["total_epochs"] for one in found.values()]).astype(float)
    return Range(float(epochs.min()), max(float(epochs.max()), epochs.min() + 1), log=True)


def draw_fronts(
    tables: Mapping[str, pd.DataFrame], chosen: Mapping[str, int], search: Search
) -> Figure:
    """All studies of a search, or one, in a picture; arguments as of `found_in`."""
    found = found_in(tables, chosen)
    if search.config.objective == "pareto":
        return _draw_costs(found, search)
    return _draw_ranges(found, search)


@report_style
def _draw_costs(found: dict[str, Found], search: Search) -> Figure:
    figure, (axes,) = new_figure(title_of(found, search), height=4.8)
    cost = cost_rule(found)
    axes.set_ylim(*limits_of(pd.concat([one.complete["accuracy"] for one in found.values()])))
    set_parameter_axis(axes, cost, letters=WIDE)
    for method, look in styles(list(found)).items():
        epochs, accuracies = found[method].front["total_epochs"], found[method].front["accuracy"]
        line = {"color": look.colour, "marker": look.marker, "ls": look.dashes}
        stairs = ([*epochs, cost.high], [*accuracies, accuracies.iloc[-1]])
        marked = [*range(len(epochs))]
        axes.plot(*stairs, drawstyle="steps-post", lw=1.4, ms=4.5, markevery=marked, **line)
        _draw_trials(axes, found[method], "total_epochs", cost, look.colour)
    if len(found) == 1:
        (only,) = found.values()
        axes.axhspan(*tolerated(only, search), color=INK, alpha=0.08, lw=0, zorder=0)
    axes.set(xlabel=f"{EPOCHS} (log scale)", ylabel=ACCURACY)
    _add_legend(figure, found, search, "the best for its cost")
    return figure


def draw_marks(
    axes: Axes, one: Found, name: str, rule: Range | Choices | None, colour: str
) -> None:
    """The default trial and the recommended one, where they are within the range that is shown."""
    for row, look in ((one.default, DEFAULT), (one.chosen, RECOMMENDED)):
        shown = row[row["accuracy"] >= axes.get_ylim()[0]]
        if len(shown):
            x = positions(shown, name, rule)
            axes.plot(x, shown["accuracy"], color=colour, clip_on=False, zorder=4, **look)


def _draw_trials(axes: Axes, one: Found, name: str, rule: Range | Choices, colour: str) -> None:
    draw_points(axes, positions(one.complete, name, rule), one.complete["accuracy"], colour)
    draw_marks(axes, one, name, rule, colour)


@report_style
def _draw_ranges(found: dict[str, Found], search: Search) -> Figure:
    figure, panels = new_figure(title_of(found, search), 1 + len(search.space), 4.8, sharey=True)
    panels[0].set_ylim(*limits_of(pd.concat([one.complete["accuracy"] for one in found.values()])))
    for method, look in styles(list(found)).items():
        best = found[method].best
        line: dict[str, Any] = {"color": look.colour, "ls": look.dashes, "lw": 1.4}
        panels[0].plot(best.index, best, drawstyle="steps-post", **line)
    panels[0].set(xlabel="trial (best so far)")
    panels[0].xaxis.set_major_locator(MaxNLocator(4, integer=True))
    for axes, (name, values) in zip(panels[1:], search.space.items(), strict=True):
        set_parameter_axis(axes, values)
        axes.set_xlabel(name)
        for method, look in styles(list(found)).items():
            _draw_trials(axes, found[method], name, values, look.colour)
    for axes in panels[::3]:
        axes.set_ylabel(ACCURACY)
    _add_legend(figure, found, search, "best so far")
    return figure


def _add_legend(figure: Figure, found: dict[str, Found], search: Search, line: str) -> None:
    """Below: what each method wants on the left, what the marks mean on the right."""
    pareto = search.config.objective == "pareto"
    wants: list[Any] = []
    for method, look in styles(list(found)).items():
        text = "\n".join(wrap(f"{method}: {found[method].wanted(search)}", LETTERS))
        style = {"color": look.colour, "marker": look.marker if pareto else ""}
        wants.append(legend_entry(text, ls=look.dashes, ms=4.5, lw=1.4, **style))
    marks: list[Any] = [
        legend_entry(line, ls="-", lw=1.4),
        legend_entry("trial", marker="o", ms=3.2, alpha=0.45),
        legend_entry("the default", **DEFAULT),
        legend_entry("recommended", **RECOMMENDED),
    ]
    if len(found) == 1 and pareto:
        points = f"within {100 * search.config.tolerance:g} points of the best"
        marks.append(Patch(color=INK, alpha=0.08, lw=0, label=points))
    rows = max(len(wants), len(marks))
    handles = [
        each for side in (wants, marks) for each in side + [legend_entry("")] * (rows - len(side))
    ]
    title = "\n".join(wrap(f"Recommended is {rule_of(search)}.", 100))
    figure.legend(handles=handles, loc="outside lower center", ncols=2, title=title)


def interactive_fronts(
    tables: Mapping[str, pd.DataFrame], chosen: Mapping[str, int], search: Search
) -> go.Figure:
    """The same, to point at; arguments as of `found_in`."""
    found = found_in(tables, chosen)
    pareto = search.config.objective == "pareto"
    panels = {"total_epochs": cost_rule(found)} if pareto else search.space
    return page_over(panels, found, search, title_of(found, search))


def page_over(
    panels: Mapping[str, Range | Choices], found: Mapping[str, Found], search: Search, title: str
) -> go.Figure:
    """Accuracy over each of `panels`, which are parameters or `total_epochs`, to point at."""
    figure = new_page(title, len(panels))
    for column, (name, rule) in enumerate(panels.items(), 1):
        label = f"{EPOCHS} (log scale)" if name == "total_epochs" else name
        letters = WIDE if len(panels) == 1 else NARROW
        figure.update_xaxes(page_axis(rule, label, letters), row=1, col=column)
        for method, look in styles(list(found)).items():
            for trace in traces(found[method], search, name, rule):
                trace.update(marker={"color": look.colour}, line={"color": look.colour})
                trace.update(name=f"{method}: {trace.name}", legendgroup=f"{method} {trace.name}")
                figure.add_trace(trace.update(showlegend=column == 1), row=1, col=column)
    accuracies = pd.concat([one.complete["accuracy"] for one in found.values()])
    figure.update_yaxes(range=limits_of(accuracies))
    return figure.update_yaxes(title=ACCURACY, row=1, col=1)


def traces(one: Found, search: Search, name: str, rule: Range | Choices) -> list[go.Scatter]:
    """The trials of a study over a parameter or their cost, to point at."""
    found = [_trace("trials", one.complete, search, name, rule, {"size": 6, "opacity": 0.45})]
    if name == "total_epochs":
        best = _trace("the best for its cost", one.front, search, name, rule, {"size": 8})
        found.append(best.update(mode="lines+markers", line={"shape": "hv"}))
    return found + marks(one, search, name, rule)


def marks(one: Found, search: Search, name: str, rule: Range | Choices | None) -> list[go.Scatter]:
    """The default trial and the recommended one, to point at."""
    default, recommended = {"size": 12, "symbol": "diamond-open"}, {"size": 16, "symbol": "star"}
    return [
        _trace("the default", one.default, search, name, rule, default),
        _trace("recommended", one.chosen, search, name, rule, recommended),
    ]


def _trace(
    label: str,
    rows: pd.DataFrame,
    search: Search,
    name: str,
    rule: Range | Choices | None,
    marker: dict[str, Any],
) -> go.Scatter:
    return go.Scatter(
        x=positions(rows, name, rule).tolist(),
        y=rows["accuracy"].tolist(),
        name=label,
        mode="markers",
        marker=marker,
        hovertext=hover(rows, list(search.space)),
        hoverinfo="text",
    )
