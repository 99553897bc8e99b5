"""Searches by the command: what they log to a real MLflow, and how they continue."""

import json
import shutil
import sys
from pathlib import Path

import mlflow
import optuna
import pandas as pd
import pytest
from optuna.trial import TrialState

from experiments.__main__ import run_command
from tests.conftest import working_in
from tests.searching import SMALL

BOTH = {"reinit": "keep,lottery", "confirm_seeds": 1}
NAME = "weight-loss/digits/lenet_30_20/"


def command(**changes):
    return [f"--{name}={value}" for name, value in (SMALL | changes).items()]


def tune(**changes):
    """Run a search; its run, and the folder of its report."""
    before = {run.info.run_id for run in runs("kind", "search")}
    run_command("tune", command(**changes))
    (run,) = (run for run in runs("kind", "search") if run.info.run_id not in before)
    return run, Path("reports", run.info.run_id)


def runs(tag, value):
    return mlflow.search_runs(
        search_all_experiments=True,
        filter_string=f"tags.{tag} = '{value}'",
        order_by=["attributes.start_time"],
        output_format="list",
    )


def trials(method="lottery", folder="."):
    return optuna.load_study(
        study_name=NAME + method, storage=f"sqlite:///{folder}/optuna.db"
    ).get_trials()


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="module")
def whole(tmp_path_factory, empty_store):
    """A complete search: its working folder, and the id of its run."""
    folder = tmp_path_factory.mktemp("whole")
    with working_in(folder, empty_store):
        run, _ = tune(**BOTH)
    return folder, run.info.run_id


@pytest.fixture
def again(whole, store):
    """A copy of it to continue; artifacts stay where the database points."""
    folder, run_id = whole
    for name in ("mlflow.db", "optuna.db"):
        shutil.copy(folder / name, store / name)
    return folder / "reports" / run_id, run_id


def test_a_search_is_a_run_with_its_studies_below_and_their_trials_below_them(again):
    _, run_id = again
    search = mlflow.get_run(run_id)
    assert (search.info.status, search.info.run_name) == (
        "FINISHED",
        "tune keep,lottery digits lenet_30_20",
    )
    studies = runs("mlflow.parentRunId", run_id)
    assert {study.data.tags["method"] for study in studies} == {"keep", "lottery"}
    for study in studies:
        method = study.data.tags["method"]
        assert (study.info.status, study.info.run_name) == ("FINISHED", NAME + method)
        children = runs("mlflow.parentRunId", study.info.run_id)
        assert {child.info.status for child in children} == {"FINISHED"}
        done = [child for child in children if child.data.tags.get("kind") == "trial"]
        ids = [trial.user_attrs["mlflow_run_id"] for trial in trials(method)]
        assert {int(run.data.tags["optuna.trial"]): run.info.run_id for run in done} == dict(
            enumerate(ids)
        )
        assert {each.state for each in trials(method)} == {TrialState.COMPLETE}
        assert len(ids) == SMALL["trials"]


def test_every_method_begins_with_the_default_and_the_same_samples(again):
    keep, lottery = ([trial.params for trial in trials(method)] for method in ("keep", "lottery"))
    rates = [params.pop("retrain_lr") for params in keep]
    assert rates[0] == pytest.approx(0.003)  # 0.3 of lr
    assert len(set(rates)) == SMALL["trials"]
    assert keep == lottery
    assert keep[0] == {"prune_rate": 0.5, "retrain_epochs": 1}
    assert len({tuple(params.values()) for params in keep}) == SMALL["trials"]


def test_only_the_recommended_trials_and_the_defaults_are_tested_with_fresh_seeds(again):
    folder, run_id = again
    tested = pd.read_csv(folder / "tested.csv").set_index("run_id")
    table = pd.read_csv(folder / "recommended.csv").set_index("method")
    confirmed = []
    for study in runs("mlflow.parentRunId", run_id):
        method = study.data.tags["method"]
        children = runs("mlflow.parentRunId", study.info.run_id)
        mine = [child for child in children if child.data.tags.get("kind") != "trial"]
        for each in children:
            assert any("test" in name for name in each.data.metrics) == (each in mine)
        recommended = int(table["trial"][method])
        expected = {"found": recommended, "default": 0} if recommended else {"default": 0}
        rows = tested.loc[[each.info.run_id for each in mine]]
        assert dict(zip(rows["setting"], rows["trial"], strict=True)) == expected
        for run in mine:
            row, params, metrics = tested.loc[run.info.run_id], run.data.params, run.data.metrics
            asked = trials(method)[row["trial"]].params
            assert {name: float(params[name]) for name in asked} == asked
            assert (params["reinit"], params["seed"]) == (method, "1000") == (row["method"], "1000")
            assert row["test_accuracy"] == metrics["final/test_accuracy"]
            assert row["valid_accuracy"] == metrics["final/valid_accuracy"]
            assert row["dense_test_accuracy"] == metrics["dense/test_accuracy"]
        confirmed += mine
    assert len(tested) == len(confirmed) > 2
    # One of them trained the dense network of the seed, and the others branched off its run.
    bases = sorted(run.data.tags["weight_loss.branch_of"] for run in confirmed)
    assert bases[-1] == "none"
    assert set(bases[:-1]) <= set(tested.index)
    assert len(set(bases)) == 2


def test_the_recommendation_agrees_with_the_runs(again):
    folder, _ = again
    table = pd.read_csv(folder / "recommended.csv")
    tested = pd.read_csv(folder / "tested.csv").set_index(["method", "trial"])
    assert list(table["method"]) == ["keep", "lottery"]
    for row in table.to_dict("records"):
        done = trials(row["method"])
        best = max(trial.values[0] for trial in done)
        close = [trial for trial in done if trial.values[0] >= best - 0.005]
        cheapest = min(close, key=lambda trial: (trial.values[1], -trial.values[0], trial.number))
        assert row["trial"] == cheapest.number
        assert {name: row[name] for name in cheapest.params} == cheapest.params
        assert row["best_valid_accuracy"] == best
        assert (row["default_valid_accuracy"], row["default_total_epochs"]) == tuple(done[0].values)
        metrics = mlflow.get_run(cheapest.user_attrs["mlflow_run_id"]).data.metrics
        for name in ("valid_accuracy", "total_epochs", "rounds", "sparsity"):
            assert row[name] == metrics[f"final/{name}"]
        assert row["fresh_test_accuracy"] == tested["test_accuracy"][row["method"], row["trial"]]
        default = tested["test_accuracy"][row["method"], 0]
        assert row["default_fresh_test_accuracy"] == default
        if row["trial"]:
            assert row["test_accuracy_difference"] == row["fresh_test_accuracy"] - default
        assert row["verdict"] == "default" if not row["trial"] else row["verdict"] != "default"
        assert row["fresh_seeds"] == 1


def test_the_report_is_logged_to_the_runs(again):
    folder, run_id = again
    logged = Path(mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path=""))
    files = (
        "report.html",
        "recommended.csv",
        "tested.csv",
        "plots/fronts.png",
        "plots/fronts.html",
    )
    for name in files:
        assert (logged / name).read_bytes() == (folder / Path(name).name).read_bytes()
    for study in runs("mlflow.parentRunId", run_id):
        mine = folder / study.data.tags["method"]
        logged = Path(
            mlflow.artifacts.download_artifacts(run_id=study.info.run_id, artifact_path="")
        )
        files = [path for path in mine.rglob("*") if path.is_file()]
        assert {"trials.csv", "command.txt", "front.png"} <= {path.name for path in files}
        for path in files:
            assert (logged / path.relative_to(mine)).read_bytes() == path.read_bytes()
        known = json.loads((mine / "recommended.json").read_text())
        assert study.data.metrics["recommended/valid_accuracy"] == known["valid_accuracy"]
        assert (mine / "command.txt").read_text().strip() in study.data.tags["mlflow.note.content"]


def test_more_trials_continue_a_search_and_leave_the_others_alone(again, capfd):
    _, run_id = again
    before = {method: trials(method) for method in ("keep", "lottery")}
    history = {run.info.run_id: run.to_dictionary() for run in runs("kind", "trial")}
    new, folder = tune(**BOTH | {"trials": 6})
    for method, earlier in before.items():
        after = trials(method)
        assert after[:4] == earlier
        assert [trial.state for trial in after] == [TrialState.COMPLETE] * 6
        assert len(pd.read_csv(folder / method / "trials.csv")) == 6
    now = {run.info.run_id: run.to_dictionary() for run in runs("kind", "trial")}
    assert len(now) == 12
    assert {name: now[name] for name in history} == history
    assert new.info.run_id != run_id
    assert runs("mlflow.parentRunId", new.info.run_id) == []  # they stay where they began
    assert {run.info.status for run in runs("kind", "study")} == {"FINISHED"}
    out = capfd.readouterr().out
    assert "lottery: trial 4: " in out
    assert "lottery: trial 3: " not in out


def test_the_run_of_a_study_shows_the_ranges_that_a_later_command_widened(store):
    tune(trials=1)
    (study,) = runs("kind", "study")
    assert f"Searched: {SMALL['search']}\n" in study.data.tags["mlflow.note.content"]
    wider = "prune_rate=0.4..0.7,retrain_epochs=1..3"
    tune(trials=2, search=wider)
    (study,) = runs("kind", "study")
    assert f"Searched: {wider}\n" in study.data.tags["mlflow.note.content"]
    assert "space" not in study.data.params  # which cannot change


def test_the_same_search_again_trains_nothing_and_reports_the_same(again, capfd):
    folder, _ = again
    count = len(mlflow.search_runs(search_all_experiments=True))
    _, new = tune(**BOTH)
    assert len(mlflow.search_runs(search_all_experiments=True)) == count + 1  # its own
    for name in ("recommended.csv", "tested.csv", "keep/trials.csv", "lottery/command.txt"):
        assert (new / name).read_bytes() == (folder / name).read_bytes()
    out = capfd.readouterr().out
    tested = pd.read_csv(folder / "tested.csv")
    assert out.count("fresh seed 1000: found an earlier run") == len(tested)
    assert " trial 0: " not in out
    dashboard = Path(sys.executable).with_name("optuna-dashboard")
    assert f"To see the studies: {dashboard} sqlite:///{Path('optuna.db').resolve()}" in out
    table = pd.read_csv(folder / "recommended.csv").set_index("method")
    for method, row in table.iterrows():
        typed = (folder / method / "command.txt").read_text().strip()
        assert " -m " in typed
        assert typed.partition(" -m ")[2] in out
        assert f"--reinit={method} --dataset=digits" in typed
        better = row["verdict"] == "better"
        assert f"--prune_rate={row['prune_rate'] if better else 0.5} " in typed
        verdict = "recommended: " if better else "nothing better than the default was found: "
        assert f"{method}: {verdict}" in out
    assert f"Report: {(new / 'report.html').resolve()}" in out


def test_the_best_accuracy_within_a_budget(store, capfd):
    _, folder = tune(objective="accuracy", budget_epochs=6)
    table = pd.read_csv(folder / "lottery/trials.csv")
    assert table["state"].tolist() == ["complete"] * 4
    assert (table["retraining_epochs"] <= 6).all()
    row = json.loads((folder / "lottery/recommended.json").read_text())
    assert row["valid_accuracy"] == table["valid_accuracy"].max()
    assert row["fresh_seeds"] == 0
    assert "fresh_test_accuracy" not in row
    assert pd.read_csv(folder / "tested.csv").empty
    out = capfd.readouterr().out
    assert "the trial with the best validation accuracy within 6 epochs of retraining" in out
    assert "not confirmed" in out or "the default itself is the trial with the best" in out


def test_a_search_logs_to_the_run_that_mlflow_opened_for_it(store, monkeypatch):
    mlflow.set_experiment("another")
    with mlflow.start_run(run_name="mine") as opened:
        mlflow.log_param("trials", "1")  # as `mlflow run` does
    monkeypatch.setenv("MLFLOW_RUN_ID", opened.info.run_id)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", opened.info.experiment_id)
    run, _ = tune(trials=1)
    assert (run.info.run_id, run.info.run_name) == (opened.info.run_id, "mine")
    everything = mlflow.search_runs([opened.info.experiment_id], output_format="list")
    assert {each.data.tags["kind"] for each in everything} == {"search", "study", "trial"}


def test_a_study_with_other_settings_is_not_continued(again, capsys):
    before = trials()
    with pytest.raises(SystemExit):
        run_command("tune", command(train_limit=199))
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: the study {NAME}lottery was begun with other settings: ")
    assert "train_limit (here 199, there 200)" in error
    assert error.endswith("choose another name with study=")
    assert trials() == before
