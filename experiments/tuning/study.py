"""Study: which trials there are, who does which, and what became of them.

Any number of processes on any number of machines work on a study through its storage alone. A
trial that is to be done waits there; to claim it, a process makes it RUNNING, which only one can.
Whoever does a trial shows that he lives by a lock on his machine and by a heartbeat in the
storage. A trial whose process died becomes FAIL without a reason: it is *lost*, does not count,
and its parameters are put to the end of the queue, once. All others count. A process claims only
one of the first `trials` that count, so there are never more than were asked for.
"""

import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import optuna
import pandas as pd
from optuna.exceptions import DuplicatedStudyError, UpdateFinishedTrialError
from optuna.storages import fail_stale_trials
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from experiments.config.space import Value
from experiments.processes.locks import HEARTBEAT_SECONDS, heartbeat, is_alive, lock_name, run_lock
from experiments.tuning.sampling import EqualSparsityPruner, distributions, draw
from experiments.tuning.search import Search
from experiments.tuning.storage import (
    FAILURE,
    ORIGINAL,
    UNREACHABLE,
    Storage,
    is_lost,
    original_number,
    retry_lost,
)
from experiments.tuning.table import table_of

SETTINGS = "settings"  # name of a study's note
LOCK, WORKER = "lock", "worker"  # names of a trial's notes


@dataclass(frozen=True)
class Claim:
    """A trial that this process does."""

    id: int  # in the storage
    number: int  # in the study


class TakenError(Exception):
    """The trial was taken from this process, which gave no sign of life for too long."""


@contextmanager
def _ours() -> Iterator[None]:
    try:
        yield
    except UpdateFinishedTrialError:
        raise TakenError from None


class Study:
    """A study in an open storage."""

    def __init__(self, search: Search, storage: Storage) -> None:
        self.search, self.storage, self.rdb = search, storage, storage.rdb
        self.optuna = storage.patiently(self._load)
        self._id = storage.patiently(lambda: self.rdb.get_study_id_from_name(search.name))

    def _load(self) -> optuna.Study:
        single = self.search.config.objective == "accuracy"
        directions = [StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE][: 1 if single else 2]
        name, storage = self.search.name, self.rdb
        with suppress(DuplicatedStudyError):
            made = optuna.create_study(study_name=name, storage=storage, directions=directions)
            if not single:
                made.set_metric_names(["valid_accuracy", "total_epochs"])
            return made
        return optuna.load_study(study_name=name, storage=storage)

    def check_settings(self) -> None:
        """See that the study asks what this search asks.

        Raises:
            ValueError: If it was begun with other settings.
        """
        mine = self.search.settings()
        theirs = self.noted(SETTINGS, self.search.settings)
        different = [
            f"{name} (here {mine.get(name)}, there {theirs.get(name)})"
            for name in mine | theirs
            if mine.get(name) != theirs.get(name)
        ]
        if different:
            raise ValueError(
                f"the study {self.search.name} was begun with other settings: "
                f"{', '.join(different)}; choose another name with study="
            )

    def noted(self, name: str, make: Callable[[], Any]) -> Any:
        """A note on the study, which `make` gives where there is none yet."""

        def read() -> Any:
            with self.storage.sole():
                found = self.rdb.get_study_user_attrs(self._id).get(name)
                if found is None:
                    found = make()
                    self.rdb.set_study_user_attr(self._id, name, found)
                return found

        return self.storage.patiently(read)

    def trials(self) -> list[FrozenTrial]:
        """All there are, by number."""
        return self.storage.patiently(lambda: self.optuna.get_trials(deepcopy=False))

    # Who does what

    def fill_up(self) -> None:
        """Let as many trials wait as are missing to what was asked for."""

        def add() -> None:
            with self.storage.sole():
                there = [trial for trial in self.trials() if not is_lost(trial)]
                missing = self.search.config.trials - len(there)
                with_default = any(original_number(trial) == 0 for trial in there)
                for number in range(missing):
                    default = {ORIGINAL: 0} if not number and not with_default else {}
                    new = create_trial(state=TrialState.WAITING, system_attrs=default)
                    self.optuna.add_trial(new)

        self.storage.patiently(add)

    def counted(self) -> list[FrozenTrial]:
        """The trials that this search is about: the first ones that are not lost."""
        found = [trial for trial in self.trials() if not is_lost(trial)]
        return found[: self.search.config.trials]

    def waiting(self) -> int:
        """How many trials can be claimed."""
        return sum(trial.state == TrialState.WAITING for trial in self.counted())

    def ended(self) -> int:
        """How many of them have ended."""
        return sum(trial.state.is_finished() for trial in self.counted())

    @contextmanager
    def claim(self) -> Iterator[Claim | None]:
        """A trial to do, if there is one; it is ours until the end of the context."""
        with ExitStack() as held:
            for trial in self.counted():
                claim = Claim(trial._trial_id, trial.number)
                if trial.state == TrialState.WAITING and self._take(claim, held):
                    yield claim
                    return
        yield None

    def _take(self, claim: Claim, held: ExitStack) -> bool:
        """Make a trial ours until `held` is left, unless another process is faster."""
        key = self._key(claim.id)
        with ExitStack() as ours:
            try:
                ours.enter_context(run_lock(key))
            except ValueError:
                return False
            if not self.storage.patiently(lambda: self._to_running(claim.id, lock_name(key))):
                return False
            ours.enter_context(heartbeat(lambda: self._beat(claim.id)))
            held.enter_context(ours.pop_all())
        return True

    def _to_running(self, trial_id: int, lock: str) -> bool:
        with self.storage.sole():
            if self.rdb.get_trial(trial_id).state != TrialState.WAITING:
                return False
            # Whoever is RUNNING has signed already, so that his death can be seen.
            self.rdb.record_heartbeat(trial_id)
            self.rdb.set_trial_user_attr(trial_id, LOCK, lock)
            self.rdb.set_trial_user_attr(trial_id, WORKER, f"{socket.gethostname()} {os.getpid()}")
            return self.rdb.set_trial_state_values(trial_id, TrialState.RUNNING)

    def _beat(self, trial_id: int) -> None:
        with suppress(*UNREACHABLE):  # a lost storage shows when a round is reported
            self.rdb.record_heartbeat(trial_id)

    def _key(self, trial_id: int) -> str:
        """What the lock of a trial is called by."""
        text = f"{self.storage.url} {self.search.name} {trial_id}"
        return blake2b(text.encode(), digest_size=16).hexdigest()

    def sweep(self) -> None:
        """Take the trials of dead processes from them."""
        for trial in self.trials():
            key = self._key(trial._trial_id)
            here = trial.user_attrs.get(LOCK) == lock_name(key)
            if trial.state != TrialState.RUNNING or not here:
                continue
            if is_alive(key, trial.user_attrs):
                self._beat(trial._trial_id)  # for it: the storage may have been away
            else:
                self.lose(trial._trial_id)
        if self.storage.was_away(within=2 * HEARTBEAT_SECONDS):
            return  # others have had no chance to give a sign of life

        def fail_stale() -> None:
            with self.storage.sole():
                fail_stale_trials(self.optuna)

        self.storage.patiently(fail_stale)

    def lose(self, trial_id: int, counted: bool = True) -> None:
        """Take a trial from its process; its parameters are tried again, if they may be.

        Args:
            counted: Whether this is one of its `RETRIES`; somebody's Ctrl-C is not.
        """

        def fail() -> None:
            with self.storage.sole(), suppress(UpdateFinishedTrialError):
                if self.rdb.set_trial_state_values(trial_id, TrialState.FAIL):
                    retry_lost(self.optuna, self.rdb.get_trial(trial_id), counted)

        self.storage.patiently(fail)

    # One trial

    def params(self, claim: Claim) -> dict[str, Value]:
        """What to try: the baseline first, what was lost once more, or what the sampler draws."""

        def choose() -> dict[str, Value]:
            trial, known = self.rdb.get_trial(claim.id), distributions(self.search.space)
            params = trial.params
            if original_number(trial) == 0:
                params = self.search.baseline
            elif params.keys() != known.keys():
                params = draw(self.optuna, trial, self.search) | params
            for name in known.keys() - trial.params.keys():
                value = known[name].to_internal_repr(params[name])
                self.rdb.set_trial_param(claim.id, name, value, known[name])
            return dict(params)

        with _ours():
            return self.storage.patiently(choose)

    def write(self, claim: Claim, name: str, value: Any) -> None:
        """Write a note on a trial; raises `TakenError` if it is no longer ours."""
        with _ours():
            self.storage.patiently(lambda: self.rdb.set_trial_user_attr(claim.id, name, value))

    def report(self, claim: Claim, values: Mapping[int, float]) -> bool:
        """Keep accuracies by level of sparsity; whether the trial should be stopped early.

        Raises:
            TakenError: If the trial is no longer ours.
        """

        def add() -> bool:
            for step, value in values.items():
                self.rdb.set_trial_intermediate_value(claim.id, step, value)
            if original_number(trial := self.rdb.get_trial(claim.id)) == 0:
                return False  # the baseline is what all others are measured by
            return EqualSparsityPruner().prune(self.optuna, trial)

        with _ours():
            return self.storage.patiently(add)

    def end(self, claim: Claim, values: Sequence[float] | None, failure: str = "") -> bool:
        """Note how a trial ended; whether it was still ours to end.

        Args:
            values: Of the objectives; None if it was stopped early or failed.
            failure: Why it failed, if it did.
        """

        def echo() -> bool:
            state, told = TrialState.COMPLETE, values
            if failure:
                state = TrialState.FAIL
            elif values is None:
                trial = self.rdb.get_trial(claim.id)
                assert trial.last_step is not None
                state, told = TrialState.PRUNED, [trial.intermediate_values[trial.last_step]]
            with suppress(UpdateFinishedTrialError), self.storage.sole():
                if failure:
                    self.rdb.set_trial_user_attr(claim.id, FAILURE, failure)
                self.rdb.set_trial_state_values(claim.id, state, told)
            return not is_lost(self.rdb.get_trial(claim.id))

        return self.storage.patiently(echo)

    def table(self) -> pd.DataFrame:
        """What came of it, a row for each trial (see `table_of`)."""
        return table_of(self.trials(), self.search.space)

    def params_of(self, number: int) -> dict[str, Value]:
        """The parameters of a trial."""
        return dict(self.trials()[number].params)
