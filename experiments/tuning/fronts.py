"""Fronts: the studies of all methods in one figure, as an image and as an interactive page.

With objective=pareto: validation accuracy against the epochs of training. With objective=accuracy,
where trials may all cost the same: the best accuracy so far, and accuracy over each parameter.
Accuracies are in percent, and parameters have the scale that they are searched on.
"""

from collections.abc import Mapping, Sequence
from math import ceil, floor, log10
from textwrap import wrap
from typing import Any

import numpy as np
import pandas as pd
import plotly.express as px
import plotly.graph_objects as go
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from experiments.config.space import Choices, Range, Space, Value, joint
from experiments.figures.intervals import accuracy_limits
from experiments.figures.style import INK, new_figure, report_style, styles
from experiments.tuning.choose import at_equal_cost, complete, describe_rule, front
from experiments.tuning.search import Search

ACCURACY = "validation accuracy (%)"
EPOCHS = "epochs of training, all rounds together (log scale)"
COST = "total_epochs"  # the column of a table
RECOMMENDED: dict[str, Any] = {"marker": "*", "ls": "", "ms": 13, "mec": INK, "mew": 0.7}
DEFAULT: dict[str, Any] = {"marker": "D", "ls": "", "ms": 8.5, "mfc": "none", "mew": 1.5}
FOUND = "found"  # the trial that the rule chooses, better than the default or not
LINE: dict[str, Any] = {"lw": 1.4, "ms": 4.5}
POINT: dict[str, Any] = {"marker": "o", "ls": "", "ms": 3.2, "alpha": 0.45, "mew": 0}
BELOW: dict[str, Any] = {"marker": "v", "ls": "", "ms": 3.5, "alpha": 0.6, "mew": 0}
NARROW, WIDE = 14, 40  # characters that fit below an axis, one of three or alone
LEGEND_WIDTH = 56  # characters
JITTER = 0.3  # of points that share a category
GOLDEN = 0.618  # its multiples are spread evenly over the unit interval
MARGIN = 0.05  # at both ends of an axis, as a share of it
Rule = Range | Choices
Studies = Mapping[str, pd.DataFrame]  # by method, as `trials_of`


def trials_of(tables: Mapping[str, pd.DataFrame], recommended: Mapping[str, int]) -> Studies:
    """The complete trials of each method, by number.

    Args:
        tables: As `Study.table`, by method.
        recommended: Number of the recommended trial, by method.

    Returns:
        Their rows with `accuracy` in percent. `recommended` is true for one of them; so is
        `default`, unless the default trial is not complete.
    """
    studies = {}
    for method, table in tables.items():
        rows, pair = complete(table).sort_values("number"), at_equal_cost(table)
        studies[method] = rows.assign(
            accuracy=100 * rows["valid_accuracy"].astype(float),
            recommended=rows["number"] == recommended[method],
            default=rows["number"] == (pair[0]["number"] if pair else -1),
        )
    return studies


def limits_of(studies: Studies) -> tuple[float, float]:
    """The range of accuracies that is shown; a few bad trials do not flatten all others."""
    accuracies = pd.concat([one["accuracy"] for one in studies.values()])
    return accuracy_limits(accuracies, accuracies, accuracies)


def cost_range(studies: Studies) -> Range:
    """The range of epochs that is shown."""
    epochs = pd.concat([one[COST] for one in studies.values()]).astype(float)
    return Range(float(epochs.min()), max(float(epochs.max()), epochs.min() + 1), log=True)


def tolerated(one: pd.DataFrame, search: Search) -> tuple[float, float]:
    """The accuracies (%) among which the cheapest trial is recommended."""
    best = float(one["accuracy"].max())
    return best - 100 * search.config.tolerance, best


def describe(one: pd.DataFrame, search: Search) -> str:
    """The recommended trial as a phrase."""
    row = one[one["recommended"]].iloc[0]
    values = ", ".join(f"{name}={as_text(row[name])}" for name in search.space if name in row)
    return f"trial {row['number']}, {values}"


def joint_space(searches: Sequence[Search]) -> Space:
    """All parameters that the searches vary, each with a range that contains all of theirs.

    Some methods vary more parameters than others, and each range contains the method's default.
    """
    return joint(search.space for search in searches)


def title_of(studies: Studies, search: Search) -> str:
    """The title of a figure."""
    only = f"{next(iter(studies))}: " if len(studies) == 1 else ""
    if search.config.objective == "pareto":
        title = f"accuracy against cost at {100 * search.config.target_sparsity:.4g}% sparsity"
    else:
        title = f"accuracy within {search.budget} epochs of retraining"
    return only + title if only else title.capitalize()


# As an image


@report_style
def draw_fronts(studies: Studies, searches: Sequence[Search]) -> Figure:
    """One or all studies of a search: accuracy against cost, or with a budget `draw_parameters`."""
    search = searches[0]
    if search.config.objective == "accuracy":
        return draw_parameters(studies, searches)
    cost = cost_range(studies)
    figure, (axes,) = new_figure(title_of(studies, search), height=4.8)
    axes.set_ylim(*limits_of(studies))
    set_axis(axes, cost, WIDE)
    axes.set(xlabel=EPOCHS, ylabel=ACCURACY)
    for method, style in styles(list(studies)).items():
        one = studies[method]
        x, y = front(one)[COST].tolist(), front(one)["accuracy"].tolist()
        look = LINE | {"color": style["color"], "ls": style["ls"], "marker": style["marker"]}
        look["drawstyle"] = "steps-post"
        axes.plot([*x, cost.high], [*y, y[-1]], markevery=[*range(len(x))], **look)
        draw_trials(axes, one, COST, cost, style["color"])
    if len(studies) == 1:
        (only,) = studies.values()
        axes.axhspan(*tolerated(only, search), color=INK, alpha=0.08, lw=0, zorder=0)
    _add_legend(figure, studies, search, pareto=True)
    return figure


@report_style
def draw_parameters(studies: Studies, searches: Sequence[Search]) -> Figure:
    """The best accuracy so far, and the accuracy of all trials over each parameter."""
    search, space = searches[0], joint_space(searches)
    title = title_of(studies, search)
    if search.config.objective == "pareto":
        only = f"{next(iter(studies))}: " if len(studies) == 1 else ""
        title = f"{only}Accuracy trial by trial, and over each parameter"
    figure, panels = new_figure(title, 1 + len(space), 4.8, sharey=True)
    panels[0].set_ylim(*limits_of(studies))
    panels[0].set(xlabel="trial (best so far)")
    panels[0].xaxis.set_major_locator(MaxNLocator(4, integer=True))
    panel_of = dict(zip(space, panels[1:], strict=True))
    for name, axes in panel_of.items():
        set_axis(axes, space[name])
        axes.set_xlabel(name)
    for axes in panels[::3]:
        axes.set_ylabel(ACCURACY)
    for method, style in styles(list(studies)).items():
        one = studies[method]
        best = one["accuracy"].cummax().tolist()
        line = {"color": style["color"], "ls": style["ls"], "drawstyle": "steps-post"}
        panels[0].plot(one["number"].tolist(), best, **LINE | line)
        for name, axes in panel_of.items():
            if name in one:
                draw_trials(axes, one, name, space[name], style["color"])
    _add_legend(figure, studies, search, pareto=False)
    return figure


@report_style
def draw_importances(shares: Mapping[str, Mapping[str, float]]) -> Figure:
    """The importance of each parameter, by method, as `figures.importances_of` returns them."""
    names = list(dict.fromkeys(name for one in shares.values() for name in one))
    figure, (axes,) = new_figure("Importance of each parameter for accuracy", height=2.6)
    width = 0.8 / len(shares)
    for place, (method, style) in enumerate(styles(list(shares)).items()):
        rows = [
            names.index(name) + width * (place - (len(shares) - 1) / 2) for name in shares[method]
        ]
        bars = list(shares[method].values())
        axes.barh(rows, bars, 0.9 * width, color=style["color"], label=method)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set(xlabel="share of the variance of accuracy", xlim=(0, 1))
    axes.grid(visible=False, axis="y")
    figure.legend(loc="outside right upper")
    return figure


def draw_trials(axes: Axes, one: pd.DataFrame, name: str, rule: Rule, colour: str) -> None:
    """The trials of a study; those below the range that is shown are triangles at its edge."""
    x, y, bottom = positions(one, name, rule), one["accuracy"], axes.get_ylim()[0]
    below = y < bottom
    axes.plot(x[~below], y[~below], color=colour, **POINT)
    if below.any():  # an empty line that is not clipped would disturb the layout
        edge: dict[str, Any] = {"transform": axes.get_xaxis_transform(), "clip_on": False}
        axes.plot(x[below], [0.012] * int(below.sum()), color=colour, **(edge | BELOW))
    for kind, look in (("default", DEFAULT), ("recommended", RECOMMENDED)):
        shown = one[kind] & ~below
        if shown.any():
            axes.plot(x[shown], y[shown], color=colour, clip_on=False, zorder=4, **look)


def positions(table: pd.DataFrame, name: str, rule: Rule) -> pd.Series:
    """The places of trials on an axis; those of a category are spread a little."""
    if not isinstance(rule, Choices):
        return table[name].astype(float)
    places = {as_text(value): place for place, value in enumerate(rule.values)}
    offsets = (table["number"].astype(float) * GOLDEN) % 1 - 0.5
    return table[name].map(as_text).map(places).astype(float) + JITTER * offsets


def set_axis(axes: Axes, rule: Rule, characters: int = NARROW) -> None:
    """Give the x axis the scale, limits and ticks of a parameter."""
    if isinstance(rule, Choices):
        names = [as_text(value) for value in rule.values]
        turned: dict[str, Any] = {"rotation": 30, "ha": "right"} if len(names) > 2 else {}
        axes.set_xticks(range(len(names)), names, **turned)
        axes.set_xlim(-0.5, len(names) - 0.5)
    elif rule.log:
        margin, ticks = (rule.high / rule.low) ** MARGIN, log_ticks(rule, characters)
        axes.set_xscale("log")
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.xaxis.minorticks_off()
        axes.set_xlim(rule.low / margin, rule.high * margin)
    else:
        margin = (rule.high - rule.low) * MARGIN
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=rule.is_integer))
        axes.set_xlim(rule.low - margin, rule.high + margin)


def log_ticks(rule: Range, characters: int) -> list[float]:
    """Round numbers on a log scale, as many as fit side by side."""
    powers = range(floor(log10(rule.low)), ceil(log10(rule.high)) + 1)
    for digits in ((1, 2, 5), (1, 3), (1,)):
        all_ticks = [float(f"{digit}e{power}") for power in powers for digit in digits]
        ticks = [tick for tick in all_ticks if rule.low * 0.999 <= tick <= rule.high * 1.001]
        if sum(len(f"{tick:g}") for tick in ticks) <= characters:
            break
    return ticks if len(ticks) > 1 else sorted({rule.low, rule.high})


def as_text(value: Value) -> str:
    """A value as you would type it."""
    return f"{value:.4g}" if isinstance(value, int | float) else str(value)


def _entry(label: str, **look: Any) -> Line2D:
    return Line2D([], [], label=label, **({"color": INK, "ls": ""} | look))


def _add_legend(figure: Figure, studies: Studies, search: Search, pareto: bool) -> None:
    """Below: the trials that were found on the left, the meaning of the marks on the right."""
    trials: list[Any] = []
    for method, style in styles(list(studies)).items():
        text = "\n".join(wrap(f"{method}: {describe(studies[method], search)}", LEGEND_WIDTH))
        look = {"color": style["color"], "marker": style["marker"] if pareto else ""}
        trials.append(_entry(text, ls=style["ls"], ms=4.5, lw=1.4, **look))
    marks: list[Any] = [
        _entry("best for its cost" if pareto else "best so far", ls="-", lw=1.4),
        _entry("trial", **POINT),
        _entry("default", **DEFAULT),
        _entry(FOUND, **RECOMMENDED),
    ]
    if len(studies) == 1 and pareto:
        label = f"within {100 * search.config.tolerance:g} points of the best"
        marks.append(Patch(color=INK, alpha=0.08, lw=0, label=label))
    rows = max(len(trials), len(marks))
    handles = [
        each for side in (trials, marks) for each in side + [_entry("")] * (rows - len(side))
    ]
    title = "\n".join(wrap(f"{FOUND.capitalize()}: {describe_rule(search)}.", 100))
    figure.legend(handles=handles, loc="outside lower center", ncols=2, title=title)


# As an interactive page


def interactive_fronts(studies: Studies, searches: Sequence[Search]) -> go.Figure:
    """The same as an interactive figure."""
    search, space = searches[0], joint_space(searches)
    colours = {method: style["color"] for method, style in styles(list(studies)).items()}
    shown = [
        one.assign(
            method=method,
            trial=np.select([one["recommended"], one["default"]], [FOUND, "default"], "other"),
            hover=hover_texts(one, space),
        )
        for method, one in studies.items()
    ]
    kept = [COST, "accuracy", "method", "trial", "hover"]
    points = pd.concat(shown)[[*kept, *space]]
    look: dict[str, Any] = {
        "y": "accuracy",
        "color": "method",
        "symbol": "trial",
        "color_discrete_map": colours,
        "symbol_map": {"other": "circle", "default": "diamond-open", FOUND: "star"},
        "hover_name": "hover",
        "hover_data": {"method": False, "trial": False, "accuracy": False},
        "labels": {"accuracy": ACCURACY, COST: EPOCHS},
        "title": title_of(studies, search),
        "template": "plotly_white",
    }
    if search.config.objective == "pareto":
        figure = px.scatter(points, x=COST, log_x=True, **look)
        for method, one in studies.items():
            x, y = front(one)[COST].tolist(), front(one)["accuracy"].tolist()
            line = {"shape": "hv", "color": colours[method]}
            name = f"{method}, best for its cost"
            figure.add_scatter(x=x, y=y, name=name, mode="lines", line=line, hoverinfo="skip")
    else:
        figure = px.scatter(
            points.melt(kept, list(space), "parameter").dropna(subset="value"),
            x="value",
            facet_col="parameter",
            facet_col_spacing=0.02,
            **look,
        )
        for column, (name, rule) in enumerate(space.items(), 1):
            scale = {"type": "log"} if isinstance(rule, Range) and rule.log else {}
            figure.update_xaxes({"title": name, "matches": None} | scale, col=column)
        figure.layout.annotations = ()
    figure.update_traces(marker={"size": 9}, selector={"mode": "markers"})
    return figure.update_yaxes(range=limits_of(studies))


def hover_texts(table: pd.DataFrame, space: Space) -> list[str]:
    """What hovering over each trial shows."""
    texts = []
    for row in table.to_dict("records"):
        lines = [f"<b>trial {row['number']}</b>, {row['state']}"]
        lines += [f"{name} = {as_text(row[name])}" for name in space if pd.notna(row.get(name))]
        if pd.notna(row["valid_accuracy"]):
            lines.append(f"validation accuracy {100 * row['valid_accuracy']:.2f}%")
            lines.append(f"{row[COST]:.0f} epochs, {row['sparsity']:.1%} pruned")
        if row["reason"]:
            lines.append(str(row["reason"]))
        texts.append("<br>".join(lines))
    return texts
