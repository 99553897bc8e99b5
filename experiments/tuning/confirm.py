"""Confirm: what a study recommends is trained anew, with seeds that no trial has seen, and tested.

Only here does a search look at test images. Experiments that were done before are found again.
"""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from experiments.config.experiment import Config
from experiments.config.parameters import as_text, default_text
from experiments.config.space import Value
from experiments.processes.pool import Executor
from experiments.processes.terminal import Echo
from experiments.rounds.data import load_data
from experiments.run import run_experiment
from experiments.tracking.resume import (
    find_experiment,
    is_finished,
    other_versions_note,
    resume_config,
)
from experiments.tracking.session import close_dead_runs, is_running
from experiments.tuning.runs import REACHED, reached
from experiments.tuning.search import Search


@dataclass(frozen=True)
class Chosen:
    """A recommended trial: of which search, which one, with which parameters."""

    search: Search
    number: int
    params: dict[str, Value]
    run: str  # of the study

    @property
    def command(self) -> str:
        """What to type to train such a network."""
        return as_command(self.search, self.params)


def as_command(search: Search, params: Mapping[str, Value]) -> str:
    """A trial as a command of its own: whatever is not as by default is said."""
    config = search.config_of(params)
    said = {
        name: as_text(value)
        for name, value in (config.model_dump() | {"dataset": search.dataset}).items()
        if as_text(value) != default_text(Config.model_fields[name])
        or name in (*search.space, "reinit", "dataset")
    }
    words = [f"-P {name}={shlex.quote(value)}" for name, value in said.items()]
    return " ".join(["mlflow run . --env-manager=local", *words])


def confirm(chosen: list[Chosen], workers: Executor, echo: Echo) -> pd.DataFrame:
    """Retrain what was chosen with fresh seeds.

    Returns:
        A row for each method and seed: `method`, `seed`, `run_id`, `valid_accuracy` and
        `test_accuracy` of the last network, `dense_test_accuracy`; none for an experiment that
        failed, which is told.
    """
    todo = [(each, seed) for each in chosen for seed in each.search.config.fresh_seeds()]
    if todo and (note := other_versions_note(chosen[0].search.dataset, chosen[0].search.model)):
        echo(note)
    total = len(todo)
    runs: dict[str, tuple[Chosen, int, str]] = {}
    names: dict[str, tuple[Chosen, int]] = {}
    while todo or workers.running:
        while todo and workers.has_room:
            each, seed = todo.pop(0)
            name = f"{each.search.method}, fresh seed {seed}"
            names[name] = each, seed
            config = each.search.config_of(each.params, seed)
            before = _before(config.model_copy(update={"dataset": each.search.dataset}))
            if isinstance(before, str):
                runs[name] = each, seed, before
                echo(f"{name}: done before")
            else:
                workers.submit(name, run_experiment, before, each.run)
        if not workers.running:
            continue
        for name, outcome in workers.wait(_but_rounds(echo)).items():
            if outcome.run_id:
                runs[name] = *names[name], outcome.run_id
                accuracy = reached(outcome.run_id)["test_accuracy"]
                echo(f"{name}: test {accuracy:.4f} ({len(runs)} of {total})")
            else:
                if outcome.died:
                    close_dead_runs(names[name][0].run, outcome.reason)
                echo(f"WARNING: {name} failed: {outcome.reason}; the same command tries it again")
    return _rows([runs[name] for name in names if name in runs])


def _but_rounds(echo: Echo) -> Echo:
    """Tells all but what begins a run and ends each round, of which there are many here."""
    return lambda line: None if ": round " in line or ": run " in line else echo(line)


def _before(config: Config) -> Config | str:
    """The run of the same experiment if it is finished, or the config that begins or resumes it."""
    data, _ = load_data(config)
    found = find_experiment(config.resolved(data.name), data.digest)
    if found is None or is_running(found):
        return config
    if is_finished(found):
        return str(found.info.run_id)
    try:
        return resume_config(found.info.run_id, config.data_root)
    except ValueError:
        return config


def _rows(runs: list[tuple[Chosen, int, str]]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"method": each.search.method, "seed": seed, "run_id": run_id} | reached(run_id)
            for each, seed, run_id in runs
        ],
        columns=["method", "seed", "run_id", *REACHED],
    )
