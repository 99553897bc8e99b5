"""Runs: what a search leaves in MLflow.

A search is a run, with a run nested under it for each study, and one under that for each trial.
Steps of a trial's metrics count rounds; several seeds are averaged.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import Metric, RunTag
from mlflow.exceptions import MlflowException

from experiments.config.parameters import as_text
from experiments.config.space import Value
from experiments.config.tune import TuneConfig
from experiments.processes.locks import is_alive, may_be_starting
from experiments.processes.retry import retry
from experiments.processes.signals import defer_signals
from experiments.processes.terminal import Echo
from experiments.tracking.environment import environment
from experiments.tracking.fingerprint import code_digest
from experiments.tracking.log import params_of
from experiments.tracking.server import short_timeouts, without_login
from experiments.tracking.session import PARENT, describe, tracked_run
from experiments.tuning.search import Search

SEARCH, STUDY, TRIAL = "search", "study", "trial"  # the tag `kind` of a run
STATE = "trial_state"
ENDS = {"complete": "FINISHED", "stopped early": "KILLED"}  # what MLflow calls it; else FAILED
FLUSH_SECONDS = 1.0  # between writes of a trial whose rounds are faster than that
REACHED = ("valid_accuracy", "test_accuracy", "dense_test_accuracy")


class TrialRun:
    """The run of a trial, while it is done."""

    def __init__(self, run_id: str, patience: float, echo: Echo) -> None:
        self.run_id, self.client = run_id, mlflow.MlflowClient()
        self.patience, self.echo = patience, echo
        self._waiting: list[Metric] = []
        self._flushed = time.monotonic()

    def log_round(self, number: int, metrics: Mapping[str, float]) -> None:
        """Keep the metrics of a round; they are in MLflow a second later, or at the end."""
        now = int(1000 * time.time())
        self._waiting += [Metric(name, value, now, number) for name, value in metrics.items()]
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self._flush()

    def log_result(self, result: Mapping[str, float]) -> None:
        """Keep all that is to be known of the trial, before its storage is told how it ended."""
        self._flush()
        metrics = [Metric(f"final/{name}", value, 0, 0) for name, value in result.items()]
        self._log(metrics)

    def end(self, state: str) -> None:
        """Say how it ended; a trial that was stopped early is KILLED for MLflow."""
        with defer_signals():
            self.client.set_tag(self.run_id, STATE, state)
            if ENDS[state] != "FINISHED":
                mlflow.end_run(ENDS[state])

    def _flush(self) -> None:
        for start in range(0, len(self._waiting), 1000):
            self._log(self._waiting[start : start + 1000])
        self._waiting, self._flushed = [], time.monotonic()

    def _log(self, metrics: list[Metric]) -> None:
        """Log at once, or when the tracking server answers again."""

        def log() -> None:
            with short_timeouts():
                self.client.log_batch(self.run_id, metrics=metrics)

        retry("the tracking server", log, (MlflowException,), self.patience, self.echo)


@contextmanager
def open_trial(
    search: Search, number: int, params: Mapping[str, Value], study_run: str, echo: Echo
) -> Iterator[TrialRun]:
    """The run of a trial, nested under its study's; marked failed on the way out, if it did."""
    said = " ".join(f"{name}={as_text(value)}" for name, value in params.items())
    name = f"{search.method} trial {number:03d} {said}"
    with tracked_run(name[:250], parent=study_run) as run_id:
        run = TrialRun(run_id, search.config.patience, echo)
        resolved = search.resolved(params)
        told = params_of(search.config_of(params), resolved)
        told["seeds_per_trial"] = str(search.config.seeds_per_trial)
        tags = {"kind": TRIAL, "optuna.study": search.name, "optuna.trial": str(number)}
        tags |= {"method": search.method, "dataset": search.dataset, "model": search.model}
        tags |= {STATE: "running", "code": code_digest(resolved)} | _environment(resolved.device)
        try:
            with defer_signals():
                describe(run_id, told, tags)
            yield run
        except BaseException as error:
            lost = isinstance(error, (KeyboardInterrupt, SystemExit, OSError, MlflowException))
            with suppress(MlflowException), short_timeouts():
                run.client.set_tag(run_id, STATE, "lost" if lost else "failed")
            raise


@cache
def _environment(device: str) -> dict[str, str]:
    """As `environment`, which asks git, but once a process."""
    return environment(device)


def close_dead(study_run: str, states: Mapping[str, str]) -> None:
    """Say of the trials' runs whose process has died how they ended.

    Args:
        states: Of trials, by the id of their run; a process may die after its trial has ended.
    """
    client = mlflow.MlflowClient()
    for run in nested(study_run, "attributes.status = 'RUNNING'"):
        run_id, tags = run.info.run_id, run.data.tags
        state = states.get(run_id, "lost")
        begun = may_be_starting(tags, run.info.start_time / 1000)
        if state == "running" or begun or is_alive(run_id, tags):
            continue
        if state not in ENDS:
            client.set_tag(run_id, "error", "its process died")
        client.set_tag(run_id, STATE, state)
        client.set_terminated(run_id, ENDS.get(state, "FAILED"))


def nested(run_id: str, more: str) -> list[Any]:
    """The runs nested under another that fulfil a filter of MLflow's."""
    experiment = mlflow.get_run(run_id).info.experiment_id
    found: list[Any] = mlflow.search_runs(
        [experiment],
        filter_string=f"tags.`{PARENT}` = '{run_id}' AND {more}",
        output_format="list",
    )
    return found


def reached(run_id: str) -> dict[str, float]:
    """What the last network of a finished experiment reached, and the dense one: `REACHED`."""
    metrics = mlflow.get_run(run_id).data.metrics
    values = (metrics[f"final/{name}"] for name in REACHED[:2])
    return dict(zip(REACHED, (*values, metrics["dense/test_accuracy"]), strict=True))


def describe_search(run_id: str, config: TuneConfig, search: Search) -> None:
    """Say what a search is: params, which `mlflow run` has logged some of, and tags."""
    params = {name: as_text(value) for name, value in config.model_dump().items()}
    params["storage"] = without_login(config.storage)
    tags = {"dataset": search.dataset, "model": search.model, "kind": SEARCH}
    describe(run_id, params, tags | _environment("cpu"))


def new_study(search: Search, parent: str) -> str:
    """The id of a new run for a study, below the run of its search."""
    active, client = mlflow.get_run(parent), mlflow.MlflowClient()
    tags = {"kind": STUDY, "optuna.study": search.name, "method": search.method, PARENT: parent}
    tags |= {"dataset": search.dataset, "model": search.model, "objective": search.config.objective}
    run_id = str(
        client.create_run(active.info.experiment_id, run_name=search.name, tags=tags).info.run_id
    )
    client.update_run(run_id, status="SCHEDULED")  # until somebody holds it
    describe(run_id, {name: str(value) for name, value in search.settings().items()}, {})
    return run_id


def close_dead_searches(run_id: str) -> None:
    """Mark the runs of searches KILLED whose process has died; `run_id` is a living one's."""
    client = mlflow.MlflowClient()
    running = f"tags.kind = '{SEARCH}' AND attributes.status = 'RUNNING'"
    for run in mlflow.search_runs(
        [mlflow.get_run(run_id).info.experiment_id], filter_string=running, output_format="list"
    ):
        if run.info.run_id != run_id and not is_alive(run.info.run_id, run.data.tags):
            client.set_tag(run.info.run_id, "error", "its process died")
            client.set_terminated(run.info.run_id, "KILLED")


def experiment_of(run_id: str, search: Search) -> str:
    """The experiment that the run of a study is in.

    Raises:
        ValueError: If there is no such run, or it was deleted.
    """
    with suppress(MlflowException):
        info = mlflow.get_run(run_id).info
        if info.lifecycle_stage == "active":
            return str(info.experiment_id)
    raise ValueError(
        f"the study {search.name} is tracked in run {run_id}, which {mlflow.get_tracking_uri()} "
        "does not have: set MLFLOW_TRACKING_URI to where it was begun, or choose another study="
    )


def log_study(run_id: str, folder: Path, numbers: Mapping[str, float], words: str) -> None:
    """Keep what came of a study: files, numbers, and what the UI shows of the run first."""
    client = mlflow.MlflowClient()
    client.log_artifacts(run_id, str(folder))
    now = int(1000 * time.time())
    client.log_batch(
        run_id,
        metrics=[Metric(name, value, now, 0) for name, value in numbers.items()],
        tags=[RunTag("mlflow.note.content", words)],
    )


def log_search(run_id: str, files: list[Path]) -> None:
    """Keep what came of a search."""
    client = mlflow.MlflowClient()
    for file in files:
        client.log_artifact(
            run_id, str(file), "plots" if file.suffix in (".png", ".html") else None
        )
