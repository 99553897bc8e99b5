"""Figures: Optuna's own plots of one study, as images and as an interactive page.

Accuracies are in percent. A plot that has too few different trials is left out.
"""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import optuna
import plotly.graph_objects as go
from matplotlib import pyplot, rc_context
from matplotlib.ticker import FuncFormatter
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.importance import FanovaImportanceEvaluator
from optuna.trial import FrozenTrial, TrialState

from experiments.config.space import Range, Space, joint
from experiments.figures.page import to_svg
from experiments.tuning.choose import table_of
from experiments.tuning.fronts import (
    ACCURACY,
    FOUND,
    RECOMMENDED,
    Studies,
    draw_fronts,
    draw_importances,
    draw_parameters,
    hover_texts,
    interactive_fronts,
    limits_of,
    trials_of,
)
from experiments.tuning.sampling import LEVEL, distributions
from experiments.tuning.search import Search
from experiments.tuning.study import Study

ENOUGH = 8  # complete trials, for importances and contours
MOST_CONTOURS = 4  # parameters in the grid of contours
NOISE = 1e-7  # in percent
REMAINING = "remaining weights (%)"
TITLES = {
    "history": "accuracy of each trial",
    "importances": "importance of each parameter for accuracy",
    "slices": "accuracy over each parameter",
    "contours": "accuracy over two parameters",
    "levels": "accuracy of each trial as weights are pruned",
}
CAPTIONS = {
    "fronts": "Each point is a trial, at its accuracy on validation images. The line joins the "
    "trials that no other trial of the method beats at the same or a lower cost.",
    "parameters": "On the first panel, the best accuracy so far; on the others each point is a "
    "complete trial, over the value of each parameter.",
    "front": "Each point is a trial. The line joins the trials that no other trial beats at the "
    "same or a lower cost.",
    "history": "Each point is a complete trial, in the order in which they started.",
    "importances": "The share of the variance of accuracy that each parameter explains, as found "
    "by functional ANOVA (Hutter, Hoos and Leyton-Brown 2014).",
    "slices": "Each point is a complete trial, over the value of each parameter. The shade is the "
    "number of the trial.",
    "contours": "Each point is a complete trial; accuracy in between is interpolated.",
    "levels": "Each line is a trial. It is stopped early if it is below the median of the others "
    "at the same number of remaining weights.",
}
PAGE_STYLE = (
    "<style>body {font-family: sans-serif; max-width: 1100px; margin: auto} "
    "p {margin: 0 5em 2em}</style>"
)
IMAGE_STYLE: Any = {  # Optuna sets colours, these the rest
    "figure.constrained_layout.use": True,
    "figure.dpi": 150,
    "font.size": 9,
    "axes.titlesize": 10.5,
    "figure.titlesize": 10.5,
}


def save_study(study: Study, recommended: int, folder: Path) -> None:
    """Write the figures of a study: `plots/*.png` and `interactive.html`.

    Args:
        recommended: Number of the recommended trial, which is complete.
    """
    search = study.search
    studies = trials_of({search.method: study.table()}, {search.method: recommended})
    limits = limits_of(studies)
    pages: dict[str, go.Figure] = {}
    plots = folder / "plots"
    plots.mkdir(exist_ok=True)
    if search.config.objective == "pareto":
        draw_fronts(studies, [search]).savefig(plots / "front.png", facecolor="white")
        pages["front"] = interactive_fronts(studies, [search])
    save_images(study, limits, recommended, plots)
    pages |= interactive_plots(study, limits)
    (folder / "interactive.html").write_text(page_of(pages), encoding="utf-8")


def save_fronts(studies: Studies, searches: Sequence[Search], folder: Path) -> list[Path]:
    """Write the fronts of all studies of a search; returns their files."""
    files = [folder / "fronts.png", folder / "fronts.html"]
    draw_fronts(studies, searches).savefig(files[0], facecolor="white")
    page = page_of({"fronts": interactive_fronts(studies, searches)})
    files[1].write_text(page, encoding="utf-8")
    return files


def page_drawings(studies: Studies, exact: Mapping[str, Study]) -> dict[str, str]:
    """The figures of a search's page as SVG, by name.

    Args:
        exact: The studies, by method.
    """
    searches = [study.search for study in exact.values()]
    drawn = {"fronts": draw_fronts(studies, searches)}
    if searches[0].config.objective == "pareto":
        drawn["parameters"] = draw_parameters(studies, searches)
    shares = {method: importances_of(study) for method, study in exact.items()}
    if shares := {method: one for method, one in shares.items() if one}:
        drawn["importances"] = draw_importances(shares)
    return {name: to_svg(figure) for name, figure in drawn.items()}


def importances_of(study: Study) -> dict[str, float]:
    """Shares of the variance of accuracy, by parameter; empty with too few different trials."""
    space = study.search.space
    exact = in_percent(study.trials(), space)
    varied, enough = _varied(exact, space)
    if not (enough and varied):
        return {}
    evaluator = FanovaImportanceEvaluator(seed=0)
    return optuna.importance.get_param_importances(exact, evaluator=evaluator, params=varied)


def _varied(exact: optuna.Study, space: Space) -> tuple[list[str], bool]:
    """The parameters that differ between trials, and whether the trials suffice for importances."""
    trials = exact.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    varied = [name for name in space if len({trial.params[name] for trial in trials}) > 1]
    enough = len(trials) >= ENOUGH and np.ptp([trial.values[0] for trial in trials]) > NOISE
    return varied, bool(enough)


def in_percent(
    trials: Sequence[FrozenTrial], space: Space, lowest: float = -np.inf
) -> optuna.Study:
    """A study in memory whose only objective is validation accuracy in percent.

    Args:
        space: All trials get the same ranges: these, widened to the trials' own. Each command may
            have widened them, also while this one ran.
        lowest: Accuracies below this are replaced by it.
    """
    study = optuna.create_study(direction="maximize")
    known = distributions(joint([space, *map(_space_of, trials)]))
    for trial in trials:
        shown = copy.copy(trial)
        shown.distributions = {name: known[name] for name in trial.distributions}
        if trial.values is not None:
            shown.values = [max(100 * trial.values[0], lowest)]
        levels = trial.intermediate_values.items()
        shown.intermediate_values = {level: max(100 * v, lowest) for level, v in levels}
        study.add_trial(shown)
    return study


def _space_of(trial: FrozenTrial) -> Space:
    """The ranges that a trial was sampled from; choices are the same in all trials of a study."""
    return {
        name: Range(rule.low, rule.high, rule.log)
        for name, rule in trial.distributions.items()
        if isinstance(rule, IntDistribution | FloatDistribution)
    }


def plot_all(
    library: ModuleType, shown: optuna.Study, exact: optuna.Study, space: Space
) -> dict[str, Any]:
    """Optuna's plots that apply, by name.

    Args:
        library: `optuna.visualization` or `optuna.visualization.matplotlib`.
        shown: As `in_percent`.
        exact: The same with all accuracies as they are, for importances.
        space: The parameters that are searched.
    """
    trials = exact.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    varied, enough = _varied(exact, space)
    plots = {"history": library.plot_optimization_history(shown, target_name=ACCURACY)}
    if enough and varied:
        evaluator = FanovaImportanceEvaluator(seed=0)
        plots["importances"] = library.plot_param_importances(
            exact, evaluator, varied, target_name=ACCURACY
        )
    if varied:
        plots["slices"] = library.plot_slice(shown, varied, target_name=ACCURACY)
    ranges = [name for name in varied if isinstance(space[name], Range)][:MOST_CONTOURS]
    if enough and len(ranges) > 1:
        plots["contours"] = library.plot_contour(shown, ranges, target_name=ACCURACY)
    if any(trial.intermediate_values for trial in trials):
        plots["levels"] = library.plot_intermediate_values(shown)
    return plots


def save_images(study: Study, limits: tuple[float, float], recommended: int, folder: Path) -> None:
    """Write Optuna's plots as PNG files; accuracies below the limits are drawn at the lower one."""
    pyplot.switch_backend("agg")  # opens no window
    search, trials = study.search, study.trials()
    shown = in_percent(trials, search.space, lowest=limits[0])
    exact = in_percent(trials, search.space)
    best = shown.trials[recommended]
    clipped = any(t.values and t.values[0] < limits[0] for t in exact.get_trials(deepcopy=False))
    note = f" (below {limits[0]:.3g}%: at the lower edge)" if clipped else ""
    with rc_context(IMAGE_STYLE):  # Optuna changes the style of all later figures
        plots = plot_all(optuna.visualization.matplotlib, shown, exact, search.space)
        for name, axes in plots.items():
            panels, figure = list(np.ravel(axes)), np.ravel(axes)[0].figure
            title = f"{search.method}: {TITLES[name]}"
            figure.suptitle(title if name == "importances" else title + note)
            for panel in panels:
                panel.set_title("")
                panel.set_title("", loc="left")
            finish(name, panels, shown, best)
            figure.savefig(folder / f"{name}.png", facecolor="white")
            pyplot.close(figure)


def finish(name: str, panels: list[Any], shown: optuna.Study, best: FrozenTrial) -> None:
    """Mark the recommended trial in one of Optuna's plots, and make the plot easier to read."""
    axes, (accuracy, *_) = panels[0], best.values
    if name == "history":
        axes.plot(best.number, accuracy, **RECOMMENDED)
        labels = ["complete trial", "best so far", FOUND]
        states = (TrialState.PRUNED, TrialState.FAIL)
        if gone := [trial.number for trial in shown.get_trials(deepcopy=False, states=states)]:
            place = axes.get_xaxis_transform()
            axes.plot(gone, [0.02] * len(gone), "kx", ms=5, transform=place)
            labels.append("stopped early or failed")
        axes.legend([*axes.collections[:1], *axes.get_lines()], labels)
    elif name == "importances":
        axes.get_legend().remove()
        axes.set(xlabel="share of the variance of accuracy", ylabel="")
    elif name == "slices":
        for panel in panels:
            value = best.params[panel.get_xlabel()]
            x = repr(value) if isinstance(value, str) else value
            panel.plot(x, accuracy, label=FOUND, **RECOMMENDED)
        axes.legend(handles=axes.get_lines(), loc="lower left")
    elif name == "contours":
        size = round(len(panels) ** 0.5)  # parameters; a grid of more than one panel
        if size > 1:
            axes.figure.set_size_inches(1 + 2.4 * size, 2.2 * size)
        for panel in panels:
            x, y = (best.params.get(label) for label in (panel.get_xlabel(), panel.get_ylabel()))
            if panel.collections:  # not on the diagonal of the grid
                panel.plot(x, y, **RECOMMENDED | {"color": "C0"})
            panel.label_outer()
    elif name == "levels":
        for line in axes.get_lines():
            ours = line.get_label() == f"Trial{best.number}"
            line.set(marker="", color="C0" if ours else "0.45", lw=2.5 if ours else 0.8)
            line.set(label=FOUND if ours else "_", zorder=3 if ours else 2)
        axes.legend()
        axes.set(xlabel=REMAINING, ylabel=ACCURACY)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda level, _: f"{100 * LEVEL**level:.3g}"))


def interactive_plots(study: Study, limits: tuple[float, float]) -> dict[str, go.Figure]:
    """Optuna's plots as interactive figures, by name."""
    search, trials = study.search, study.trials()
    exact, table = in_percent(trials, search.space), table_of(trials, search.space)
    figures = plot_all(optuna.visualization, exact, exact, search.space)
    texts = dict(zip(table["number"], hover_texts(table, search.space), strict=True))
    for name, figure in figures.items():
        figure.update_layout(template="plotly_white", title=f"{search.method}: {TITLES[name]}")
        if name in ("history", "slices"):
            figure.update_yaxes(range=limits)
            for trace in figure.select_traces({"mode": "markers"}):
                numbers = trace.x if name == "history" else trace.marker.color
                trace.update(hovertext=[texts[n] for n in numbers], hoverinfo="text")
    if "contours" in figures:
        colours = {"zmin": limits[0], "zmax": limits[1]}
        figures["contours"].update_traces(colours, selector={"type": "contour"})
        figures["contours"].update_layout(height=800 if len(search.space) > 2 else 520)
    if "levels" in figures:
        levels = range(0, 1 + max(max(t.intermediate_values, default=0) for t in trials), 5)
        ticks = {"tickvals": [*levels], "ticktext": [f"{100 * LEVEL**k:.3g}" for k in levels]}
        figures["levels"].update_xaxes({"title": REMAINING} | ticks)
        figures["levels"].update_yaxes(title=ACCURACY)
    return figures


def page_of(figures: dict[str, go.Figure]) -> str:
    """A page of figures that needs no network and no other file.

    MLflow shows a page by itself, so it could not load a script beside it.
    """
    parts = ['<!DOCTYPE html><meta charset="utf-8"><title>Search</title>', PAGE_STYLE]
    for place, (name, figure) in enumerate(figures.items()):
        look = {"full_html": False, "div_id": name, "default_height": "520px"}
        parts.append(figure.to_html(include_plotlyjs=place == 0, **look))
        parts.append(f"<p>{CAPTIONS[name]}</p>" if name in CAPTIONS else "")
    return "\n".join(parts)
