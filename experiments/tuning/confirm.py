"""Confirm: retrain and test what each study found, and its default, with seeds of their own.

No trial has used these seeds, and both settings use the same ones, so they are compared in pairs.
Networks of a seed share one dense network where they may: the first of them trains it, and the
others branch off its run. Only here does a search use test images. Experiments that have already
run are reused.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import pandas as pd

from experiments.config.experiment import Config
from experiments.config.fields import NONE
from experiments.config.parameters import as_text, default_text
from experiments.config.space import Value
from experiments.processes.signals import raise_if_interrupted
from experiments.processes.tasks import Executor
from experiments.processes.terminal import Echo
from experiments.rounds.data import load_data
from experiments.run import run_nested
from experiments.tracking.claims import LOOK_SECONDS, Claims
from experiments.tracking.paste import command_to_paste
from experiments.tracking.resume import is_finished, other_versions_note
from experiments.tuning.fronts import FOUND
from experiments.tuning.runs import REACHED, close_dead_experiments, results_of
from experiments.tuning.search import Search
from experiments.tuning.study import Study

DEFAULT = "default"  # with FOUND, the settings of a study that are compared


@dataclass(frozen=True)
class Recommendation:
    """The recommended trial of a study, which may be its default."""

    study: Study
    number: int
    params: dict[str, Value]
    study_run: str
    default: int | None  # number of the default's trial, if it is complete

    @property
    def search(self) -> Search:
        """The search of the study."""
        return self.study.search

    @property
    def is_default(self) -> bool:
        """Whether the default itself is recommended."""
        return self.params == self.search.baseline

    @property
    def settings(self) -> dict[str, tuple[int, dict[str, Value]]]:
        """The number and the parameters of each trial that is compared, by `FOUND` or `DEFAULT`."""
        found = {} if self.is_default else {FOUND: (self.number, self.params)}
        default = self.number if self.is_default else self.default
        return found | ({} if default is None else {DEFAULT: (default, self.search.baseline)})

    def command(self, params: Mapping[str, Value], portable: bool = True) -> str:
        """The command that trains such a network, with all parameters that are not the default.

        `portable` is as in `command_to_paste`.
        """
        config = self.search.config_of(params).model_copy(update={"dataset": self.search.dataset})
        shown = {
            name: as_text(value)
            for name, value in config.model_dump().items()
            if as_text(value) != default_text(Config.model_fields[name])
            or name in (*self.search.space, "reinit", "dataset")
        }
        return command_to_paste("run", shown, portable)


@dataclass(frozen=True)
class Task:
    """An experiment with a fresh seed."""

    of: Recommendation
    setting: str
    seed: int

    @property
    def name(self) -> str:
        """A name for messages."""
        setting = f", {DEFAULT}" if self.setting == DEFAULT else ""
        return f"{self.of.search.method}{setting}, fresh seed {self.seed}"

    @property
    def trial(self) -> int:
        """The number of the trial whose setting it has."""
        return self.of.settings[self.setting][0]

    def config(self, base_run: str = NONE) -> Config:
        """Its config; the dense network is that of `base_run`."""
        asked = self.of.search.config_of(self.of.settings[self.setting][1], self.seed)
        update = {"dataset": self.of.search.dataset, "branch_of": base_run}
        return asked.model_copy(update=update)

    @property
    def dense(self) -> str:
        """What its dense network depends on."""
        return json.dumps(self.config().dense_settings(), sort_keys=True)


@dataclass
class Confirmation:
    """The experiments with fresh seeds: which wait, and the runs of those that have ended."""

    tasks: dict[str, Task]  # by name
    workers: Executor
    echo: Echo
    claims: Claims
    runs: dict[str, str] = field(default_factory=dict)  # of the finished ones
    ended: set[str] = field(default_factory=set)
    data: dict[int, tuple[str, str]] = field(default_factory=dict)  # name and digest, by seed
    in_other_processes: set[str] = field(default_factory=set)

    def run(self) -> None:
        """Run all experiments that have not run yet."""
        waiting = dict(self.tasks)
        first: dict[str, str] = {}  # the names of the tasks that train the dense networks
        while waiting or self.workers.running:
            for name, task in list(waiting.items()):
                base = first.setdefault(task.dense, name)
                ready = base == name or base in self.ended
                if self.workers.has_room and ready and self._start(task, self.runs.get(base, NONE)):
                    del waiting[name]
            if self.workers.running:
                waiting |= self._wait()
            elif waiting:  # the rest is in other processes
                raise_if_interrupted()
                time.sleep(LOOK_SECONDS)

    def _start(self, task: Task, base_run: str) -> bool:
        """Start an experiment unless it has already run; false if another process is running it."""
        config = task.config(base_run)
        if task.seed not in self.data:
            data, _ = load_data(config)
            self.data[task.seed] = data.name, data.digest
        dataset, data_digest = self.data[task.seed]
        earlier = self.claims.claim(task.name, config, dataset, data_digest)
        if earlier is None:
            if task.name not in self.in_other_processes:
                self.echo(f"{task.name}: waiting for another process that is running it")
            self.in_other_processes.add(task.name)
            return False
        if earlier.run and is_finished(earlier.run):
            self.runs[task.name] = earlier.run.info.run_id
            self.ended.add(task.name)
            self.claims.release(task.name)
            self.echo(f"{task.name}: found an earlier run")
        else:
            on_others = task.of.search.config.executor == "ray"
            digest = data_digest if on_others else None
            self.workers.submit(task.name, run_nested, earlier.config, task.of.study_run, digest)
        return True

    def _wait(self) -> dict[str, Task]:
        """Wait until an experiment ends, and note its run; returns tasks that others have taken."""
        taken = {}

        def without_rounds(line: str) -> None:
            if ": round " not in line and ": run " not in line:
                self.echo(line)

        for name, outcome in self.workers.wait(without_rounds).items():
            self.claims.release(name, outcome.duplicate)
            if outcome.duplicate:
                taken[name] = self.tasks[name]
                continue
            self.ended.add(name)
            if outcome.run_id:
                self.runs[name] = outcome.run_id
                accuracy = results_of(outcome.run_id)["test_accuracy"]
                self.echo(f"{name}: test {accuracy:.4f} ({len(self.runs)} of {len(self.tasks)})")
                continue
            if outcome.died:
                close_dead_experiments(self.tasks[name].of.study_run, outcome.reason)
            self.echo(f"WARNING: {name} failed: {outcome.reason}; the same command tries it again")
        return taken


def confirm(recommended: list[Recommendation], workers: Executor, echo: Echo) -> pd.DataFrame:
    """Retrain the recommended trial and the default of each study with fresh seeds.

    Returns:
        A row for each method, setting and seed: `method`, `setting` (`FOUND` or `DEFAULT`),
        `trial`, `seed`, `run_id`, `valid_accuracy` and `test_accuracy` of the last network,
        `dense_test_accuracy`. If the default is recommended, it is the only setting. An experiment
        that fails has no row, but a warning.
    """
    tasks = [
        Task(each, setting, seed)
        for each in recommended
        for setting in each.settings
        for seed in each.search.config.fresh_seeds()
    ]
    if tasks and (
        note := other_versions_note(tasks[0].of.search.dataset, tasks[0].of.search.model)
    ):
        echo(note)
    with Claims() as claims:
        confirmation = Confirmation({task.name: task for task in tasks}, workers, echo, claims)
        confirmation.run()
    rows = [
        {"method": task.of.search.method, "setting": task.setting, "trial": task.trial}
        | {"seed": task.seed, "run_id": confirmation.runs[task.name]}
        | results_of(confirmation.runs[task.name])
        for task in tasks
        if task.name in confirmation.runs
    ]
    return pd.DataFrame(rows, columns=["method", "setting", "trial", "seed", "run_id", *REACHED])
