"""Interactive: the figures of a study to point at, each trial with its parameters.

The twins of figures.py, from the same numbers; contours are Optuna's own, in our words.
"""

from typing import Any

import optuna.visualization as drawn
import plotly.graph_objects as go
from optuna.trial import FrozenTrial

from experiments.tuning.axes import ACCURACY, hover, in_style, limits_of, new_page
from experiments.tuning.figures import RED, STOPPED, colour_of
from experiments.tuning.findings import Findings, history_of
from experiments.tuning.fronts import interactive_fronts, marks, page_over

COLOURS_OF = {"stopped early": STOPPED, "failed": RED, "lost": RED}
CAPTIONS = {
    "front": "Each point is a trial. The stairs are the trials that no other one beats without "
    "costing more.",
    "history": "Trials in the order in which they began. One that was stopped early had more "
    "weights left than the others; one that failed stands at the bottom.",
    "importances": "How far accuracy, or what a trial costs, depends on each parameter. What "
    "several do only together is not in it, so the bars need not add up to 100%.",
    "slices": "Each point is a trial that went all the way, over the value of each parameter.",
    "contours": "Each point is a trial; in between, accuracy is only guessed from its neighbours.",
    "levels": "Each line is a trial, which is stopped early if it is below the median of the "
    "others with as many weights left.",
}
STYLE = (
    "<style>body {font-family: sans-serif; max-width: 1100px; margin: auto} "
    "p {margin: 0 5em 2em}</style>"
)
LOOKS: dict[str, dict[str, Any]] = {  # of a trial, by its state
    "complete": {"size": 8},
    "stopped early": {"size": 8, "symbol": "circle-open"},
    "failed": {"size": 9, "symbol": "x-thin", "line": {"width": 2, "color": RED}},
    "lost": {"size": 9, "symbol": "x-thin", "line": {"width": 2, "color": RED}},
}


def interactive(found: Findings) -> dict[str, go.Figure]:
    """The pictures that apply, by the names that they have in `figures.draw`."""
    search, chosen = found.search, int(found.found.chosen["number"].iloc[0])
    tables = {search.method: found.table}
    figures = {
        "front": interactive_fronts(tables, {search.method: chosen}, search)
        if search.config.objective == "pareto"
        else None,
        "history": history(found),
        "importances": importances(found) if len(found.importances.columns) else None,
        "slices": slices(found),
        "contours": contours(found) if found.pairs else None,
        "levels": levels(found) if len(found.levels) else None,
    }
    return {name: figure for name, figure in figures.items() if figure}


def history(found: Findings) -> go.Figure:
    """Accuracy of one trial after the other."""
    rows, colour = history_of(found.table), colour_of(found)
    figure = new_page(f"{found.search.method}: how the search went")
    figure.add_scatter(
        x=rows["number"].tolist(),
        y=rows["best"].tolist(),
        name="best so far",
        line={"shape": "hv", "color": colour},
        hoverinfo="skip",
    )
    bottom, top = limits_of(found.found.complete["accuracy"])
    top = max(top, rows["accuracy"].max())
    for state, own in rows.groupby("state"):
        figure.add_scatter(
            x=own["number"].tolist(),
            y=own["accuracy"].fillna(bottom).tolist(),
            name=str(state),
            mode="markers",
            marker={"color": COLOURS_OF.get(str(state), colour), **LOOKS[str(state)]},
            hovertext=hover(own, list(found.search.space)),
            hoverinfo="text",
        )
    for mark in marks(found.found, found.search, "number", None):
        figure.add_trace(mark.update(marker={"color": colour}))
    figure.update_xaxes(title="trial")
    return figure.update_yaxes(title=ACCURACY, range=[bottom, top])


def importances(found: Findings) -> go.Figure:
    """Which parameter accounts for how much of the differences between trials."""
    figure = new_page(f"{found.search.method}: what makes the difference between trials")
    colours = (colour_of(found), STOPPED)
    for colour, (label, shares) in zip(colours, found.importances.items(), strict=False):
        figure.add_bar(
            y=list(shares.index),
            x=(100 * shares).tolist(),
            name=f"in {label}",
            orientation="h",
            marker={"color": colour},
        )
    return figure.update_xaxes(title="variance that a parameter alone explains (%)")


def slices(found: Findings) -> go.Figure:
    """Accuracy over each parameter."""
    search = found.search
    title = f"{search.method}: where the good trials lie"
    return page_over(search.space, {search.method: found.found}, search, title)


def contours(found: Findings) -> go.Figure:
    """Accuracy over two parameters at a time."""
    names = sorted({name for pair in found.pairs for name in pair})
    figure = drawn.plot_contour(found.optuna, names, target=_accuracy, target_name=ACCURACY)
    bottom, top = limits_of(found.found.complete["accuracy"])
    look = {"zmin": bottom, "zmax": top, "colorscale": "Cividis", "reversescale": False}
    figure.update_traces(selector={"type": "contour"}, **look)
    return in_style(figure, f"{found.search.method}: accuracy between the trials")


def levels(found: Findings) -> go.Figure:
    """Accuracy of each trial as weights go."""
    figure = new_page(f"{found.search.method}: trials compared at equal sparsity")
    chosen = int(found.found.chosen["number"].iloc[0])
    colour = colour_of(found)
    for number, rows in found.levels.groupby("number"):
        state = str(rows["state"].iloc[0])
        line = {"width": 4 if number == chosen else 1, "color": COLOURS_OF.get(state, colour)}
        figure.add_scatter(
            x=rows["remaining"].tolist(),
            y=rows["accuracy"].tolist(),
            name=f"trial {number}, {state}" + ", recommended" * (number == chosen),
            mode="lines",
            showlegend=False,
            line=line | {"dash": "dash" if state == "stopped early" else "solid"},
        )
    axis = {"type": "log", "autorange": "reversed", "title": "remaining weights (%, log scale)"}
    return figure.update_xaxes(axis).update_yaxes(title=ACCURACY)


def _accuracy(trial: FrozenTrial) -> float:
    return 100 * float(trial.values[0])


def page_of(figures: dict[str, go.Figure]) -> str:
    """A page of figures that needs neither a network nor another file.

    MLflow shows a page by itself, so that it would not find a script beside it.
    """
    parts = ['<!DOCTYPE html><meta charset="utf-8"><title>Search</title>', STYLE]
    for place, (name, figure) in enumerate(figures.items()):
        look = {"full_html": False, "div_id": name, "default_height": "520px"}
        parts.append(figure.to_html(include_plotlyjs=place == 0, **look))
        parts.append(f"<p>{CAPTIONS[name]}</p>" if name in CAPTIONS else "")
    return "\n".join(parts)
