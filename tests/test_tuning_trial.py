"""A trial equals the experiment of its parameters, and never uses test images."""

import math
from dataclasses import replace
from statistics import fmean

import mlflow
import optuna
import pytest
from optuna.trial import TrialState

from experiments.run import run_experiment
from experiments.tracking.session import tracked_run
from experiments.tune import job_of, plan_searches
from experiments.tuning import runs, trial
from experiments.tuning.storage import Storage
from experiments.tuning.study import Study
from experiments.tuning.trial import claim_and_run
from tests.searching import small

ACCURACY = {"objective": "accuracy", "budget_epochs": 10}


@pytest.fixture(autouse=True)
def no_caches(store):
    """Each test loads its own data and trains its own dense networks."""
    trial._load.cache_clear()
    trial._dense.clear()


def test_a_report_leaves_no_metric_of_an_earlier_one(store, tmp_path):
    (folder := tmp_path / "report").mkdir()
    with tracked_run("study") as run_id:
        runs.log_study(run_id, folder, {"recommended/a": 1.0, "recommended/b": 2.0}, "")
        runs.log_study(run_id, folder, {"recommended/a": 3.0}, "")
    metrics = mlflow.get_run(run_id).data.metrics
    assert metrics["recommended/a"] == 3
    assert math.isnan(metrics["recommended/b"])


@pytest.fixture
def begin(store):
    """Creates a study with waiting trials, and the job of its workers."""

    def begin(**asked):
        config = small(storage=f"sqlite:///{store}/optuna.db", **asked)
        (search,) = plan_searches(config)
        study = Study(search, Storage(config.storage, 1, print))
        mlflow.set_experiment("weight-loss")
        with mlflow.start_run() as parent:
            job = job_of(study, parent.info.run_id)
        study.enqueue_missing()
        return study, job

    return begin


def do(job):
    """Run the next trial; its messages, and its run in MLflow."""
    messages = []
    claim_and_run(job, messages.append)
    (found,) = mlflow.search_runs(
        [job.experiment_id],
        filter_string="tags.kind = 'trial'",
        max_results=1,
        order_by=["attributes.start_time DESC"],
        output_format="list",
    )
    return messages, found


def history(run_id, name):
    points = mlflow.MlflowClient().get_metric_history(run_id, name)
    return [(point.step, point.value) for point in sorted(points, key=lambda each: each.step)]


@pytest.mark.parametrize(
    "asked",
    [
        {"reinit": "keep"},
        {"reinit": "lottery", "pruning": "one_shot"},
        {"reinit": "random", "search": "epochs=2..9"},
    ],
)
def test_a_trial_is_the_experiment_of_its_parameters_bit_for_bit(asked, begin):
    study, job = begin(**asked)
    do(job)  # the baseline trains the dense network, and the next trial may reuse it
    messages, run = do(job)
    params = study.trials()[1].params
    assert params != study.search.baseline
    config = study.search.config.config_of(study.search.method, params, 0)
    alone = run_experiment(config, job.study_run, [].append)
    for name in ("valid_accuracy", "valid_loss", "train_loss", "sparsity"):
        assert history(run.info.run_id, name) == history(alone, name)
    rounds = history(alone, "valid_accuracy")
    epochs = len(history(alone, "epoch/valid_accuracy"))  # with those of the dense network
    cost = study.search.cost(params)
    assert len(rounds) == cost.rounds + 1
    assert epochs == config.epochs + cost.retraining
    assert study.trials()[1].values == [rounds[-1][1], epochs]
    assert messages[-1] == f"trial 1: valid {rounds[-1][1]:.4f}, {epochs} epochs"


def test_the_run_of_a_trial_describes_it(begin):
    study, job = begin()
    _, run = do(job)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "lottery trial 000 prune_rate=0.5 retrain_epochs=1"
    params = {name: run.data.params[name] for name in ("reinit", "prune_rate", "retrain_epochs")}
    assert params == {"reinit": "lottery", "prune_rate": "0.5", "retrain_epochs": "1"}
    tags = run.data.tags
    assert (tags["optuna.study"], tags["optuna.trial"]) == (study.search.name, "0")
    assert tags["trial_state"] == "complete"
    assert tags["mlflow.parentRunId"] == job.study_run
    (row,) = study.table()[:1].to_dict("records")
    assert row["run_id"] == run.info.run_id
    assert (row["rounds"], row["retraining_epochs"], row["total_epochs"]) == (4, 4, 5)
    assert row["sparsity"] == pytest.approx(0.9, abs=0.001)
    assert run.data.metrics["final/valid_accuracy"] == row["valid_accuracy"]
    assert run.data.metrics["final/total_epochs"] == 5


class Forbidden:
    """Test images that must not be used."""

    def __getattr__(self, name):
        raise AssertionError(f"{name} of the test images was used")

    def __bool__(self):
        raise AssertionError("the test images were used")


@pytest.mark.parametrize("asked", [{}, ACCURACY])
def test_a_trial_neither_uses_nor_reports_test_images(asked, begin, monkeypatch):
    study, job = begin(**asked)
    load_data = trial.load_data

    def forbidden(config):
        data, why = load_data(config)
        return replace(data, test=Forbidden()), why

    monkeypatch.setattr(trial, "load_data", forbidden)
    _, run = do(job)
    assert study.trials()[0].state == TrialState.COMPLETE
    names = run.data.metrics.keys() | run.data.params.keys() | run.data.tags.keys()
    assert not [name for name in names if "test" in name]
    assert mlflow.MlflowClient().list_artifacts(run.info.run_id) == []
    storage = study.trials()[0]
    assert not [
        name for name in storage.user_attrs.keys() | storage.user_attrs["result"] if "test" in name
    ]


def test_several_seeds_are_averaged_round_by_round(begin):
    study, job = begin(seeds_per_trial=2)
    _, run = do(job)
    _, second = do(job)
    config = study.search.config
    params = study.trials()[1].params
    alone = [
        history(
            run_experiment(config.config_of("lottery", params, seed), job.study_run, [].append),
            "valid_accuracy",
        )
        for seed in (0, 1)
    ]
    assert alone[0] != alone[1]
    means = [(a[0], fmean([a[1], b[1]])) for a, b in zip(*alone, strict=True)]
    run_id = second.info.run_id
    assert history(run_id, "valid_accuracy") == means
    for seed in (0, 1):
        assert history(run_id, f"valid_accuracy/seed_{seed}") == alone[seed]
    epochs = study.search.config.epochs + study.search.cost(params).retraining
    assert study.trials()[1].values == [means[-1][1], epochs]
    assert run.data.params["seeds_per_trial"] == "2"


def test_a_loss_that_is_not_a_number_fails_only_its_trial(begin):
    study, job = begin(trials=8, search="retrain_lr=1e30/0.02,prune_rate=0.5/0.6")
    runs = [do(job)[1] for _ in range(8)]
    table = study.table()
    broken = table["retrain_lr"] == 1e30
    assert 0 < broken.sum() < 8
    assert (table["state"] == broken.map({True: "failed", False: "complete"})).all()
    assert not broken.iloc[0]
    for number, run in enumerate(runs):
        assert run.data.tags["optuna.trial"] == str(number)
        if not broken[number]:
            continue
        reason = table["reason"][number]
        assert reason.startswith("the loss is nan")
        assert "lower retrain_lr, got 1e+30" in reason
        assert (run.info.status, run.data.tags["trial_state"]) == ("FAILED", "failed")
        assert run.data.tags["error"] == reason
        assert study.trials()[number].values is None
    assert not [run for run in runs if math.isnan(run.data.metrics.get("valid_accuracy", 0))]


def test_a_bad_trial_is_stopped_early_and_its_run_is_killed(begin):
    study, job = begin(**ACCURACY)
    do(job)
    rounds = dict.fromkeys(range(22), 1.1)  # out of reach
    for _ in range(5):
        study.optuna.add_trial(optuna.trial.create_trial(value=1.1, intermediate_values=rounds))
    messages, run = do(job)
    stopped = study.trials()[1]
    assert stopped.state == TrialState.PRUNED
    assert (run.info.status, run.data.tags["trial_state"]) == ("KILLED", "stopped early")
    row = study.table().loc[1]
    assert row["state"] == "stopped early"
    points = history(run.info.run_id, "valid_accuracy")
    assert len(points) - 1 == row["rounds"] < study.search.cost(stopped.params).rounds
    assert row["valid_accuracy"] == points[-1][1]
    sparsities = [value for _, value in history(run.info.run_id, "sparsity")]
    assert sparsities[-2] < 1 - 0.9**7 <= sparsities[-1]  # at the first level that may stop it
    assert messages[-1].startswith(f"trial 1: stopped early at {sparsities[-1]:.0%} pruned, valid ")


def test_a_worker_without_a_waiting_trial_does_nothing(begin):
    study, job = begin(trials=1)
    do(job)
    before = mlflow.search_runs([job.experiment_id], output_format="list")
    assert claim_and_run(job, print) == ""
    assert len(mlflow.search_runs([job.experiment_id], output_format="list")) == len(before)
    assert len(study.trials()) == 1


def test_other_data_on_this_machine_are_refused_before_a_trial_is_claimed(begin):
    study, job = begin()
    other = replace(job, search=replace(job.search, digests=("another",)))
    with pytest.raises(ValueError, match="data_root: the data in data on this machine differ"):
        claim_and_run(other, print)
    assert study.waiting() == 4


def test_an_interrupted_trial_is_enqueued_again(begin, monkeypatch):
    study, job = begin()

    def echo(line):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        claim_and_run(job, echo)
    assert [each.state.name for each in study.trials()] == ["FAIL", *["WAITING"] * 4]
    do(job), do(job), do(job)
    _, run = do(job)
    assert study.trials()[4].params == study.search.baseline
    assert run.data.tags["optuna.trial"] == "4"
