"""Choose: the trials of a study as a table, and the one that is recommended.

The rule is fixed beforehand and uses validation accuracy only.
"""

from collections.abc import Collection, Iterable

import pandas as pd
from optuna.trial import FrozenTrial, TrialState

from experiments.tuning.search import Search
from experiments.tuning.storage import FAILURE, HISTORY, RETRIES, is_lost, original_number

RESULT, RUN, WORKER = "result", "mlflow_run_id", "worker"  # attributes of a trial
RESULTS = ("valid_accuracy", "total_epochs", "retraining_epochs", "rounds", "sparsity", "seconds")
STATES = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "stopped early",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}
ROUNDING = 1e-9


def table_of(trials: Iterable[FrozenTrial], names: Iterable[str]) -> pd.DataFrame:
    """The trials of a study, one per row (`trials.csv`).

    Args:
        names: The parameters that are searched.

    Returns:
        `valid_accuracy` and `sparsity` in [0, 1]; `total_epochs` with the dense network's,
        `retraining_epochs` without; `seconds` without a dense network from an earlier trial. A
        trial that stopped early has its last results; `again_for` is the number of the lost trial
        that it retries.
    """
    rows = []
    for trial in trials:
        original = original_number(trial)
        row = {
            "number": trial.number,
            "state": "lost" if is_lost(trial) else STATES[trial.state],
            "reason": trial.user_attrs.get(FAILURE, ""),
            **{name: trial.params.get(name) for name in names},
            **dict.fromkeys(RESULTS),
            **trial.user_attrs.get(RESULT, {}),
            "again_for": original if original != trial.number else None,
            "worker": trial.user_attrs.get(WORKER, ""),
            "run_id": trial.user_attrs.get(RUN, ""),
            "started": trial.datetime_start,
            "ended": trial.datetime_complete,
        }
        rows.append(row)
    return pd.DataFrame(rows)


def latest_failures(trials: Iterable[FrozenTrial], ignored: Collection[int]) -> list[str]:
    """Why the latest trials failed in a row; a lost trial counts only if it was a retry.

    Args:
        ignored: Numbers of trials that ended before.
    """
    ended = [each for each in trials if each.state.is_finished() and each.number not in ignored]
    reasons: list[str] = []
    for trial in sorted(ended, key=lambda each: str(each.datetime_complete)):
        if trial.state != TrialState.FAIL:
            reasons = []
        elif not is_lost(trial):
            reasons.append(trial.user_attrs[FAILURE])
        elif len(trial.system_attrs.get(HISTORY, [])) >= RETRIES:
            reasons.append("its process died, twice")
    return reasons


def complete(table: pd.DataFrame) -> pd.DataFrame:
    """The trials that pruned to the end."""
    return table[table["state"] == "complete"]


def front(table: pd.DataFrame) -> pd.DataFrame:
    """The Pareto front of accuracy against epochs: its complete trials, cheapest first."""
    by_cost = ["total_epochs", "valid_accuracy", "number"]
    rows = complete(table).sort_values(by_cost, ascending=[True, False, True])
    best_so_far = rows["valid_accuracy"].astype(float).cummax().shift(fill_value=-1.0)
    return rows[rows["valid_accuracy"].astype(float) > best_so_far + ROUNDING]


def recommend(table: pd.DataFrame, search: Search) -> pd.Series:
    """The recommended trial.

    With objective=pareto it is the cheapest one whose accuracy is within `tolerance` of the best;
    with objective=accuracy it is the most accurate one within the budget. Ties go to the cheaper,
    then to the earlier trial.

    Raises:
        ValueError: If no trial is complete.
    """
    rows = complete(table)
    if search.budget is not None:
        rows = rows[rows["retraining_epochs"] <= search.budget]
    if rows.empty:
        raise ValueError(f"no trial of {search.name} is complete, so none can be recommended")
    accuracy = rows["valid_accuracy"].astype(float)
    if search.config.objective == "pareto":
        close = rows[accuracy >= accuracy.max() - search.config.tolerance - ROUNDING]
        order, ascending = ["total_epochs", "valid_accuracy", "number"], [True, False, True]
    else:
        close = rows[accuracy >= accuracy.max() - ROUNDING]
        order, ascending = ["total_epochs", "number"], [True, True]
    return close.sort_values(order, ascending=ascending).iloc[0]


def describe_rule(search: Search) -> str:
    """The rule of `recommend` as a phrase."""
    if search.config.objective == "pareto":
        return (
            f"the cheapest trial within {100 * search.config.tolerance:g} points of the best "
            "validation accuracy"
        )
    return (
        f"the trial with the best validation accuracy within {search.budget} epochs of retraining"
    )


def baseline_of(table: pd.DataFrame) -> pd.Series | None:
    """The trial of the default, or of its retry; None if it is not complete."""
    rows = complete(table)
    first = rows[(rows["number"] == 0) | (rows["again_for"] == 0)]
    return None if first.empty else first.iloc[-1]


def at_equal_cost(table: pd.DataFrame) -> tuple[pd.Series, pd.Series] | None:
    """The default, and the best trial that costs no more; None without a complete default."""
    baseline, rows = baseline_of(table), complete(table)
    if baseline is None:
        return None
    no_dearer = rows[rows["total_epochs"] <= baseline["total_epochs"]]
    order = ["valid_accuracy", "total_epochs", "number"]
    return baseline, no_dearer.sort_values(order, ascending=[False, True, True]).iloc[0]
