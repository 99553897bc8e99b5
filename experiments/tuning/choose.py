"""Choose: which trial of a study is recommended, by a rule that is stated beforehand.

Validation accuracy alone chooses. Tables are those of `Study.table`.
"""

import pandas as pd

from experiments.tuning.search import Search

ROUNDING = 1e-9


def complete(table: pd.DataFrame) -> pd.DataFrame:
    """The trials that went all the way."""
    return table[table["state"] == "complete"]


def front(table: pd.DataFrame) -> pd.DataFrame:
    """The complete trials that no other one beats in accuracy without costing more, by cost."""
    by_cost = ["total_epochs", "valid_accuracy", "number"]
    rows = complete(table).sort_values(by_cost, ascending=[True, False, True])
    best_so_far = rows["valid_accuracy"].astype(float).cummax().shift(fill_value=-1.0)
    return rows[rows["valid_accuracy"].astype(float) > best_so_far + ROUNDING]


def recommend(table: pd.DataFrame, search: Search) -> pd.Series:
    """The recommended trial.

    With objective=pareto it is the cheapest whose accuracy is within `tolerance` of the best; with
    objective=accuracy the most accurate that the budget pays for. Of equals, the cheaper one, then
    the earlier.

    Raises:
        ValueError: If no trial is complete.
    """
    rows = complete(table)
    if search.budget is not None:
        rows = rows[rows["retraining_epochs"] <= search.budget]
    if rows.empty:
        raise ValueError(f"no trial of {search.name} is complete, so nothing can be recommended")
    accuracy = rows["valid_accuracy"].astype(float)
    if search.config.objective == "pareto":
        close = rows[accuracy >= accuracy.max() - search.config.tolerance - ROUNDING]
        order, ascending = ["total_epochs", "valid_accuracy", "number"], [True, False, True]
    else:
        close = rows[accuracy >= accuracy.max() - ROUNDING]
        order, ascending = ["total_epochs", "number"], [True, True]
    return close.sort_values(order, ascending=ascending).iloc[0]


def rule(search: Search) -> str:
    """The rule of `recommend` in words."""
    if search.config.objective == "pareto":
        return (
            f"the cheapest trial within {100 * search.config.tolerance:g} points of the best "
            "validation accuracy"
        )
    return f"the trial of the best validation accuracy within {search.budget} epochs of retraining"


def at_equal_cost(table: pd.DataFrame) -> tuple[pd.Series, pd.Series] | None:
    """The baseline, and the most accurate trial that costs no more; None without a baseline."""
    rows = complete(table)
    first = rows[(rows["number"] == 0) | (rows["again_for"] == 0)]
    if first.empty:
        return None
    baseline = first.iloc[-1]
    payable = rows[rows["total_epochs"] <= baseline["total_epochs"]]
    order = ["valid_accuracy", "total_epochs", "number"]
    return baseline, payable.sort_values(order, ascending=[False, True, True]).iloc[0]
