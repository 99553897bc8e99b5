"""Runs: what a search logs to MLflow.

The run of a search has nested runs for its studies, and those have nested runs for their trials. A
trial's run has no lock and no heartbeat: its trial in Optuna's storage has both, and decides how
the run ends if its process dies. Steps of a trial's metrics are rounds; metrics are means over its
seeds.
"""

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import mlflow
import pandas as pd
from mlflow.entities import Metric
from mlflow.exceptions import MlflowException

from experiments.config.parameters import as_text
from experiments.config.space import Value
from experiments.config.tune import TuneConfig
from experiments.processes.retry import retry
from experiments.processes.signals import defer_signals
from experiments.processes.terminal import Echo
from experiments.tracking.environment import environment
from experiments.tracking.fingerprint import code_digest
from experiments.tracking.log import params_of
from experiments.tracking.server import short_timeouts, without_login
from experiments.tracking.session import (
    NAME_CHARS,
    PARENT,
    close_run,
    dead_runs,
    describe,
    internal,
    tracked_run,
)
from experiments.tuning.search import Search

SEARCH, STUDY, TRIAL = "search", "study", "trial"  # values of a run's tag `kind`
NUMBER, STATE = "optuna.trial", "trial_state"  # tags of a trial's run
STATUSES = {"complete": "FINISHED", "stopped early": "KILLED"}  # of runs, by state; else FAILED
FLUSH_SECONDS = 1.0  # least time between writes of a trial's metrics
REPORTED = "recommended/"  # prefix of a study's metrics
REACHED = ("valid_accuracy", "test_accuracy", "dense_test_accuracy")


class TrialRun:
    """The run of a trial, while the trial runs."""

    def __init__(self, run_id: str, patience: float, echo: Echo) -> None:
        self.run_id, self.client = run_id, mlflow.MlflowClient()
        self.patience, self.echo = patience, echo
        self._buffer: list[Metric] = []
        self._flushed = time.monotonic()

    def log_round(self, number: int, metrics: Mapping[str, float]) -> None:
        """Log the metrics of a round, now or later, but no later than the result."""
        now = int(1000 * time.time())
        self._buffer += [Metric(name, value, now, number) for name, value in metrics.items()]
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self._flush()

    def log_result(self, result: Mapping[str, float]) -> None:
        """Log all that is left; after this the trial may end in the storage."""
        self._buffer += [Metric(f"final/{name}", value, 0, 0) for name, value in result.items()]
        self._flush()

    def end(self, state: str) -> None:
        """Log how the trial ended; MLflow calls a trial that was stopped early KILLED."""
        with defer_signals():
            self.client.set_tag(self.run_id, STATE, state)
            if STATUSES[state] != "FINISHED":
                mlflow.end_run(STATUSES[state])

    def _flush(self) -> None:
        def log() -> None:
            with short_timeouts():
                self.client.log_batch(self.run_id, metrics=self._buffer)

        retry("the tracking server", log, (MlflowException,), self.patience, self.echo)
        self._buffer, self._flushed = [], time.monotonic()


@contextmanager
def open_trial(
    search: Search, number: int, params: Mapping[str, Value], study_run: str, echo: Echo
) -> Iterator[TrialRun]:
    """A new run for a trial, nested under its study's; marked FAILED or KILLED on an exception."""
    values = " ".join(f"{name}={as_text(value)}" for name, value in params.items())
    name = f"{search.method} trial {number:03d} {values}"
    tags = {"kind": TRIAL, "optuna.study": search.name, NUMBER: str(number), STATE: "running"}
    with tracked_run(name, parent=study_run, tags=tags, locked=False) as run_id:
        run = TrialRun(run_id, search.config.patience, echo)
        try:
            with defer_signals():
                resolved = search.resolved(params)
                logged = params_of(search.config_of(params), resolved)
                logged["seeds_per_trial"] = as_text(search.config.seeds_per_trial)
                tags = {"method": search.method, "dataset": search.dataset, "model": search.model}
                tags |= internal({"code": code_digest(resolved)} | environment(resolved.device))
                describe(run_id, logged, tags)
            yield run
        except BaseException as error:
            lost = isinstance(error, (KeyboardInterrupt, SystemExit, OSError, MlflowException))
            with suppress(MlflowException), short_timeouts():
                run.client.set_tag(run_id, STATE, "lost" if lost else "failed")
            raise


def close_dead(study_run: str, trials: pd.DataFrame) -> None:
    """End the runs nested under a study's whose processes have died.

    Args:
        trials: The study's table; a trial's run ends as the trial has. A process may die between
            the end of a trial and that of its run.
    """
    experiment = mlflow.get_run(study_run).info.experiment_id
    nested = f"tags.`{PARENT}` = '{study_run}'"
    states = dict(zip(trials["number"].astype(str), trials["state"], strict=True))
    for run in mlflow.search_runs(
        [experiment],
        filter_string=f"{nested} AND tags.kind = '{TRIAL}' AND attributes.status = 'RUNNING'",
        output_format="list",
    ):
        state = states.get(run.data.tags[NUMBER], "waiting")  # newer than the table
        if state in STATUSES:
            close_run(run.info.run_id, STATUSES[state], **{STATE: state})
        elif state not in ("waiting", "running"):
            close_run(run.info.run_id, "FAILED", **{STATE: state, "error": "its process died"})
    close_dead_experiments(study_run, "its process died")


def close_dead_experiments(study_run: str, reason: str) -> None:
    """Mark the experiments nested under a study's run FAILED whose process has died."""
    experiment = mlflow.get_run(study_run).info.experiment_id
    for run in dead_runs(experiment, f"tags.`{PARENT}` = '{study_run}'"):
        if run.data.tags.get("kind") != TRIAL:  # which has no lock of its own
            close_run(run.info.run_id, "FAILED", error=reason)


def results_of(run_id: str) -> dict[str, float]:
    """The accuracies of a finished experiment's last network and of its dense one: `REACHED`."""
    metrics = mlflow.get_run(run_id).data.metrics
    values = (metrics[f"final/{name}"] for name in REACHED[:2])
    return dict(zip(REACHED, (*values, metrics["dense/test_accuracy"]), strict=True))


def describe_search(run_id: str, config: TuneConfig, search: Search) -> None:
    """Log the params, some of which `mlflow run` has logged, and the tags of a search."""
    params = config.model_dump() | {"storage": without_login(config.storage)}
    tags = {"dataset": search.dataset, "model": search.model}
    describe(run_id, params, tags | internal(environment("cpu")))


def create_study_run(search: Search, parent: str) -> str:
    """The id of a new run for a study, nested under its search's."""
    client, experiment = mlflow.MlflowClient(), mlflow.get_run(parent).info.experiment_id
    tags = {"kind": STUDY, "optuna.study": search.name, "method": search.method, PARENT: parent}
    tags |= {"dataset": search.dataset, "model": search.model, "objective": search.config.objective}
    run_id = str(
        client.create_run(experiment, run_name=search.name[:NAME_CHARS], tags=tags).info.run_id
    )
    client.update_run(run_id, status="SCHEDULED")  # until a command claims it
    settings = {name: str(value) for name, value in search.settings().items()}
    del settings["space"]  # params cannot change, and ranges can be widened: see the description
    describe(run_id, settings)
    return run_id


def experiment_of(run_id: str, search: Search) -> str:
    """The id of the experiment that a study's run is in.

    Raises:
        ValueError: If the run does not exist, or was deleted.
    """
    with suppress(MlflowException):
        info = mlflow.get_run(run_id).info
        if info.lifecycle_stage == "active":
            return str(info.experiment_id)
    where = without_login(mlflow.get_tracking_uri())
    raise ValueError(
        f"the study {search.name} logs to run {run_id}, which {where} does not have: set "
        "MLFLOW_TRACKING_URI to the server it was begun with, or choose another name with study="
    )


def log_study(run_id: str, folder: Path, metrics: dict[str, float], description: str) -> None:
    """Log the report of a study: files, metrics, and the description in the UI."""
    client = mlflow.MlflowClient()
    client.log_artifacts(run_id, str(folder))
    client.set_tag(run_id, "mlflow.note.content", description)
    before = mlflow.get_run(run_id).data.metrics.keys()  # those of another trial must not stay
    stale = {name: math.nan for name in before - metrics if name.startswith(REPORTED)}
    mlflow.log_metrics(metrics | stale, run_id=run_id)


def log_search(run_id: str, files: list[Path], metrics: dict[str, float], description: str) -> None:
    """Log the report of a search: files, metrics, and the description in the UI."""
    client = mlflow.MlflowClient()
    for file in files:
        is_plot = file.suffix == ".png" or file.name == "fronts.html"
        client.log_artifact(run_id, str(file), "plots" if is_plot else None)
    client.set_tag(run_id, "mlflow.note.content", description)
    mlflow.log_metrics(metrics, run_id=run_id)


def name_of(run_id: str) -> str:
    """The name of a run."""
    return str(mlflow.get_run(run_id).info.run_name)
