"""Confirm: what a study recommends is trained anew, with seeds that no trial has seen, and tested.

Only here does a search look at test images. Experiments that were done before are found again.
"""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from experiments.comparison import store
from experiments.config import Config
from experiments.data import load_data
from experiments.parameters import as_text, default_text
from experiments.run import Tell, experiment
from experiments.stored_run import to_resume
from experiments.tuning.runs import REACHED, reached
from experiments.tuning.search import Search
from experiments.tuning.space import Value
from experiments.workers import Workers


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


def confirm(chosen: list[Chosen], workers: Workers, tell: Tell) -> pd.DataFrame:
    """Retrain what was chosen with fresh seeds.

    Returns:
        A row for each method and seed: `method`, `seed`, `run_id`, `valid_accuracy` and
        `test_accuracy` of the last network, `dense_test_accuracy`; none for an experiment that
        failed, which is told.
    """
    todo = [(each, seed) for each in chosen for seed in each.search.config.fresh_seeds()]
    total = len(todo)
    runs: dict[str, tuple[Chosen, int, str]] = {}
    names: dict[str, tuple[Chosen, int]] = {}
    while todo or workers.at_work:
        while todo and workers.free:
            each, seed = todo.pop(0)
            name = f"{each.search.method}, fresh seed {seed}"
            names[name] = each, seed
            config = each.search.config_of(each.params, seed)
            before = _before(config.model_copy(update={"dataset": each.search.dataset}))
            if isinstance(before, str):
                runs[name] = each, seed, before
                tell(f"{name}: done before")
            else:
                workers.start(name, experiment, before, each.run)
        if not workers.at_work:
            continue
        for name, outcome in workers.wait(_but_rounds(tell)).items():
            if outcome.run_id:
                runs[name] = *names[name], outcome.run_id
                accuracy = reached(outcome.run_id)["test_accuracy"]
                tell(f"{name}: test {accuracy:.4f} ({len(runs)} of {total})")
            else:
                if outcome.died:
                    store.close_dead(names[name][0].run, outcome.reason)
                tell(f"WARNING: {name} failed: {outcome.reason}; the same command tries it again")
    return _rows([runs[name] for name in names if name in runs])


def _but_rounds(tell: Tell) -> Tell:
    """Tells all but what begins a run and ends each round, of which there are many here."""
    return lambda line: None if ": round " in line or ": run " in line else tell(line)


def _before(config: Config) -> Config | str:
    """The run of the same experiment if it is finished, or the config that begins or resumes it."""
    data, _ = load_data(config)
    found = store.find_arm(config.resolved(data.name), data.digest)
    if found is None or store.is_at_work(found):
        return config
    if store.is_finished(found):
        return str(found.info.run_id)
    try:
        return to_resume(found.info.run_id, config.data_root)
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
