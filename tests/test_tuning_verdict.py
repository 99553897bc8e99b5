"""Verdicts for made-up results, and the page that shows them."""

import re
import shlex
from types import SimpleNamespace

import pandas as pd
import pytest

from experiments.config.parameters import default_text
from experiments.config.tune import TuneConfig, methods_of
from experiments.tune import recommend_all
from experiments.tuning.confirm import Recommendation
from experiments.tuning.figures import page_drawings
from experiments.tuning.fronts import trials_of
from experiments.tuning.page import HIDDEN, render_page
from experiments.tuning.report import describe_search, summarize
from experiments.tuning.verdict import advised, edge_warning, headline, row_of, settings_table
from tests.searching import search_of, study_of
from tests.test_tuning_choose import table
from tests.test_tuning_figures import TRIALS, add

FOUND = {"prune_rate": 0.5, "retrain_epochs": 20}


def recommended(params=FOUND, number=1, default=0, **asked):
    study = SimpleNamespace(search=search_of(**asked))
    return Recommendation(study, number, params, "run", default)


def fresh_results(*pairs):
    """Test accuracy is validation accuracy minus 0.01."""
    rows = [
        {"method": "lottery", "setting": setting, "trial": trial, "seed": 1000 + seed}
        | {"run_id": "0" * 32, "valid_accuracy": value, "test_accuracy": value - 0.01}
        | {"dense_test_accuracy": 0.95}
        for seed, pair in enumerate(pairs)
        for setting, trial, value in zip(("found", "default"), (1, 0), pair, strict=True)
        if value is not None
    ]
    names = ["method", "setting", "trial", "seed", "run_id", "valid_accuracy", "test_accuracy"]
    return pd.DataFrame(rows, columns=[*names, "dense_test_accuracy"])


def row(trials, fresh=(), **asked):
    """The row of a default and of a trial, each accuracy and epochs."""
    rows = table(*trials).assign(rounds=4, sparsity=0.9)
    return row_of(rows, recommended(**asked), fresh_results(*fresh))


LIMITED = {"objective": "accuracy", "budget_epochs": 200}
STEADY, MIXED = [(0.93, 0.92), (0.945, 0.93), (0.92, 0.91)], [(0.95, 0.92), (0.92, 0.93)]
VERDICTS = [
    # of the trials alone, without fresh seeds
    (((0.9, 100), (0.91, 200)), (), {}, "better"),
    (((0.9, 100), (0.9, 200)), (), {}, "not better"),
    (((0.9, 100), (0.896, 50)), (), {}, "better"),  # cheaper, within 0.5 points
    (((0.9, 100), (0.894, 50)), (), {}, "not better"),
    (((0.9, 100), (0.896, 50)), (), {"tolerance": 0.001}, "not better"),
    (((0.9, 100), (0.896, 50)), (), LIMITED, "not better"),
    (((0.9, 100), (0.901, 150)), (), LIMITED, "better"),
    # fresh seeds decide, whatever the trials were
    (((0.9, 100), (0.89, 200)), STEADY, {}, "better"),
    (((0.9, 100), (0.95, 200)), MIXED, {}, "not better"),  # the interval contains 0
    (((0.9, 100), (0.95, 50)), MIXED, {}, "better"),  # cheaper, and no less accurate
    (((0.9, 100), (0.95, 50)), MIXED, LIMITED, "not better"),
    (((0.9, 100), (0.95, 50)), [(0.90, 0.92)] * 3, {}, "not better"),
    (((0.9, 100), (0.95, 200)), [(0.93, 0.92)], {}, "better"),  # one seed has no interval
]


@pytest.mark.parametrize(("trials", "fresh", "asked", "expected"), VERDICTS)
def test_a_setting_is_better_than_the_default_by_the_rule_of_the_objective(
    trials, fresh, asked, expected
):
    found = row(trials, fresh, **asked)
    assert found["verdict"] == expected
    text = headline(found, recommended(**asked))
    assert text.startswith(
        "recommended: trial 1" if expected == "better" else "nothing better than the default was"
    )
    params = advised(found, recommended(**asked))
    assert params == (FOUND if expected == "better" else {"prune_rate": 0.2, "retrain_epochs": 10})


def test_the_same_difference_in_each_seed_has_no_interval():
    found = row(((0.9, 100), (0.95, 200)), [(0.93, 0.92), (0.94, 0.93), (0.92, 0.91)])
    low, high = (found[f"valid_accuracy_difference_{end}"] for end in ("low", "high"))
    assert low != low
    assert high != high
    assert found["verdict"] == "better"
    text = headline(found, recommended())
    assert "validation accuracy +1.00 points in each seed, test accuracy +1.00" in text


def test_a_cheaper_setting_whose_interval_allows_a_loss_says_so():
    doubt = "A loss of more than 0.5 points is not excluded."
    cheaper = row(((0.9, 100), (0.95, 50)), MIXED)
    assert headline(cheaper, recommended()).endswith(doubt)
    higher = row(((0.9, 100), (0.89, 200)), STEADY)
    assert doubt not in headline(higher, recommended())


def test_differences_are_paired_by_seed_with_their_interval():
    fresh = [(0.93, 0.92), (0.95, 0.92), (0.94, None)]
    found = row(((0.9, 100), (0.91, 200)), fresh)
    assert found["paired_seeds"] == 2
    assert found["valid_accuracy_difference"] == pytest.approx(0.02)
    half = 12.7062 * 0.01  # Student's t with one degree of freedom, times the standard error
    assert found["valid_accuracy_difference_low"] == pytest.approx(0.02 - half, abs=1e-5)
    assert found["test_accuracy_difference_high"] == pytest.approx(0.02 + half, abs=1e-5)
    assert found["fresh_valid_accuracy"] == pytest.approx(0.94)
    assert found["default_fresh_test_accuracy"] == pytest.approx(0.91)
    assert (found["fresh_seeds"], found["default_total_epochs"]) == (3, 100)


def test_a_default_that_is_the_best_is_not_compared_with_itself():
    default = recommended({"prune_rate": 0.2, "retrain_epochs": 10}, number=0)
    assert list(default.settings) == ["default"]
    rows = table((0.9, 100), (0.8, 200)).assign(rounds=4, sparsity=0.9)
    found = row_of(rows, default, fresh_results((None, 0.92), (None, 0.93)))
    assert found["verdict"] == "default"
    assert "valid_accuracy_difference" not in found
    assert found["fresh_valid_accuracy"] == pytest.approx(0.925)
    assert headline(found, default).startswith(
        "nothing better than the default was found: the default itself is the cheapest trial"
    )


def test_a_default_that_is_not_complete_is_not_compared():
    rows = table((None, None, "f"), (0.9, 200)).assign(rounds=4, sparsity=0.9)
    found = recommended(default=None)
    one = row_of(rows, found, fresh_results((0.9, None)))
    assert one["verdict"] == "unknown"
    assert "The trial of the default is not complete" in headline(one, found)
    assert settings_table([found], [one])["setting"].tolist() == ["recommended"]


def test_a_value_at_the_edge_of_its_range_is_a_warning_that_says_how_to_widen_it():
    asked = {"search": "lr=0.001..0.1:log"}
    warning = edge_warning(recommended(FOUND | {"lr": 0.01}, **asked))
    assert warning == (
        "retrain_epochs=20 is the largest value of its range: continue the study with "
        "search=lr=0.001..0.1:log,retrain_epochs=1..40:log and a larger number of trials"
    )
    close = edge_warning(recommended({"prune_rate": 0.59, "retrain_epochs": 1}))
    assert close.startswith("prune_rate=0.59 is close to the largest value of its range: ")
    assert edge_warning(recommended({"prune_rate": 0.5, "retrain_epochs": 1})) == ""


EDGES = {"prune_rate": 0.6, "retrain_epochs": 20}


@pytest.mark.parametrize(
    ("method", "more"), [("keep", ("retrain_lr",)), ("lottery", ()), ("random", ())]
)
def test_the_ranges_that_a_warning_advises_continue_the_study(method, more, tmp_path):
    asked = {"reinit": "all", "lr": 0.002, "search": "batch_size=20..120"}
    begun = {name: study_of(search_of(name, **asked), tmp_path) for name in methods_of("all")}
    for study in begun.values():
        study.check_settings()
    search = begun[method].search
    params = search.baseline | EDGES | {name: search.space[name].high for name in more}
    warning = edge_warning(Recommendation(begun[method], 1, params, "run", 0))
    places, _, advice = warning.partition(": ")
    assert places.count(" is the largest value of its range") == len(EDGES) + len(more)
    words = [word for word in shlex.split(advice) if "=" in word]
    advised_params = dict(word.split("=", 1) for word in words)
    assert list(advised_params) == ["reinit", "search"]
    for name in methods_of(advised_params["reinit"]):
        again = study_of(search_of(name, **asked | advised_params), tmp_path)
        again.check_settings()
    assert name == method
    for edge in (*EDGES, *more):
        assert again.search.space[edge].high > search.space[edge].high


def test_advised_ranges_leave_out_what_the_method_does_not_search(tmp_path):
    asked = {"reinit": "keep,rewind", "search": "rewind_epoch=0..5"}
    begun = study_of(search_of("keep", **asked), tmp_path)
    begun.check_settings()
    params = begun.search.baseline | {"retrain_epochs": 20}
    warning = edge_warning(Recommendation(begun, 1, params, "run", 0))
    assert "with reinit=keep search=retrain_epochs=1..40:log and a larger" in warning
    advice = {"reinit": "keep", "search": "retrain_epochs=1..40:log"}
    study_of(search_of("keep", **asked | advice), tmp_path).check_settings()


def test_a_command_reports_a_study_with_the_ranges_that_another_one_widened(tmp_path):
    narrow = study_of(search_of(search="lr=0.001..0.1:log"), tmp_path)
    narrow.check_settings()
    text = "lr=0.001..0.1:log,retrain_epochs=1..40:log"
    wide = study_of(search_of(search=text), tmp_path)
    wide.check_settings()
    add(wide, TRIALS[0], lr=0.01)
    add(wide, (0.5, 39, 0.99, 20), lr=0.01)
    jobs = {"lottery": SimpleNamespace(study_run="run")}
    (found,) = recommend_all({"lottery": narrow}, jobs, {"lottery"})
    assert found.search.space == wide.search.space
    assert (found.search.name, found.search.baseline) == (narrow.search.name, wide.search.baseline)
    warning = edge_warning(found)
    assert warning.startswith("retrain_epochs=39 is close to the largest value of its range: ")
    again = study_of(search_of(search=re.search(r"search=(\S+)", warning)[1]), tmp_path)
    again.check_settings()
    assert again.search.space["retrain_epochs"].high == 80


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    study = study_of(search_of(), tmp_path_factory.mktemp("storage"))
    for one in TRIALS:
        add(study, one)
    return study


@pytest.mark.parametrize("fresh", [STEADY, [], STEADY[:1]], ids=["three", "none", "one"])
def test_the_page_has_verdict_tables_figures_and_command(studies, fresh):
    found = Recommendation(studies, 5, studies.trials()[5].params, "run", 0)
    results = fresh_results(*fresh).replace({"trial": {1: 5}})
    one, trials = row_of(studies.table(), found, results), {"lottery": studies.table()}
    drawings = page_drawings(trials_of(trials, {"lottery": 5}), {"lottery": studies})
    html = render_page("tune <b>", [found], [one], trials, results, drawings)
    text = re.sub(r"\s+", " ", html)
    assert "How cheaply can 90% of lenet_300_100 on digits be pruned?" in text
    assert headline(one, found).partition(": ")[2].replace("-", "\N{MINUS SIGN}") in text.replace(
        "-", "\N{MINUS SIGN}"
    )
    assert "-m experiments run --reinit=lottery --dataset=digits" in text
    assert html.index('id="fronts"') < html.index('id="study-lottery"') < html.index('id="trials"')
    assert html.count("<figure") == len(drawings) == 3
    assert ("Found minus default" in text) == bool(fresh)
    assert "tune &lt;b&gt;" in text
    assert not re.search(r"\bnan\b|None", text.partition("<script>")[0])
    assert not re.search(r"@import|url\((?!#)", html)
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    assert {link[1:] for link in re.findall(r'href="(#[^"]+)"', html)} <= set(ids)


def test_the_page_separates_settings_from_defaults_that_the_command_gave(studies):
    default = {name: default_text(field) for name, field in TuneConfig.model_fields.items()}
    search = search_of(**default | {"dataset": "digits", "trials": 20, "device": "cpu"})
    study = SimpleNamespace(search=search)
    found = Recommendation(study, 5, studies.trials()[5].params, "run", 0)
    results, trials = fresh_results(), {"lottery": studies.table()}
    one = row_of(studies.table(), found, results)
    drawings = page_drawings(trials_of(trials, {"lottery": 5}), {"lottery": studies})
    html = render_page("tune", [found], [one], trials, results, drawings)
    chosen, _, folded = html.partition('<section id="settings"')[2].partition("<details>")
    names = r"<dt>(\w+)</dt><dd>([^<]*)</dd>"
    assert dict(re.findall(names, chosen)) == {"dataset": "digits", "trials": "20"}
    kept = default.keys() - HIDDEN - {"dataset", "trials"}
    assert {name for name, _ in re.findall(names, folded.partition("</details>")[0])} == kept


def test_text_and_description_show_both_settings(studies):
    found = Recommendation(studies, 5, studies.trials()[5].params, "run", 0)
    one = row_of(studies.table(), found, fresh_results(*MIXED).replace({"trial": {1: 5}}))
    assert one["verdict"] == "not better"
    text, note = summarize([found], [one]), describe_search([found], [one])
    assert re.search(r"lottery +default +0 +0.2 +10 +11 +120 +0.9000 +0.9250 +0.9150\n", text)
    assert re.search(r"lottery +found +5 +0.15 +15 +11 +250 +0.9180 +0.9350 +0.9250\n", text)
    assert "recommended" not in text
    assert "| lottery | found | 5 | 0.15 | 15 | 11 | 250 | 0.9180 | 0.9350 | 0.9250 |" in note
    assert "--prune_rate=0.2 --retrain_epochs" in note
