"""Confirm: retrain and test the recommended trials with seeds that no trial has used.

Only here does a search use test images. Experiments that have already run are reused.
"""

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
from experiments.tracking.paste import command_to_paste
from experiments.tracking.resume import find_or_resume, is_finished, other_versions_note
from experiments.tuning.runs import REACHED, close_dead_experiments, results_of
from experiments.tuning.search import Search
from experiments.tuning.study import Study


@dataclass(frozen=True)
class Recommendation:
    """The recommended trial of a study."""

    study: Study
    number: int
    params: dict[str, Value]
    study_run: str

    @property
    def search(self) -> Search:
        """The search of the study."""
        return self.study.search

    @property
    def command(self) -> str:
        """The command that trains such a network, with all parameters that are not the default."""
        config = self.search.config_of(self.params).model_copy(
            update={"dataset": self.search.dataset}
        )
        shown = {
            name: as_text(value)
            for name, value in config.model_dump().items()
            if as_text(value) != default_text(Config.model_fields[name])
            or name in (*self.search.space, "reinit", "dataset")
        }
        return command_to_paste("run", shown)


Todo = Mapping[str, tuple[Recommendation, int]]  # trials and seeds, by the name of the task


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
        while not workers.has_room:
            _wait(workers, todo, runs, echo)
        asked = each.search.config_of(each.params, seed)
        config = asked.model_copy(update={"dataset": each.search.dataset})
        data, _ = load_data(config)
        earlier = find_or_resume(config, data.name, data.digest)
        if earlier.run and is_finished(earlier.run):
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


def _wait(workers: Executor, todo: Todo, runs: dict[str, str], echo: Echo) -> None:
    """Wait until an experiment ends, and note its run."""

    def without_rounds(line: str) -> None:
        if ": round " not in line and ": run " not in line:
            echo(line)

    for name, outcome in workers.wait(without_rounds).items():
        if outcome.run_id:
            runs[name] = outcome.run_id
            accuracy = results_of(outcome.run_id)["test_accuracy"]
            echo(f"{name}: test {accuracy:.4f} ({len(runs)} of {len(todo)})")
        else:
            if outcome.died:
                close_dead_experiments(todo[name][0].study_run, outcome.reason)
            echo(f"WARNING: {name} failed: {outcome.reason}; the same command tries it again")
