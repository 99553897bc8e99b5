"""Study: its trials, which process runs which, and how they end.

Any number of processes on any number of machines work on a study through its storage alone. A new
trial is WAITING; a process claims it by making it RUNNING, which only one process can do, and shows
that it is alive by a lock on its machine and a heartbeat in the storage. If the process dies, the
trial becomes FAIL without a reason: it is *lost*, does not count, and its parameters are enqueued
once more. All other trials count, and only the first `trials` that count can be claimed, so there
are never more than the search asks for.
"""

import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any

import optuna
import pandas as pd
from optuna.exceptions import DuplicatedStudyError, UpdateFinishedTrialError
from optuna.storages import fail_stale_trials
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from experiments.config.space import Value, contains, format_space, parse_space
from experiments.processes.locks import HEARTBEAT_SECONDS, heartbeat, is_alive, lock_name, run_lock
from experiments.processes.retry import Result
from experiments.tuning.choose import WORKER, table_of
from experiments.tuning.sampling import chosen, distributions, sample, should_stop
from experiments.tuning.search import Search
from experiments.tuning.storage import (
    FAILURE,
    ORIGINAL,
    UNREACHABLE,
    Storage,
    enqueue_again,
    is_lost,
    original_number,
)

SETTINGS = "settings"  # attribute of a study
LOCK = "lock"  # attribute of a trial


@dataclass(frozen=True)
class Claim:
    """A trial that this process runs."""

    id: int  # in the storage
    number: int  # in the study


class TakenError(Exception):
    """The trial was taken from this process, whose heartbeat had stopped for too long."""


class Study:
    """A study in an open storage."""

    def __init__(self, search: Search, storage: Storage) -> None:
        self.search, self.storage, self.rdb = search, storage, storage.rdb
        self.optuna = storage.retry(self._load)

    def _load(self) -> optuna.Study:
        objectives, name, storage = self.search.objectives, self.search.name, self.rdb
        directions = [StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE][: len(objectives)]
        with suppress(DuplicatedStudyError):
            made = optuna.create_study(study_name=name, storage=storage, directions=directions)
            if len(objectives) > 1:
                made.set_metric_names(list(objectives))
            return made
        return optuna.load_study(study_name=name, storage=storage)

    def check_settings(self) -> None:
        """Refuse a study that another search began; ranges may only become wider.

        Raises:
            ValueError: If its settings differ, or were stored by another version of this program.
        """
        mine = self.search.settings()

        def check() -> str:
            with self.storage.lock():  # commands that widen at the same time see each other
                stored = self.optuna.user_attrs.get(SETTINGS)
                problem = "" if stored is None else _difference(mine, stored)
                if not problem and mine != stored:
                    self.optuna.set_user_attr(SETTINGS, mine)
                return problem

        if problem := self.storage.retry(check):
            raise ValueError(
                f"the study {self.search.name} was begun {problem}; choose another name with study="
            )

    def with_stored_space(self) -> "Study":
        """The same study with the stored ranges, which another command may have widened."""
        space = self.get_or_create_attr(SETTINGS, self.search.settings)["space"]
        if space == format_space(self.search.space):
            return self
        config = self.search.config.model_copy(update={"search": space})
        return Study(replace(self.search, config=config), self.storage)

    def get_or_create_attr(self, name: str, create: Callable[[], Any]) -> Any:
        """An attribute of the study; the result of `create` if it has none yet."""

        def get() -> Any:
            with self.storage.lock():
                value = self.optuna.user_attrs.get(name)
                if value is None:
                    value = create()
                    self.optuna.set_user_attr(name, value)
                return value

        return self.storage.retry(get)

    def trials(self) -> list[FrozenTrial]:
        """All trials, by number."""
        return self.storage.retry(lambda: self.optuna.get_trials(deepcopy=False))

    def counted(self) -> list[FrozenTrial]:
        """The trials that count for this search: its first ones that are not lost."""
        kept = [trial for trial in self.trials() if not is_lost(trial)]
        return kept[: self.search.config.trials]

    def waiting(self) -> int:
        """How many trials can be claimed."""
        return sum(trial.state == TrialState.WAITING for trial in self.counted())

    def ended(self) -> int:
        """How many trials have ended."""
        return sum(trial.state.is_finished() for trial in self.counted())

    def table(self) -> pd.DataFrame:
        """The trials, one per row (see `table_of`)."""
        return table_of(self.trials(), self.search.space)

    # Which process runs which trial

    def enqueue_missing(self) -> None:
        """Enqueue as many trials as are missing."""

        def enqueue() -> None:
            with self.storage.lock():
                kept = [trial for trial in self.trials() if not is_lost(trial)]
                missing = self.search.config.trials - len(kept)
                has_baseline = any(original_number(trial) == 0 for trial in kept)
                for number in range(missing):
                    attrs = {ORIGINAL: 0} if not number and not has_baseline else {}
                    new = create_trial(state=TrialState.WAITING, system_attrs=attrs)
                    self.optuna.add_trial(new)

        self.storage.retry(enqueue)

    @contextmanager
    def claim(self) -> Iterator[Claim | None]:
        """Claim a waiting trial until the end of the context; None if none waits."""
        with ExitStack() as held:
            for trial in self.counted():
                claim = Claim(trial._trial_id, trial.number)
                if trial.state == TrialState.WAITING and self._try_claim(claim, held):
                    yield claim
                    return
        yield None

    def _try_claim(self, claim: Claim, held: ExitStack) -> bool:
        """Claim a trial until `held` closes, unless another process is faster."""
        key = self._lock_key(claim.id)
        with ExitStack() as stack:
            try:
                stack.enter_context(run_lock(key))
            except ValueError:
                return False
            if not self.storage.retry(lambda: self._set_running(claim.id, lock_name(key))):
                return False
            stack.enter_context(heartbeat(lambda: self._write_heartbeat(claim.id)))
            held.enter_context(stack.pop_all())
        return True

    def _set_running(self, trial_id: int, lock: str) -> bool:
        with self.storage.lock():
            if self.rdb.get_trial(trial_id).state != TrialState.WAITING:
                return False
            # These come first, so that a RUNNING trial always shows whether its process is alive.
            self.rdb.record_heartbeat(trial_id)
            self.rdb.set_trial_user_attr(trial_id, LOCK, lock)
            self.rdb.set_trial_user_attr(trial_id, WORKER, f"{socket.gethostname()} {os.getpid()}")
            return self.rdb.set_trial_state_values(trial_id, TrialState.RUNNING)

    def _write_heartbeat(self, trial_id: int) -> None:
        with suppress(*UNREACHABLE):  # an outage is noticed when the next round is recorded
            self.rdb.record_heartbeat(trial_id)

    def _lock_key(self, trial_id: int) -> str:
        text = f"{self.storage.url} {self.search.name} {trial_id}"
        return blake2b(text.encode(), digest_size=16).hexdigest()

    def reclaim_dead(self) -> None:
        """Enqueue the trials of dead processes again."""
        for trial in self.trials():
            key = self._lock_key(trial._trial_id)
            here = trial.user_attrs.get(LOCK) == lock_name(key)
            if trial.state != TrialState.RUNNING or not here:
                continue
            if is_alive(key, trial.user_attrs):
                self._write_heartbeat(trial._trial_id)  # an outage may have silenced it
            else:
                self.requeue(trial._trial_id)
        if time.monotonic() - self.storage.recovered < 2 * HEARTBEAT_SECONDS:
            return  # other machines have had no time to renew their heartbeats

        def fail_stale() -> None:
            with self.storage.lock():
                fail_stale_trials(self.optuna)

        self.storage.retry(fail_stale)

    def requeue(self, trial_id: int, counted: bool = True) -> None:
        """Mark a trial lost, and enqueue its parameters again if it may be retried.

        Args:
            counted: Whether this is one of its `RETRIES`; an interrupt is not.
        """

        def fail() -> None:
            with self.storage.lock(), suppress(UpdateFinishedTrialError):
                if self.rdb.set_trial_state_values(trial_id, TrialState.FAIL):
                    enqueue_again(self.optuna, self.rdb.get_trial(trial_id), counted)

        self.storage.retry(fail)

    # A claimed trial. These raise `TakenError` if it is no longer ours.

    def _retry(self, do: Callable[[], Result]) -> Result:
        try:
            return self.storage.retry(do)
        except UpdateFinishedTrialError:
            raise TakenError from None

    def params(self, claim: Claim) -> dict[str, Value]:
        """Its parameters: those of the lost trial that it retries, or new ones."""

        def choose() -> dict[str, Value]:
            trial, known = self.rdb.get_trial(claim.id), distributions(self.search.space)
            if trial.params.keys() == known.keys():
                return dict(trial.params)
            while True:
                others = chosen(self.optuna, trial)
                params = sample(self.optuna, trial, self.search)  # a second, without the lock
                with self.storage.lock():
                    if params in chosen(self.optuna, trial) and params not in others:
                        continue  # another process has chosen them in this second
                    for name, rule in known.items():  # in this order, for the columns of tables
                        if name not in trial.params:
                            value = rule.to_internal_repr(params[name])
                            self.rdb.set_trial_param(claim.id, name, value, rule)
                    return params

        return self._retry(choose)

    def set_attr(self, claim: Claim, name: str, value: Any) -> None:
        """Set an attribute of the trial."""
        self._retry(lambda: self.rdb.set_trial_user_attr(claim.id, name, value))

    def record_levels(self, claim: Claim, values: Mapping[int, float]) -> bool:
        """Store accuracies by level of sparsity; returns whether the trial should stop early."""

        def record() -> bool:
            for step, value in values.items():
                self.rdb.set_trial_intermediate_value(claim.id, step, value)
            if original_number(trial := self.rdb.get_trial(claim.id)) == 0:
                return False  # the baseline is what the other trials are compared with
            return should_stop(self.optuna, trial)

        return self._retry(record)

    def end(self, claim: Claim, values: Sequence[float] | None, failure: str = "") -> bool:
        """Store how the trial ended; returns False if it was no longer ours, and raises nothing.

        Args:
            values: Of the objectives; None if it was stopped early or failed.
            failure: Why it failed, if it did.
        """

        def store() -> bool:
            state, final = TrialState.COMPLETE, values
            if failure:
                state = TrialState.FAIL
            elif values is None:
                trial = self.rdb.get_trial(claim.id)
                assert trial.last_step is not None
                state, final = TrialState.PRUNED, [trial.intermediate_values[trial.last_step]]
            with suppress(UpdateFinishedTrialError), self.storage.lock():
                if failure:
                    self.rdb.set_trial_user_attr(claim.id, FAILURE, failure)
                self.rdb.set_trial_state_values(claim.id, state, final)
            return not is_lost(self.rdb.get_trial(claim.id))

        return self.storage.retry(store)


def _difference(mine: Mapping[str, Any], stored: Mapping[str, Any]) -> str:
    """How a study was begun with settings that rule out mine; empty if mine continue it."""
    if stored.keys() != mine.keys() or stored["scheme"] != mine["scheme"]:
        return "by another version of this program"
    different = [name for name in mine if mine[name] != stored[name]]
    if different == ["space"]:
        spaces = parse_space(mine["space"]), parse_space(stored["space"])
        different = [] if contains(*spaces) else different
    values = [f"{name} (here {mine[name]}, there {stored[name]})" for name in different]
    return f"with other settings: {', '.join(values)}" if values else ""
