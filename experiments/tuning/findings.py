"""Findings: the numbers behind the figures of a study.

Where there are too few trials for a number, or they are too much alike, there is none.
"""

from dataclasses import dataclass
from functools import partial
from itertools import combinations

import numpy as np
import optuna
import pandas as pd
from numpy.typing import NDArray
from optuna.importance import FanovaImportanceEvaluator, get_param_importances
from optuna.trial import FrozenTrial, TrialState

from experiments.config.space import Range
from experiments.tuning.fronts import Found, found_in
from experiments.tuning.sampling import LEVEL
from experiments.tuning.search import Search
from experiments.tuning.study import Study

ENOUGH = 8  # complete trials, to say which parameter matters or what lies between trials
PAIRS = 6  # at most, of parameters in a picture
NOISE = 1e-9  # what objectives must differ by
OBJECTIVES = ("validation accuracy", "epochs of training")
SHOWN = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "stopped early"}


@dataclass(frozen=True)
class Findings:
    """What the pictures of a study show, all of the same moment."""

    search: Search
    table: pd.DataFrame  # as `Study.table`
    found: Found
    optuna: optuna.Study  # a copy in memory
    importances: pd.DataFrame
    levels: pd.DataFrame

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """The parameters that accuracy can be shown over, two at a time."""
        return pairs_of(self.found.complete, self.search)


def findings(study: Study, chosen: int) -> Findings:
    """What the pictures of a study show.

    Args:
        chosen: Number of the trial that is recommended; it is complete.
    """
    search, table = study.search, study.table()
    copied = optuna.create_study(directions=study.optuna.directions)
    copied.add_trials(study.trials())
    return Findings(
        search=search,
        table=table,
        found=found_in({search.method: table}, {search.method: chosen})[search.method],
        optuna=copied,
        importances=importances_of(copied, list(search.space)),
        levels=levels_of(copied),
    )


def history_of(table: pd.DataFrame) -> pd.DataFrame:
    """The trials that have ended: those of a table, with `accuracy` (%) and the best so far.

    A trial that was stopped early has the accuracy that it got to, with fewer weights gone than
    the others, so it is never the best; one that failed or was lost has none.
    """
    rows = table[~table["state"].isin(["running", "waiting"])].sort_values("number")
    accuracy = 100 * rows["valid_accuracy"].astype(float)
    accuracy = accuracy.where(rows["state"].isin(list(SHOWN.values())))
    best = accuracy.where(rows["state"] == "complete").cummax().ffill()
    return rows.assign(accuracy=accuracy, best=best)


def importances_of(study: optuna.Study, names: list[str]) -> pd.DataFrame:
    """Which share of the variance between complete trials each parameter alone explains.

    By a functional analysis of variance (Hutter, Hoos and Leyton-Brown 2014, ICML). It fits a
    forest, which takes half a second. What several explain only together is left out.

    Returns:
        A row a parameter, what matters most for accuracy last; a column for each objective that
        trials differ in, with shares in [0, 1]. None if there are fewer than `ENOUGH` trials.
    """
    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    shares = pd.DataFrame(index=names)
    alike = all(len({trial.params[name] for trial in trials}) == 1 for name in names)
    for place, label in enumerate(OBJECTIVES[: len(study.directions)]):
        values = [trial.values[place] for trial in trials]
        if len(trials) < ENOUGH or alike or np.ptp(values) < NOISE:
            continue
        shares[label] = pd.Series(
            get_param_importances(
                study,
                evaluator=FanovaImportanceEvaluator(seed=0),
                target=partial(_objective, place),
                normalize=False,
            ),
            dtype=float,
        )
    return shares.sort_values(list(shares.columns)) if len(shares.columns) else shares


def _objective(place: int, trial: FrozenTrial) -> float:
    return float(trial.values[place])


def levels_of(study: optuna.Study) -> pd.DataFrame:
    """Accuracies at equal sparsity: `number`, `state`, `remaining` and `accuracy`, both in %.

    None with objective=pareto, where trials are never compared before they end.
    """
    trials = study.get_trials(deepcopy=False, states=tuple(SHOWN))
    rows = [
        (trial.number, SHOWN[trial.state], 100 * LEVEL**level, 100 * value)
        for trial in trials
        for level, value in sorted(trial.intermediate_values.items())
    ]
    return pd.DataFrame(rows, columns=["number", "state", "remaining", "accuracy"])


def pairs_of(rows: pd.DataFrame, search: Search) -> list[tuple[str, str]]:
    """The pairs of parameters over which the trials of a table span a plane."""
    ranges = [name for name, rule in search.space.items() if isinstance(rule, Range)]
    spanned = [pair for pair in combinations(ranges, 2) if _spans(on_scales(rows, pair, search))]
    return spanned[:PAIRS] if len(rows) >= ENOUGH else []


def _spans(points: NDArray[np.float64]) -> bool:
    return bool(np.linalg.matrix_rank(points - points.mean(axis=0), tol=1e-3) == 2)


def on_scales(rows: pd.DataFrame, names: tuple[str, str], search: Search) -> NDArray[np.float64]:
    """Where trials lie between the bounds of two parameters, on the scale of each; [trials, 2]."""
    places = []
    for name in names:
        rule, values = search.space[name], rows[name].to_numpy(dtype=float)
        assert isinstance(rule, Range)
        ends = np.array([rule.low, rule.high], dtype=float)
        if rule.log:
            values, ends = np.log(values), np.log(ends)
        places.append((values - ends[0]) / max(ends[1] - ends[0], NOISE))
    return np.column_stack(places)
