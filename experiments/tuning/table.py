"""Table: the trials of a study as rows that pandas reads (`trials.csv`)."""

from collections.abc import Collection, Iterable
from typing import Any

import pandas as pd
from optuna.trial import FrozenTrial, TrialState

from experiments.tuning.storage import FAILURE, HISTORY, RETRIES, is_lost, original_number

RESULT, RUN = "result", "mlflow_run_id"  # names of a trial's notes
RESULTS = ("valid_accuracy", "total_epochs", "retraining_epochs", "rounds", "sparsity", "seconds")
STATES = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "stopped early",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}


def table_of(trials: Iterable[FrozenTrial], names: Iterable[str]) -> pd.DataFrame:
    """A row a trial: number, state, reason, parameters, what it came to, run, and times.

    Args:
        names: Of the parameters that were searched.

    Returns:
        `valid_accuracy` and `sparsity` in [0, 1]; `total_epochs` with the dense network's,
        `retraining_epochs` without; `seconds` without a dense network that was there already. A
        trial that was stopped early has what it got to; `again_for` is the number of the lost
        trial that it is another try of.
    """
    rows = []
    for trial in trials:
        row: dict[str, Any] = {
            "number": trial.number,
            "state": "lost" if is_lost(trial) else STATES[trial.state],
            "reason": trial.user_attrs.get(FAILURE, ""),
        }
        row |= {name: trial.params.get(name) for name in names}
        row |= dict.fromkeys(RESULTS) | trial.user_attrs.get(RESULT, {})
        row |= {
            "again_for": original_number(trial) if original_number(trial) != trial.number else None,
            "worker": trial.user_attrs.get("worker", ""),
            "run_id": trial.user_attrs.get(RUN, ""),
            "started": trial.datetime_start,
            "ended": trial.datetime_complete,
        }
        rows.append(row)
    return pd.DataFrame(rows)


def states_of(table: pd.DataFrame) -> dict[str, str]:
    """How trials ended, by the id of their run."""
    return dict(zip(table["run_id"], table["state"], strict=True)) if len(table) else {}


def latest_failures(trials: Iterable[FrozenTrial], before: Collection[int]) -> list[str]:
    """Why the latest trials failed, back to the last one that did not.

    Args:
        before: Numbers of those that had ended before, and do not count.

    Of a trial that was lost only the second time counts.
    """
    ended = [each for each in trials if each.state.is_finished() and each.number not in before]
    reasons: list[str] = []
    for trial in sorted(ended, key=lambda each: str(each.datetime_complete)):
        if trial.state != TrialState.FAIL:
            reasons = []
        elif not is_lost(trial):
            reasons.append(trial.user_attrs[FAILURE])
        elif len(trial.system_attrs.get(HISTORY, [])) >= RETRIES:
            reasons.append("its process died, twice")
    return reasons
