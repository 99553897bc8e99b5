"""Many machines: PostgreSQL, an MLflow server on it, two Ray nodes, workers that die."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack, contextmanager
from pathlib import Path

import mlflow
import optuna
import pytest
from optuna.trial import TrialState
from sqlalchemy.pool import NullPool

from experiments.__main__ import run_command
from experiments.config.experiment import config_from
from experiments.config.tune import TuneConfig
from experiments.rounds.data import load_data
from experiments.run import run_nested
from experiments.tune import connect
from experiments.tuning.storage import Storage
from tests.conftest import QUICK, ROOT
from tests.postgres import free_port, postgres
from tests.test_compare import numbers
from tests.test_servers import ENV, serving

DIGITS = {name: QUICK[name] for name in ("dataset", "model", "epochs", "lr", "device")}
SLOW = "retrain_epochs=20..24"  # seconds a trial, so that it can be caught
QUIET = {"OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}


@pytest.fixture(scope="module")
def database():
    with postgres() as server:
        yield server


@pytest.fixture(scope="module")
def tracking(database, tmp_path_factory):
    """The address of an MLflow server on PostgreSQL."""
    port, folder = free_port(), tmp_path_factory.mktemp("server")
    argv = [
        *("mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
        *("--backend-store-uri", database.url("mlflow"), "--artifacts-destination", "artifacts"),
    ]
    with serving(argv, f"http://127.0.0.1:{port}/health", folder):
        yield f"http://127.0.0.1:{port}"


@pytest.fixture
def env(tracking, monkeypatch):
    """The environment of a command; this process looks at the same server."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking)
    for name in ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)  # `set_experiment` of another test leaves it
    return os.environ | ENV | QUIET | {"PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="module")
def ray_cluster():
    """The address of a cluster of two nodes of two CPUs."""
    port = free_port()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as nodes:
        head = ["--head", f"--port={port}", "--include-dashboard=false", f"--temp-dir={folder}"]
        nodes.enter_context(ray_node(*head))
        nodes.enter_context(ray_node(f"--address=127.0.0.1:{port}"))
        yield f"127.0.0.1:{port}"


@contextmanager
def ray_node(*words):
    argv = ["ray", "start", "--block", "--num-cpus=2", "--object-store-memory=100000000", *words]
    process = subprocess.Popen(
        argv,
        env=os.environ | ENV | QUIET,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        lines = []
        for line in process.stdout:
            lines.append(line)
            if "Ray runtime started" in line:
                break
        assert "Ray runtime started" in lines[-1], "".join(lines)
        yield
    finally:
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        process.stdout.close()


def tune(folder, env, storage, **changes):
    """A search in a process."""
    defaults = DIGITS | {"reinit": "lottery", "storage": storage, "confirm_seeds": 0}
    return start("tune", folder, env, **defaults | changes)


def start(name, folder, env, **parameters):
    """A command in a process."""
    argv = [sys.executable, "-m", "experiments", name]
    argv += [f"--{name}={value}" for name, value in parameters.items()]
    folder.mkdir(exist_ok=True)
    return subprocess.Popen(
        argv, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@contextmanager
def looking_at(address):
    """A storage in which to watch what other processes do; creates its tables if it has none."""
    rdb = optuna.storages.RDBStorage(address, engine_kwargs={"poolclass": NullPool})
    try:
        yield rdb
    finally:
        rdb.remove_session()


def trials_of(storage, study):
    """The trials of a study that another process creates; none if it has not yet."""
    try:
        return optuna.load_study(study_name=study, storage=storage).get_trials(deepcopy=False)
    except KeyError:
        return []


def process_of(trial):
    """The process that is in the middle of a trial, so it holds no lock of the database."""
    if trial.state != TrialState.RUNNING or "mlflow_run_id" not in trial.user_attrs:
        return None
    return int(trial.user_attrs["worker"].split()[1])


def hold_all(storage, study, number, command):
    """Stop `number` processes in the middle of their trials; trials by process.

    A stopped process writes no heartbeat. On a slow machine the last worker may start so late that
    the first would be taken for dead, so this function writes the heartbeats for them.
    """
    held = {}
    while len(held) < number:
        assert command.poll() is None, command.stdout.read()
        for trial in trials_of(storage, study):
            process = process_of(trial)
            if process in held:
                storage.record_heartbeat(trial._trial_id)
            elif process:
                os.kill(process, signal.SIGSTOP)
                held[process] = trial.number
        time.sleep(0.2)
    return held


def parent_of(process):
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])


def check_runs(storage, study, asked):
    """Every trial's run is nested under the one run of the study, and has ended as the trial."""
    runs = mlflow.search_runs(search_all_experiments=True, output_format="list")
    mine = [run for run in runs if run.data.tags.get("optuna.study") == study]
    (top,) = (run for run in mine if run.data.tags["kind"] == "study")
    below = [run for run in mine if run.data.tags["kind"] == "trial"]
    assert {run.data.tags["mlflow.parentRunId"] for run in below} == {top.info.run_id}
    ended = Counter(run.info.status for run in below)
    trials = trials_of(storage, study)
    states = Counter(trial.state for trial in trials)
    assert states[TrialState.COMPLETE] == ended["FINISHED"] == asked
    assert states[TrialState.FAIL] == ended["FAILED"] == len(trials) - asked
    assert "RUNNING" not in {run.info.status for run in mine}
    numbers = {run.info.run_id: int(run.data.tags["optuna.trial"]) for run in below}
    assert {t.user_attrs["mlflow_run_id"]: t.number for t in trials} == numbers
    return trials


@pytest.mark.cluster
def test_a_search_on_a_ray_cluster_outlives_a_killed_worker(database, env, ray_cluster, tmp_path):
    """Four workers on two nodes: one is killed during a trial, which is run again."""
    address, study = database.url("optuna"), "on_ray/lottery"
    ray = {"executor": "ray", "ray_address": ray_cluster, "study": "on_ray", "search": SLOW}
    search = tune(tmp_path, env, address, trials=6, confirm_seeds=1, **ray)
    with looking_at(address) as storage:
        held = hold_all(storage, study, 4, search)
        nodes = Counter(parent_of(process) for process in held)
        victim, lost = next(
            (process_of(trial), trial.number)
            for trial in trials_of(storage, study)
            if process_of(trial) in held
        )
        os.kill(victim, signal.SIGKILL)
        for process in held.keys() - {victim}:
            os.kill(process, signal.SIGCONT)
        printed, _ = search.communicate(timeout=240)
        assert search.returncode == 0, printed
        assert sorted(nodes.values()) == [2, 2]
        trials = check_runs(storage, study, asked=6)
    assert [trial.number for trial in trials if trial.state == TrialState.FAIL] == [lost]
    assert [t.number for t in trials if t.system_attrs.get("retry_history")] == [6]
    assert trials[6].params == trials[lost].params
    assert "6 trials, 4 at a time" in printed
    assert "a worker died" in printed
    assert "fresh seed 1000: test" in printed
    assert "Traceback" not in printed


ARMS = QUICK | {"rounds": 4, "retrain_epochs": 40, "seeds": "0,", "reinits": "keep,lottery"}
ARMS |= {"baselines": "none"}


@pytest.mark.cluster
def test_a_comparison_on_a_ray_cluster_outlives_a_killed_worker(
    env, ray_cluster, store, monkeypatch, tracking
):
    """The arm of the worker fails; the same command runs what is missing."""
    on_ray = ARMS | {"executor": "ray", "ray_address": ray_cluster, "workers": 2}
    command = start("compare", store, env, **on_ray)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking)
    while not (arms := runs_of("keep", "RUNNING")):
        assert command.poll() is None, command.stdout.read()
        time.sleep(0.2)
    os.kill(int(arms[0].data.tags["weight_loss.pid"]), signal.SIGKILL)
    output, _ = command.communicate(timeout=240)
    assert command.returncode == 0, output
    assert "Traceback" not in output
    (failed,) = (line for line in output.splitlines() if "WARNING: failed: " in line)
    assert "failed: keep, seed 0: The worker died unexpectedly" in failed
    assert failed.endswith("; the same command runs what is missing")
    assert "keep, seed 0: failed: The worker died unexpectedly" in output  # when it happens
    (dead,) = runs_of("keep", "FAILED")
    assert dead.info.run_id == arms[0].info.run_id
    assert dead.data.tags["error"]
    again = start("compare", store, env, **on_ray)
    output, _ = again.communicate(timeout=240)
    assert again.returncode == 0, output
    assert output.count("already done") == 1
    own_store = f"sqlite:///{store / 'mlflow.db'}"
    inline = ARMS | {"executor": "inline"}
    here = start("compare", store / "here", env | {"MLFLOW_TRACKING_URI": own_store}, **inline)
    output, _ = here.communicate(timeout=240)
    assert here.returncode == 0, output
    assert numbers_in(store) == numbers_in(store / "here")


def runs_of(reinit, status):
    """Arms that have begun to log."""
    return mlflow.search_runs(
        search_all_experiments=True,
        filter_string=f"tags.reinit = '{reinit}' AND attributes.status = '{status}'",
        output_format="list",
    )


def numbers_in(folder):
    """The tables of the report that was written last."""
    reports = sorted((folder / "reports").iterdir(), key=lambda path: path.stat().st_mtime)
    return {name: table.to_csv() for name, table in numbers(reports[-1]).items()}


@pytest.mark.servers
def test_commands_that_start_together_share_one_search(database, env, tmp_path):
    address, study = database.url("joined"), "joined/lottery"
    searches = [
        tune(tmp_path / str(n), env, address, trials=9, executor="inline", study="joined")
        for n in range(3)
    ]
    printed = [search.communicate(timeout=240)[0] for search in searches]
    assert [search.returncode for search in searches] == [0, 0, 0], printed
    with looking_at(address) as storage:
        trials = check_runs(storage, study, asked=9)
    assert len(trials) == 9
    baseline = {"prune_rate": 0.2, "retrain_epochs": 10}
    assert [trial.number for trial in trials if trial.params == baseline] == [0]
    assert sum(" sparsity, by the rule: " in each for each in printed) == 1
    assert not any("does not answer" in each for each in printed)


@pytest.mark.servers
def test_a_search_waits_for_a_database_that_is_restarted(store, tmp_path):
    env, study = os.environ | ENV | QUIET | {"PYTHONPATH": str(ROOT)}, "restarted/lottery"
    with postgres() as server, looking_at(address := server.url("optuna")) as storage:
        asked = {"trials": 4, "executor": "inline", "study": "restarted", "search": SLOW}
        search = tune(tmp_path, env, address, **asked)
        while not any(trial.state.is_finished() for trial in trials_of(storage, study)):
            assert search.poll() is None, search.stdout.read()
            time.sleep(0.2)
        server.stop()
        time.sleep(3)
        server.start()
        printed, _ = search.communicate(timeout=120)
        assert search.returncode == 0, printed
        check_runs(storage, study, asked=4)


def test_a_database_that_does_not_answer_is_reported_in_one_line():
    said = []
    with pytest.raises(ConnectionError) as caught:
        Storage(f"postgresql+psycopg://a@127.0.0.1:{free_port()}/optuna", 1, said.append)
    assert "does not answer, even after 1 s" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(said) == 1


def test_a_cluster_that_is_not_there_is_an_error_of_one_line(monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    storage, port = "--storage=postgresql+psycopg://a@127.0.0.1/optuna", free_port()
    with pytest.raises(SystemExit) as stop:
        run_command("tune", ["--executor=ray", storage, f"--ray_address=127.0.0.1:{port}"])
    assert stop.value.code == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith(f"error: there is no Ray cluster at 127.0.0.1:{port}")
    assert "ray start --head" in error


def test_an_experiment_refuses_a_machine_with_different_data(store):
    config = config_from(QUICK)
    data, _ = load_data(config)
    parent = mlflow.MlflowClient().create_run("0").info.run_id
    with pytest.raises(ValueError, match="differ between the machines of the cluster"):
        run_nested(config, parent, data.digest[:-1], print)
    runs = mlflow.search_runs(search_all_experiments=True, output_format="list")
    assert [run.info.run_id for run in runs] == [parent]
    run_id = run_nested(config, parent, data.digest, print)
    assert mlflow.get_run(run_id).info.status == "FINISHED"


@pytest.mark.parametrize(
    ("storage", "tracking", "why"),
    [
        ("sqlite:///optuna.db", "http://127.0.0.1:9", "a storage that all machines can reach"),
        ("postgresql+psycopg://a@b/c", "sqlite:///m.db", "a tracking server that all machines"),
    ],
)
def test_a_cluster_needs_servers_rather_than_files(monkeypatch, storage, tracking, why):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking)
    with pytest.raises(ValueError, match=why):
        connect(TuneConfig(executor="ray", storage=storage))
