"""What the figures of a search show, on real studies whose trials are made by hand."""

import re

import optuna
import pandas as pd
import pytest
from experiments.tuning.table import RESULT
from matplotlib.colors import to_hex
from optuna.trial import TrialState, create_trial

from experiments.config.space import Choices, Range
from experiments.figures.experiment import COLOURS
from experiments.tuning import axes, figures, findings, fronts, interactive, pictures
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
    values = [accuracy, total][: len(study.optuna.directions)]
    result = {"valid_accuracy": accuracy, "total_epochs": total, "retraining_epochs": total - 10}
    result |= {"rounds": 11, "sparsity": 0.9, "seconds": 1.0}
    notes = {FAILURE: "it diverged"} if state == TrialState.FAIL else {RESULT: result}
    study.optuna.add_trial(
        create_trial(
            state=state,
            params=params,
            distributions={name: known[name] for name in params},
            values=values if state == TrialState.COMPLETE else None,
            intermediate_values=dict(enumerate(reported)),
            user_attrs=notes,
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
    """With a criterion; trials were stopped early, failed and lost, and one waits."""
    asked = {"objective": "accuracy", "search": "criterion=magnitude/random", "trials": 13}
    study = study_of(search_of("keep", study="single", **asked), folder)
    for place, row in enumerate(TRIALS):
        add(study, row, reported=(0.95, 0.9, row[2]), criterion=("magnitude", "random")[place % 2])
    add(study, (0.3, 5, 0.97, 20), TrialState.PRUNED, (0.95, 0.8), criterion="magnitude")
    add(study, (0.3, 5, 0.0, 0), TrialState.FAIL, criterion="magnitude")
    study.optuna.add_trial(create_trial(state=TrialState.FAIL))  # without a reason: lost
    study.fill_up()
    return study


def drawn(panel):
    """The points of the lines of a panel, by colour and marker."""
    return {
        (to_hex(line.get_color()), line.get_marker()): list(
            zip(*(map(float, data) for data in line.get_data()), strict=True)
        )
        for line in panel.get_lines()
    }


def words(figure):
    """All that a reader reads."""
    (legend,) = figure.legends or [None]
    told = [figure.get_suptitle(), legend.get_title().get_text() if legend else ""]
    told += [text.get_text() for text in legend.get_texts()] if legend else []
    told += [word for panel in figure.axes for word in (panel.get_xlabel(), panel.get_ylabel())]
    return "\n".join(told)


def test_the_numbers_of_a_front_are_those_of_its_study(pareto):
    one = fronts.found_in({"lottery": pareto.table()}, {"lottery": 5})["lottery"]
    assert list(one.front["total_epochs"]) == [14, 16, 30, 40, 50, 120, 250, 450]
    assert list(one.front["accuracy"]) == pytest.approx([70, 75, 86, 88, 89, 90, 91.8, 92])
    assert list(one.best) == pytest.approx([90, 90, 90, *[92] * 7])
    assert [one.default["number"].item(), one.chosen["number"].item()] == [0, 5]
    assert one.wanted(pareto.search) == "trial 5, prune_rate=0.15, retrain_epochs=15"
    assert fronts.tolerated(one, pareto.search) == pytest.approx((91.5, 92))


def test_a_front_is_drawn_as_stairs_with_the_default_the_recommended_and_the_tolerance(pareto):
    figure = fronts.draw_fronts({"lottery": pareto.table()}, {"lottery": 5}, pareto.search)
    (panel,) = figure.axes
    points = drawn(panel)
    assert (60, 89) in points[COLOURS[0].lower(), "o"]
    assert points[COLOURS[0].lower(), "*"] == [(250, pytest.approx(91.8))]
    assert points[COLOURS[0].lower(), "D"] == [(120, 90)]
    assert points[COLOURS[0].lower(), "v"] == [(14, 0.012), (16, 0.012), (560, 0.012)]
    (band,) = panel.patches
    assert (band.get_y(), band.get_height()) == pytest.approx((91.5, 0.5))
    told = words(figure)
    assert "lottery: what accuracy costs, to have 90% of the weights gone" in told
    assert "the cheapest trial within 0.5 points of the best" in told
    assert "epochs of training" in told
    assert "validation accuracy (%)" in told


def test_fronts_show_every_method_of_a_search_and_what_it_wants(pareto):
    tables = {"keep": pareto.table(), "lottery": pareto.table()}
    chosen = {"keep": 0, "lottery": 5}
    figure = fronts.draw_fronts(tables, chosen, pareto.search)
    told = words(figure)
    assert "What accuracy costs" in told
    assert "keep: trial 0, prune_rate=0.2, retrain_epochs=10" in told
    assert "lottery: trial 5, prune_rate=0.15, retrain_epochs=15" in told
    assert not figure.axes[0].patches  # a tolerance of each would hide the others'
    page = fronts.interactive_fronts(tables, chosen, pareto.search)
    recommended = {trace.name: trace for trace in page.data if "recommended" in trace.name}
    assert recommended.keys() == {"keep: recommended", "lottery: recommended"}
    assert recommended["lottery: recommended"].x == (250,)
    told = recommended["lottery: recommended"].hovertext[0]
    assert told.startswith("<b>trial 5</b>, complete<br>prune_rate = 0.15<br>retrain_epochs = 15")


def test_without_costs_methods_are_compared_over_each_parameter(single):
    figure = fronts.draw_fronts({"keep": single.table()}, {"keep": 3}, single.search)
    assert [panel.get_xlabel() for panel in figure.axes] == [
        *("trial (best so far)", "prune_rate", "retrain_epochs", "criterion"),
    ]
    assert drawn(figure.axes[1])[COLOURS[2].lower(), "*"] == [(0.1, 92)]
    assert "within 110 epochs of retraining" in words(figure)
    page = fronts.interactive_fronts({"keep": single.table()}, {"keep": 3}, single.search)
    assert page.layout.xaxis3.ticktext == ("magnitude", "random")


def test_no_trial_is_lost_from_the_history(single):
    rows = findings.history_of(single.table()).set_index("number")
    assert list(rows["state"])[-3:] == ["stopped early", "failed", "lost"]
    assert rows["accuracy"][10] == pytest.approx(97)
    assert rows["accuracy"][11:].isna().all()
    assert list(rows["best"])[-1] == pytest.approx(92)  # not that of the one that was stopped early


def test_the_history_marks_those_that_failed_and_those_that_were_stopped_early(single):
    found = findings.findings(single, 3)
    figure = figures.draw_history(found)
    points = drawn(figure.axes[0])
    assert points[figures.RED.lower(), "x"] == [(11, 0.03), (12, 0.03)]
    assert points[figures.STOPPED, "o"] == [(10, pytest.approx(97))]
    assert figure.axes[0].get_ylim()[1] >= 97
    assert "stopped early (with more weights left)" in words(figure)
    page = interactive.history(found)
    assert {trace.name for trace in page.data} > {"complete", "stopped early", "failed"}
    (failed,) = (trace for trace in page.data if trace.name == "failed")
    assert failed.hovertext[0].endswith("it diverged")


def test_importances_find_the_parameter_that_decides(folder):
    study = study_of(search_of(study="decided"), folder)
    for place in range(20):
        rate, epochs = 0.05 + place * 7 % 20 / 40, 1 + place
        add(study, (rate, epochs, 0.5 + epochs / 100, 10 + round(300 * rate)))
    shares = findings.importances_of(study.optuna, list(study.search.space))
    assert list(shares.columns) == ["validation accuracy", "epochs of training"]
    assert shares.index[-1] == "retrain_epochs"
    assert shares["validation accuracy"]["retrain_epochs"] > 0.8
    assert shares["epochs of training"]["prune_rate"] > 0.8
    assert ((shares >= 0) & (shares.sum() <= 1)).all(axis=None)


def test_importances_are_left_out_where_all_trials_are_alike(folder):
    study = study_of(search_of(study="alike"), folder)
    for _ in range(findings.ENOUGH):
        add(study, TRIALS[0])
    found = findings.findings(study, 0)
    assert found.importances.shape == (2, 0)
    assert found.pairs == []
    assert list(figures.draw(found)) == ["front", "history", "slices"]


@pytest.mark.parametrize("count", [1, 2, 3, findings.ENOUGH])
def test_a_study_of_few_trials_has_fewer_figures(folder, count):
    study = study_of(search_of(study=f"few {count}"), folder)
    for row in TRIALS[:count]:
        add(study, row)
    found = findings.findings(study, 0)
    names = ["front", "history", "slices"]
    if count == findings.ENOUGH:
        names = ["front", "history", "importances", "slices", "contours"]
    assert list(figures.draw(found)) == list(interactive.interactive(found)) == names


def test_contours_need_trials_that_span_a_plane(pareto):
    assert findings.findings(pareto, 5).pairs == [("prune_rate", "retrain_epochs")]
    rows = pareto.table()
    assert findings.pairs_of(rows.assign(retrain_epochs=3), pareto.search) == []
    one_line = rows.assign(prune_rate=0.05 + 0.1 * rows["number"] / 10, retrain_epochs=2)
    assert findings.pairs_of(one_line, pareto.search) == []


def test_levels_are_what_trials_reported_at_equal_sparsity(single):
    levels = findings.findings(single, 3).levels
    rows = levels[levels["number"] == 10]
    assert list(rows["state"]) == ["stopped early"] * 2
    assert list(rows["remaining"]) == pytest.approx([100, 100 * LEVEL])
    assert list(rows["accuracy"]) == pytest.approx([95, 80])
    assert set(levels["number"]) == set(range(11))  # not of one that failed


def test_words_stand_side_by_side_and_what_was_searched_on_a_log_scale_is_shown_on_one():
    rule = Choices(("magnitude", "random"))
    table = pd.DataFrame({"number": [0, 1, 2], "criterion": ["magnitude", "random", "magnitude"]})
    places = axes.positions(table, "criterion", rule)
    assert list(places.round()) == [0, 1, 0]
    assert places[0] != places[2]
    assert axes.page_axis(Range(1, 20, log=True), "epochs", 14)["ticktext"] == [
        *("1", "2", "5", "10", "20"),
    ]


@pytest.mark.parametrize(
    ("low", "high", "letters", "ticks"),
    [
        (1, 20, 14, [1, 2, 5, 10, 20]),
        (0.0005, 0.05, 14, [0.001, 0.01]),
        (0.0005, 0.05, 40, [0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05]),
        (6, 9, 14, [6, 9]),
    ],
)
def test_ticks_are_round_and_few_enough_to_be_read(low, high, letters, ticks):
    assert axes.log_ticks(low, high, letters) == ticks


def test_all_figures_are_written_and_pages_need_no_network(single, tmp_path):
    pictures.save_study(single, 3, tmp_path)
    names = ["contours", "history", "importances", "levels", "slices"]
    assert sorted(path.stem for path in (tmp_path / "plots").glob("*.png")) == names
    page = (tmp_path / "interactive.html").read_text(encoding="utf-8")
    assert re.findall(r'<div id="(\w+)" class="plotly-graph-div"', page) == [
        *("history", "importances", "slices", "contours", "levels"),
    ]
    assert not re.findall(r"<(?:script|link)[^>]+(?:src|href)=", page)
    saved = pictures.save_search({"keep": single.table()}, {"keep": 3}, single.search, tmp_path)
    assert [path.name for path in saved] == ["fronts.png", "fronts.html"]
    assert all(path.stat().st_size > 10_000 for path in saved)


def test_the_study_itself_is_not_touched(single):
    before = [trial.state for trial in single.trials()]
    found = findings.findings(single, 3)
    found.optuna.add_trial(create_trial(state=TrialState.FAIL))
    assert [trial.state for trial in single.trials()] == before
    assert isinstance(found.optuna, optuna.Study)
