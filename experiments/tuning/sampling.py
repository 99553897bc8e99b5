"""Sampling: what is tried next, and what is given up.

Optuna's tree-structured Parzen estimator (Bergstra et al. 2011; multi-objective: Ozaki et al. 2022,
Journal of Artificial Intelligence Research 73) draws; what a budget cannot pay is drawn again.
"""

from math import floor, log
from statistics import median

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from experiments.config.space import Choices, Range, Space, Value
from experiments.training.loop import derive_seed
from experiments.tuning.search import Search

DRAWS = 200  # at most, for one that the budget can pay
ESTIMATED = 20  # of these by what was found, all further ones at random
DIGITS = 3  # that a drawn number is rounded to, so that it can be read and typed
STARTUP = 5  # complete trials, before any is stopped early
DEEP = 0.5  # of the weights must be gone before any is stopped early
LEVEL = 0.9


def distributions(space: Space) -> dict[str, BaseDistribution]:
    """A space in Optuna's terms."""
    return {name: _distribution(rule) for name, rule in space.items()}


def _distribution(rule: Range | Choices) -> BaseDistribution:
    if isinstance(rule, Choices):
        return CategoricalDistribution(rule.values)
    if rule.whole:
        return IntDistribution(int(rule.low), int(rule.high), log=rule.log)
    return FloatDistribution(rule.low, rule.high, log=rule.log)


def draw(study: optuna.Study, trial: FrozenTrial, search: Search) -> dict[str, Value]:
    """Parameters that are worth a try, possible and within the budget.

    The seed comes from the search's seed and the trial's number, and the first draws do not look
    at results: every method of a search begins with the same ones.

    Raises:
        ValueError: If nothing was found that is so.
    """
    seed = derive_seed(search.config.seed, "sampler", trial.number) % 2**32
    sampler: BaseSampler = TPESampler(seed=seed)
    known = distributions(search.space)
    together = sampler.infer_relative_search_space(study, trial)
    for attempt in range(DRAWS):
        if attempt == ESTIMATED:  # what it believes in is beyond the budget
            sampler, together = RandomSampler(seed=seed), {}
        values = sampler.sample_relative(study, trial, together)
        for name in sorted(known.keys() - values.keys()):
            values[name] = sampler.sample_independent(study, trial, name, known[name])
        values = {name: _short(search.space[name], values[name]) for name in search.space}
        if search.affordable(values):
            return values
    if search.budget is None:
        raise ValueError(f"search: {DRAWS} draws found nothing that is possible: narrow the ranges")
    raise ValueError(
        f"budget_epochs={search.budget} pays for nothing in {DRAWS} draws: raise it, or narrow "
        "the ranges"
    )


def _short(rule: Range | Choices, value: Value) -> Value:
    if isinstance(rule, Choices) or rule.whole:
        return value
    return min(max(float(f"{value:.{DIGITS}g}"), rule.low), rule.high)


Point = tuple[float, float]  # sparsity and accuracy, both in [0, 1]


def levels_between(before: Point | None, now: Point) -> dict[int, float]:
    """Accuracies at the levels of sparsity that a round reaches; level k has `LEVEL`^k left.

    Trials with different prune rates reach a level in different rounds, and jump over others. In
    between, accuracy is taken to change in proportion to the logarithm of what is left.

    Args:
        before: After the last round; None for the dense network.
        now: After this one.
    """
    if before is None:
        return {0: now[1]}
    first, last = _level(before[0]), _level(now[0])
    levels = range(floor(first) + 1, floor(last) + 1)
    slope = (now[1] - before[1]) / (last - first)
    return {level: before[1] + slope * (level - first) for level in levels}


def _level(sparsity: float) -> float:
    # A hair's breadth, lest a network that was pruned to just a level miss it.
    return log(1 - sparsity) / log(LEVEL) + 1e-6


class EqualSparsityPruner(BasePruner):
    """Stops a trial that is below the median of the complete ones at the same level of sparsity.

    Optuna's own median pruner compares the best that a trial has reported so far, which for
    accuracies that fall with sparsity is always the dense network's.
    """

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """Whether to stop the trial now."""
        level = trial.last_step
        if level is None or LEVEL**level > DEEP:
            return False
        complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        others = [
            other.intermediate_values[level]
            for other in complete
            if level in other.intermediate_values
        ]
        return len(others) >= STARTUP and trial.intermediate_values[level] < median(others)
