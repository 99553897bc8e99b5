"""Confirm: retrain and test the recommended trials with seeds that no trial has used.

Only here does a search use test images. Experiments that have been run before are found again.
"""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from experiments.config.experiment import Config
from experiments.config.parameters import as_text, default_text
from experiments.config.space import Value
from experiments.processes.tasks import Executor
from experiments.processes.terminal import Echo
from experiments.rounds.data import load_data
from experiments.run import run_experiment
from experiments.tracking.resume import find_or_resume, other_versions_note
from experiments.tuning.runs import REACHED, close_dead_experiments, results_of
from experiments.tuning.search import Search


@dataclass(frozen=True)
class Recommendation:
    """The recommended trial of a search's study."""

    search: Search
    number: int
    params: dict[str, Value]
    study_run: str

    @property
    def command(self) -> str:
        """The command that trains such a network."""
        return command_of(self.search, self.params)


def command_of(search: Search, params: Mapping[str, Value]) -> str:
    """A trial as a command of its own, with all parameters that are not the default."""
    config = search.config_of(params)
    shown = {
        name: as_text(value)
        for name, value in (config.model_dump() | {"dataset": search.dataset}).items()
        if as_text(value) != default_text(Config.model_fields[name])
        or name in (*search.space, "reinit", "dataset")
    }
    words = [f"-P {name}={shlex.quote(value)}" for name, value in shown.items()]
    return " ".join(["mlflow run . --env-manager=local", *words])


def confirm(recommended: list[Recommendation], workers: Executor, echo: Echo) -> pd.DataFrame:
    """Retrain the recommended trials with fresh seeds.

    Returns:
        A row for each method and seed: `method`, `seed`, `run_id`, `valid_accuracy` and
        `test_accuracy` of the last network, `dense_test_accuracy`. An experiment that fails has no
        row, but a warning.
    """
    todo = {
        f"{each.search.method}, fresh seed {seed}": (each, seed)
        for each in recommended
        for seed in each.search.config.fresh_seeds()
    }
    first = recommended[0].search if todo else None
    if first and (note := other_versions_note(first.dataset, first.model)):
        echo(note)
    runs: dict[str, str] = {}
    for name, (each, seed) in todo.items():
        _wait_for_room(workers, todo, runs, echo)
        asked = each.search.config_of(each.params, seed)
        config = asked.model_copy(update={"dataset": each.search.dataset})
        data, _ = load_data(config)
        earlier = find_or_resume(config, data.name, data.digest)
        if earlier.run and earlier.is_finished:
            runs[name] = earlier.run.info.run_id
            echo(f"{name}: found an earlier run")
        else:
            workers.submit(name, run_experiment, earlier.config, each.study_run)
    while workers.running:
        _wait(workers, todo, runs, echo)
    rows = [
        {"method": each.search.method, "seed": seed, "run_id": runs[name]} | results_of(runs[name])
        for name, (each, seed) in todo.items()
        if name in runs
    ]
    return pd.DataFrame(rows, columns=["method", "seed", "run_id", *REACHED])


Todo = Mapping[str, tuple[Recommendation, int]]


def _wait_for_room(workers: Executor, todo: Todo, runs: dict[str, str], echo: Echo) -> None:
    while not workers.has_room:
        _wait(workers, todo, runs, echo)


def _wait(workers: Executor, todo: Todo, runs: dict[str, str], echo: Echo) -> None:
    """Wait until an experiment ends, and note its run."""
    for name, outcome in workers.wait(_without_rounds(echo)).items():
        if outcome.run_id:
            runs[name] = outcome.run_id
            accuracy = results_of(outcome.run_id)["test_accuracy"]
            echo(f"{name}: test {accuracy:.4f} ({len(runs)} of {len(todo)})")
        else:
            if outcome.died:
                close_dead_experiments(todo[name][0].study_run, outcome.reason)
            echo(f"WARNING: {name} failed: {outcome.reason}; the same command tries it again")


def _without_rounds(echo: Echo) -> Echo:
    """Drops the lines that begin a run and end each round."""
    return lambda line: None if ": round " in line or ": run " in line else echo(line)
