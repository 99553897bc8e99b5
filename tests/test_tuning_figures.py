"""What the figures of a search show, for real studies with hand-made trials."""

import re

import optuna
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from optuna.trial import TrialState, create_trial

from experiments.config.space import Choices, Range
from experiments.figures.experiment import COLOURS
from experiments.tuning import choose, figures, fronts
from experiments.tuning.sampling import LEVEL, distributions
from experiments.tuning.storage import FAILURE
from tests.searching import search_of, study_of

# prune_rate, retrain_epochs, accuracy, epochs: the default, then trials around it.
TRIALS = [
    *((0.2, 10, 0.90, 120), (0.5, 1, 0.70, 14), (0.3, 4, 0.88, 40), (0.1, 20, 0.92, 450)),
    *((0.4, 8, 0.89, 50), (0.15, 15, 0.918, 250), (0.6, 2, 0.75, 16), (0.25, 6, 0.89, 60)),
    *((0.05, 12, 0.10, 560), (0.35, 3, 0.86, 30)),
]


def add(study, row, state=TrialState.COMPLETE, reported=(), **more):
    """A trial as a worker would leave it."""
    rate, epochs, accuracy, total = row
    known = distributions(study.search.space)
    params = {"prune_rate": rate, "retrain_epochs": epochs} | more
    if "retrain_lr" in known:
        params.setdefault("retrain_lr", 0.0001)
    values = [accuracy, total][: len(study.optuna.directions)]
    result = {"valid_accuracy": accuracy, "total_epochs": total, "retraining_epochs": total - 10}
    result |= {"rounds": 11, "sparsity": 0.9, "seconds": 1.0}
    attrs = {FAILURE: "it diverged"} if state == TrialState.FAIL else {choose.RESULT: result}
    study.optuna.add_trial(
        create_trial(
            state=state,
            params=params,
            distributions={name: known[name] for name in params},
            values=values if state == TrialState.COMPLETE else None,
            intermediate_values=dict(enumerate(reported)),
            user_attrs=attrs,
        )
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("storage")


@pytest.fixture(scope="module")
def pareto(folder):
    study = study_of(search_of(study="pareto"), folder)
    for row in TRIALS:
        add(study, row)
    return study


@pytest.fixture(scope="module")
def single(folder):
    """With a criterion; one trial was stopped early, one failed, one was lost, and one waits."""
    asked = {"objective": "accuracy", "search": "criterion=magnitude/random", "trials": 13}
    study = study_of(search_of("keep", study="single", **asked), folder)
    for place, row in enumerate(TRIALS):
        add(study, row, reported=(0.95, 0.9, row[2]), criterion=("magnitude", "random")[place % 2])
    add(study, (0.3, 5, 0.97, 20), TrialState.PRUNED, (0.95, 0.8), criterion="magnitude")
    add(study, (0.3, 5, 0.0, 0), TrialState.FAIL, criterion="magnitude")
    study.optuna.add_trial(create_trial(state=TrialState.FAIL))  # without a reason: lost
    study.enqueue_missing()
    return study


def trials(study, **recommended):
    """The trials of a study, as of each of these methods."""
    return fronts.trials_of(dict.fromkeys(recommended, study.table()), recommended)


def points_of(panel):
    """The points of the lines of a panel, by colour and marker."""
    return {
        (to_hex(line.get_color()), line.get_marker()): list(
            zip(*(map(float, data) for data in line.get_data()), strict=True)
        )
        for line in panel.get_lines()
    }


def words_of(figure):
    """All the text of a figure."""
    (legend,) = figure.legends
    words = [figure.get_suptitle(), legend.get_title().get_text()]
    words += [text.get_text() for text in legend.get_texts()]
    words += [word for panel in figure.axes for word in (panel.get_xlabel(), panel.get_ylabel())]
    return "\n".join(words)


def test_a_front_has_the_numbers_of_its_study(pareto):
    one = trials(pareto, lottery=5)["lottery"]
    front = choose.front(one)
    assert list(front["total_epochs"]) == [14, 16, 30, 40, 50, 120, 250, 450]
    assert list(front["accuracy"]) == pytest.approx([70, 75, 86, 88, 89, 90, 91.8, 92])
    assert one.loc[one["default"], "number"].item() == 0
    assert one.loc[one["recommended"], "number"].item() == 5
    assert fronts.describe(one, pareto.search) == "trial 5, prune_rate=0.15, retrain_epochs=15"
    assert fronts.tolerated(one, pareto.search) == pytest.approx((91.5, 92))


def test_a_front_shows_the_default_the_recommended_trial_and_the_tolerance(pareto):
    figure = fronts.draw_fronts(trials(pareto, lottery=5), [pareto.search])
    (panel,) = figure.axes
    points, colour = points_of(panel), COLOURS[0].lower()
    assert (60, 89) in points[colour, "o"]
    assert points[colour, "*"] == [(250, pytest.approx(91.8))]
    assert points[colour, "D"] == [(120, 90)]
    assert points[colour, "v"] == [(14, 0.012), (16, 0.012), (560, 0.012)]
    (band,) = panel.patches
    assert (band.get_y(), band.get_height()) == pytest.approx((91.5, 0.5))
    words = words_of(figure)
    assert "lottery: accuracy against cost at 90% sparsity" in words
    assert "the cheapest trial within 0.5 points of the best" in words
    assert "epochs of training" in words
    assert "validation accuracy (%)" in words


def test_fronts_show_the_recommended_trial_of_every_method(pareto):
    studies = trials(pareto, keep=0, lottery=5)
    figure = fronts.draw_fronts(studies, [pareto.search])
    words = words_of(figure)
    assert "Accuracy against cost" in words
    assert "keep: trial 0, prune_rate=0.2, retrain_epochs=10" in words
    assert "lottery: trial 5, prune_rate=0.15, retrain_epochs=15" in words
    assert not figure.axes[0].patches  # the tolerances of several methods would overlap
    page = fronts.interactive_fronts(studies, [pareto.search])
    stars = {trace.name: trace for trace in page.data if "found" in trace.name}
    assert stars.keys() == {"keep, found", "lottery, found"}
    assert list(stars["lottery, found"].x) == [250]
    hover = stars["lottery, found"].hovertext[0]
    assert hover.startswith("<b>trial 5</b>, complete<br>prune_rate = 0.15<br>retrain_epochs = 15")


def test_with_a_budget_methods_are_compared_over_each_parameter(single):
    figure = fronts.draw_fronts(trials(single, keep=3), [single.search])
    names = ["prune_rate", "retrain_epochs", "retrain_lr", "criterion"]
    assert [panel.get_xlabel() for panel in figure.axes] == ["trial (best so far)", *names]
    (best,) = figure.axes[0].get_lines()
    assert list(best.get_ydata()) == pytest.approx([90, 90, 90, *[92] * 7])
    assert points_of(figure.axes[1])[COLOURS[2].lower(), "*"] == [(0.1, 92)]
    assert "within 110 epochs of retraining" in words_of(figure)
    page = fronts.interactive_fronts(trials(single, keep=3), [single.search])
    axes = [page.layout[f"xaxis{number}"] for number in ("", 2, 3, 4)]
    assert [axis.title.text for axis in axes] == names
    assert [axis.type for axis in axes] == ["log", "log", "log", None]


def test_methods_that_vary_different_parameters_share_one_figure(pareto, single):
    tables = {"lottery": pareto.table(), "keep": single.table()}
    studies = fronts.trials_of(tables, {"lottery": 5, "keep": 3})
    searches = [pareto.search, single.search]
    figure = fronts.draw_parameters(studies, searches)
    names = ["prune_rate", "retrain_epochs", "retrain_lr", "criterion"]
    assert [panel.get_xlabel() for panel in figure.axes][1:] == names
    colours = [{colour for colour, _ in points_of(panel)} for panel in figure.axes[1:]]
    both, keep = {COLOURS[0].lower(), COLOURS[2].lower()}, {COLOURS[2].lower()}
    assert colours == [both, both, keep, keep]
    words = words_of(figure)
    assert "lottery: trial 5, prune_rate=0.15, retrain_epochs=15\n" in words
    page = fronts.interactive_fronts(studies, searches)
    assert "retrain_lr" not in page.data[0].hovertext[0]


@pytest.mark.parametrize("text", ["retrain_lr=0.001..0.002:log", "retrain_lr=0.001/0.002"])
def test_a_shared_panel_shows_the_default_of_every_method(folder, text):
    asked = {"study": f"shared {text}", "search": text}
    studies = [study_of(search_of(method, **asked), folder) for method in ("keep", "lottery")]
    for study in studies:
        add(study, TRIALS[0], retrain_lr=study.search.baseline["retrain_lr"])
    tables = {study.search.method: study.table() for study in studies}
    shown = fronts.trials_of(tables, {"keep": 0, "lottery": 0})
    panel = fronts.draw_parameters(shown, [study.search for study in studies]).axes[-1]
    assert panel.get_xlabel() == "retrain_lr"
    (low, high), points = panel.get_xlim(), points_of(panel)
    for place in (0, 2):  # colours of lottery and keep
        ((x, y),) = points[COLOURS[place].lower(), "*"]
        assert (low < x < high, y) == (True, 90)


def test_a_page_has_the_importance_of_each_parameter(pareto):
    studies = trials(pareto, lottery=5)
    drawn = figures.page_drawings(studies, {"lottery": pareto})
    assert list(drawn) == ["fronts", "parameters", "importances"]
    shares = figures.importances_of(pareto)
    assert shares.keys() == {"prune_rate", "retrain_epochs"}
    (axes,) = fronts.draw_importances({"lottery": shares}).axes
    assert [bar.get_width() for bar in axes.patches] == list(shares.values())
    assert [tick.get_text() for tick in axes.get_yticklabels()] == list(shares)


def test_categories_stand_side_by_side_and_their_points_are_spread():
    rule = Choices(("magnitude", "random"))
    table = pd.DataFrame({"number": [0, 1, 2], "criterion": ["magnitude", "random", "magnitude"]})
    places = fronts.positions(table, "criterion", rule)
    assert list(places.round()) == [0, 1, 0]
    assert places[0] != places[2]


@pytest.mark.parametrize(
    ("low", "high", "characters", "ticks"),
    [
        (1, 20, 14, [1, 2, 5, 10, 20]),
        (0.0005, 0.05, 14, [0.001, 0.01]),
        (0.0005, 0.05, 40, [0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05]),
        (6, 9, 14, [6, 9]),
    ],
)
def test_ticks_are_round_and_few_enough_to_read(low, high, characters, ticks):
    assert fronts.log_ticks(Range(low, high, log=True), characters) == ticks


def test_a_copy_in_percent_clips_low_accuracies_and_leaves_the_study_alone(single):
    before = [trial.values for trial in single.trials()]
    copied = figures.in_percent(single.trials(), single.search.space, lowest=80)
    assert [trial.number for trial in copied.trials] == list(range(len(before)))
    assert copied.trials[3].value == pytest.approx(92)
    assert copied.trials[8].value == 80
    assert list(copied.trials[10].intermediate_values.values()) == pytest.approx([95, 80])
    assert copied.best_trial.number == 3  # not the one that was stopped early
    assert [trial.values for trial in single.trials()] == before


def test_a_study_that_was_continued_with_wider_ranges_is_reported_by_the_narrower_search(folder):
    asked = {"study": "continued", "search": "criterion=magnitude/snip"}
    narrow = study_of(search_of(**asked), folder)
    for row in TRIALS:
        add(narrow, row, criterion="snip")
    text = f"{asked['search']},retrain_epochs=1..40:log"
    wide = study_of(search_of(**asked | {"search": text}), folder)
    add(wide, (0.2, 40, 0.93, 450), criterion="magnitude")
    copied = figures.in_percent(narrow.trials(), narrow.search.space)
    last = copied.trials[-1]
    assert (last.params["retrain_epochs"], last.value) == (40, pytest.approx(93))
    whole = distributions(wide.search.space)
    assert all(trial.distributions == whole for trial in copied.trials)
    assert figures.importances_of(narrow) == figures.importances_of(wide)


def plots_of(study):
    """Optuna's interactive plots of a study, by name."""
    return figures.interactive_plots(study, (80.0, 95.0))


def test_importances_find_the_parameter_that_decides(folder):
    study = study_of(search_of(study="decided"), folder)
    for place in range(20):
        rate, epochs = 0.05 + place * 7 % 20 / 40, 1 + place
        add(study, (rate, epochs, 0.5 + epochs / 100, 10 + round(300 * rate)))
    (bars,) = plots_of(study)["importances"].data
    shares = dict(zip(bars.y, bars.x, strict=True))
    assert shares["retrain_epochs"] > 0.8
    assert sum(shares.values()) == pytest.approx(1)


def test_equal_trials_have_no_importances_slices_or_contours(folder):
    study = study_of(search_of(study="equal"), folder)
    for _ in range(figures.ENOUGH):
        add(study, TRIALS[0])
    assert list(plots_of(study)) == ["history"]


@pytest.mark.parametrize("count", [1, 2, figures.ENOUGH])
def test_a_study_of_few_trials_has_fewer_figures(folder, count):
    study = study_of(search_of(study=f"few {count}"), folder)
    for row in TRIALS[:count]:
        add(study, row)
    names = {1: ["history"], 2: ["history", "slices"]}
    everything = ["history", "importances", "slices", "contours"]
    assert list(plots_of(study)) == names.get(count, everything)


def test_interactive_plots_show_the_parameters_of_each_trial(single):
    plots = plots_of(single)
    points = plots["history"].data[0]
    assert list(points.x) == list(range(10))
    assert points.hovertext[3].startswith("<b>trial 3</b>, complete<br>prune_rate = 0.1")
    assert set(plots["slices"].data[0].hovertext) == set(points.hovertext)
    levels = plots["levels"]
    assert len(levels.data) == 11  # without the trials that failed
    assert levels.data[10].y == pytest.approx((95, 80))
    assert levels.layout.xaxis.ticktext[0] == "100"
    assert float(levels.layout.xaxis.ticktext[-1]) == pytest.approx(100 * LEVEL**0)


def test_images_mark_the_recommended_trial_and_those_that_did_not_complete(single):
    shown = figures.in_percent(single.trials(), single.search.space, lowest=80)
    axes = optuna.visualization.matplotlib.plot_optimization_history(shown)
    try:
        figures.finish("history", [axes], shown, shown.trials[3])
        star, crosses = axes.get_lines()[-2:]
        assert list(star.get_xdata()) == [3]
        assert list(star.get_ydata()) == pytest.approx([92])
        assert list(crosses.get_xdata()) == [10, 11, 12]
        assert "stopped early or failed" in [t.get_text() for t in axes.get_legend().get_texts()]
    finally:
        figures.pyplot.close(axes.figure)


def test_all_figures_are_written_and_pages_need_no_network(single, tmp_path):
    before = dict(figures.pyplot.rcParams)
    figures.save_study(single, 3, tmp_path)
    assert dict(figures.pyplot.rcParams) == before  # Optuna changes the style
    assert figures.pyplot.get_fignums() == []
    names = ["contours", "history", "importances", "levels", "slices"]
    assert sorted(path.stem for path in (tmp_path / "plots").glob("*.png")) == names
    page = (tmp_path / "interactive.html").read_text(encoding="utf-8")
    assert re.findall(r'<div id="(\w+)" class="plotly-graph-div"', page) == [
        *("history", "importances", "slices", "contours", "levels"),
    ]
    assert not re.findall(r"<(?:script|link)[^>]+(?:src|href)=", page)
    saved = figures.save_fronts(trials(single, keep=3), [single.search], tmp_path)
    assert [path.name for path in saved] == ["fronts.png", "fronts.html"]
    assert all(path.stat().st_size > 10_000 for path in saved)


def test_a_study_with_two_objectives_has_a_front_of_its_own(pareto, tmp_path):
    figures.save_study(pareto, 5, tmp_path)
    names = ["contours", "front", "history", "importances", "slices"]
    assert sorted(path.stem for path in (tmp_path / "plots").glob("*.png")) == names
    assert '<div id="front"' in (tmp_path / "interactive.html").read_text(encoding="utf-8")
