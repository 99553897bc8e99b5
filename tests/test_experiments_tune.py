"""Searches from the command: real processes, stopped and started again, and a real MLflow."""

import os
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager, suppress
from pathlib import Path

import mlflow
import optuna
import pandas as pd
import pytest
from optuna.trial import TrialState

from experiments.tune import main
from tests.conftest import PATIENCE, ROOT
from tests.searching import SMALL

WHOLE = {"trials": 6, "reinit": "keep,lottery", "confirm_seeds": 1, "workers": 2}
GONE = "http://127.0.0.1:9"


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def flags(**changes):
    return [f"--{name}={value}" for name, value in (SMALL | changes).items()]


@contextmanager
def tuning(**changes):
    """The command at work, in a process group of its own."""
    process = subprocess.Popen(
        [sys.executable, "-m", "experiments", "tune", *flags(**changes)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def tune(**changes):
    """What the command printed that went all the way."""
    with tuning(**changes) as process:
        out, errors = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, errors
    return out


def runs(kind):
    found = mlflow.search_runs(
        search_all_experiments=True,
        filter_string=f"tags.kind = '{kind}'",
        output_format="list",
    )
    return sorted(found, key=lambda run: run.info.start_time)


def trials(method="lottery"):
    name = f"weight-loss/digits/lenet_30_20/{method}"
    return optuna.load_study(study_name=name, storage="sqlite:///optuna.db").trials


def found(these):
    """What came of complete trials, whatever their numbers."""
    complete = [each for each in these if each.state == TrialState.COMPLETE]
    return sorted((sorted(each.params.items()), each.values) for each in complete)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, empty_store):
    """A folder with a search that nothing went wrong with, and what it printed."""
    folder = tmp_path_factory.mktemp("whole")
    shutil.copy(empty_store, folder / "mlflow.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
        patch.setenv("OMP_NUM_THREADS", "1")
        for name in ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME"):
            patch.delenv(name, raising=False)
        return folder, tune(**WHOLE)


@pytest.fixture
def again(whole, tmp_path, monkeypatch):
    """The same, to be continued: artifacts stay where the database says."""
    folder, out = whole
    for name in ("mlflow.db", "optuna.db"):
        shutil.copy(folder / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    return folder, out


def report(folder):
    (run,) = runs("search")
    return folder / "reports" / run.info.run_id


def test_a_search_does_exactly_the_trials_that_were_asked_for(again):
    for method in ("keep", "lottery"):
        assert [each.state.name for each in trials(method)] == ["COMPLETE"] * 6
        assert trials(method)[0].params == {"prune_rate": 0.5, "retrain_epochs": 1}
        assert len({tuple(each.params.values()) for each in trials(method)}) == 6
    both = [[each.params for each in trials(method)] for method in ("keep", "lottery")]
    assert both[0] == both[1]  # the first draws are the same for every method


def test_a_search_holds_a_run_for_each_study_and_each_of_these_one_for_each_trial(again):
    (search,) = runs("search")
    studies = {run.data.tags["method"]: run for run in runs("study")}
    assert studies.keys() == {"keep", "lottery"}
    every = [search, *studies.values(), *runs("trial")]
    assert {run.info.status for run in every} == {"FINISHED"}
    for method, run in studies.items():
        assert run.data.tags["mlflow.parentRunId"] == search.info.run_id
        nested = [
            each
            for each in runs("trial")
            if each.data.tags["mlflow.parentRunId"] == run.info.run_id
        ]
        numbers = {int(each.data.tags["optuna.trial"]): each.info.run_id for each in nested}
        notes = {each.number: each.user_attrs["mlflow_run_id"] for each in trials(method)}
        assert numbers == notes
        assert len(numbers) == 6


def test_only_what_is_recommended_is_tested_and_with_fresh_seeds(again):
    confirmed = [run for run in runs_of_experiments() if "test_accuracy" in run.data.metrics]
    assert {run.data.tags["mlflow.parentRunId"] for run in confirmed} == {
        run.info.run_id for run in runs("study")
    }
    assert [run.data.params["seed"] for run in confirmed] == ["1000", "1000"]
    for run in runs("trial"):
        assert not [name for name in run.data.metrics if "test" in name]
        assert run.data.params["seed"] == "0"


def runs_of_experiments():
    everything = mlflow.search_runs(search_all_experiments=True, output_format="list")
    return [run for run in everything if "kind" not in run.data.tags]


def test_the_recommendation_is_what_the_runs_say(again):
    folder, out = again
    table = pd.read_csv(report(folder) / "recommended.csv").set_index("method")
    for method in ("keep", "lottery"):
        row, every = table.loc[method], trials(method)
        chosen = every[int(row["trial"])]
        assert chosen.params == {
            "prune_rate": row["prune_rate"],
            "retrain_epochs": row["retrain_epochs"],
        }
        best = max(each.values[0] for each in every)
        close = [each for each in every if each.values[0] >= best - 0.005]
        assert chosen.values[1] == min(each.values[1] for each in close) == row["total_epochs"]
        assert row["valid_accuracy"] == chosen.values[0]
        assert row["best_valid_accuracy"] == best
        assert row["default_valid_accuracy"] == every[0].values[0]
        assert row["best_at_default_cost"] >= row["default_valid_accuracy"]
        assert f"{row['fresh_test_accuracy']:.4f} with one fresh seed" in out
    tested = pd.read_csv(report(folder) / "tested.csv").set_index("method")
    for method, row in tested.iterrows():
        run = mlflow.get_run(row["run_id"])
        assert run.data.params["reinit"] == method
        assert row["seed"] == 1000
        assert row["test_accuracy"] == run.data.metrics["test_accuracy"]
        assert table.loc[method, "fresh_test_accuracy"] == row["test_accuracy"]
        for name in ("prune_rate", "retrain_epochs"):
            assert float(run.data.params[name]) == table.loc[method, name]


def test_tables_and_commands_are_on_disk_and_in_the_run(again):
    folder, out = again
    for run in runs("study"):
        own = report(folder) / run.data.tags["method"]
        logged = Path(run.info.artifact_uri.removeprefix("file://"))
        for name in ("trials.csv", "recommended.json", "command.txt"):
            assert (logged / name).read_bytes() == (own / name).read_bytes()
        assert (own / "command.txt").read_text().strip() in out
        table = pd.read_csv(own / "trials.csv")
        assert table["state"].tolist() == ["complete"] * 6
        assert table["valid_accuracy"].tolist() == [
            each.values[0] for each in trials(run.data.tags["method"])
        ]


def test_a_larger_number_goes_on_with_what_is_there(again):
    before = {method: trials(method) for method in ("keep", "lottery")}
    out = tune(**WHOLE | {"trials": 8})
    for method, earlier in before.items():
        assert trials(method)[:6] == earlier
        assert [each.state.name for each in trials(method)] == ["COMPLETE"] * 8
    assert len(runs("study")) == 2
    assert len(runs("trial")) == 16
    assert out.count("valid 0.") >= 4
    assert "trial 5:" not in out


def test_however_it_is_stopped_the_same_command_goes_on_to_the_same_trials(again, tmp_path):
    """Ctrl-C, SIGTERM and kill -9 of everything, and one process at a time."""
    expected = found(trials())
    (tmp_path / "optuna.db").unlink()
    shutil.copy(again[0] / "mlflow.db", tmp_path / "mlflow.db")
    alone = {"trials": 6, "confirm_seeds": 0}
    for number, status in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        _, errors, code = stop(number, **alone)
        assert code == status
        assert errors.splitlines()[-1] == "stopped; the same command goes on from here"
        assert "Traceback" not in errors
        assert "RUNNING" not in {each.state.name for each in trials()}
        assert runs("search")[-1].info.status == "KILLED"
        assert not [run for run in runs("trial") if run.info.status == "RUNNING"]
    stop(signal.SIGKILL, group=True, **alone)
    assert runs("search")[-1].info.status == "RUNNING"
    tune(**alone)
    assert found(trials()) == expected
    ended = {each.state for each in trials()}
    assert ended <= {TrialState.COMPLETE, TrialState.FAIL}
    assert all("failure" not in each.user_attrs for each in trials())
    for kind in ("trial", "study"):
        assert not [run for run in runs(kind) if run.info.status == "RUNNING"]


def stop(number, group=False, **changes):
    """Send a signal in the middle of a trial; what was printed, and the exit status."""
    with tuning(**changes) as process:
        lines = []
        for line in process.stdout:
            lines.append(line)
            if sum("prune_rate=" in each for each in lines) == 2:
                (os.killpg if group else os.kill)(process.pid, number)
                break
        out, errors = process.communicate(timeout=PATIENCE)
        return "".join(lines) + out, errors, process.returncode


def mistake(capsys, **changes):
    """The one line that a mistake is told in."""
    with pytest.raises(SystemExit) as stopped:
        main(flags(**changes))
    assert stopped.value.code == 2
    *_, told = capsys.readouterr().err.splitlines()
    assert told.startswith("error: ")
    return told


def test_ten_failures_in_a_row_end_a_study_with_the_reason(store):
    with tuning(trials=12, lr=1e30) as process:
        out, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 2
    assert errors.splitlines()[-1].startswith(
        "error: the last 10 trials of weight-loss/digits/lenet_30_20/lottery failed in a row, at "
        "last with: the loss is nan"
    )
    assert "Traceback" not in errors
    assert [each.state.name for each in trials()][:10] == ["FAIL"] * 10
    assert out.count("failed: the loss is nan") == 10
    (search,) = runs("search")
    assert search.info.status == "FAILED"
    assert "failed in a row" in search.data.tags["error"]
    assert {run.data.tags["trial_state"] for run in runs("trial")} == {"failed"}
    assert {run.info.status for run in runs("trial")} == {"FAILED"}


def test_a_study_is_not_continued_with_other_settings(again, capsys):
    told = mistake(capsys, **WHOLE | {"lr": 0.02})
    assert "was begun with other settings: lr (here 0.02, there 0.01); choose another name" in told
    assert len(runs("search")) == 1


def test_the_database_of_mlflow_is_refused_as_storage(store, capsys):
    told = mistake(capsys, storage=f"sqlite:///{store}/mlflow.db")
    assert "must be a database of its own, not MLflow's" in told
    assert not runs("search")
    assert mlflow.MlflowClient().search_experiments()  # it has come to no harm


WRONG = [
    ({"storage": "optuna.db"}, "storage must be an address such as sqlite:///optuna.db or "),
    ({"storage": "sqlite://"}, "storage must be a file or a server, which can be shared"),
    ({"storage": "sqlite:///nowhere/optuna.db"}, "storage: there is no folder "),
    ({"reinit": "lotery"}, "reinit must be all, or one or several of "),
    ({"search": "lr=3..1"}, "search: lr must have a low below its high, got 3..1"),
    ({"prune_rate": 0.0001}, "prune_rate is too small: round 1 would remove no weight"),
    ({"dataset": "faces", "data_root": "nowhere"}, "nowhere"),
]


@pytest.mark.parametrize(("changes", "message"), WRONG, ids=str)
def test_a_mistake_is_one_line_and_no_run(changes, message, store, capsys):
    assert message in mistake(capsys, **changes)
    assert not runs("search")


def test_a_server_that_does_not_answer_is_waited_for_and_then_told(store, capsys, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", GONE)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(SystemExit) as stopped:
        main(flags(patience=1))
    assert stopped.value.code == 2
    out, errors = capsys.readouterr()
    assert "the tracking server does not answer (" in out
    assert "waiting for it, 1 s at most" in out
    told = errors.splitlines()[-1]
    assert told.startswith("error: the tracking server has not answered for 1 s (")
    assert told.endswith("the same command goes on from here")
