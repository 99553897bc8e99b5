"""Sampling: the parameters of the next trial, and which trials stop early.

The first trials after the default are spread over the space: points of a scrambled Halton sequence
(Owen 2017, arXiv:1706.02808). They depend only on the seed of the search and the trial's number, so
any number of machines share them. Later ones come from a model of the results so far, by Optuna.
A search for a front uses Gaussian processes, and maximises the expected improvement of the
hypervolume (Daulton et al. 2021, arXiv:2105.08195, in logarithms: Ament et al. 2023,
arXiv:2310.20708). With a budget, most of what these propose is over it, so there it uses a
tree-structured Parzen estimator (Bergstra et al. 2011), as a joint density of all parameters. No
trial after the default is over budget. docs/results.md has the measurements.
"""

from collections.abc import Callable, Iterator
from itertools import islice
from math import floor, log
from statistics import median

import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState
from scipy.stats import qmc  # type: ignore[import-untyped]

from experiments.config.space import Choices, Range, Space, Value
from experiments.training.loop import derive_seed
from experiments.tuning.search import Search
from experiments.tuning.storage import is_lost, original_number

SPREAD = 8  # trials after the default that are spread over the space
POINTS = 512  # of the sequence, among which those are found
ATTEMPTS = 200  # at most, to sample parameters that are within budget and new
TPE_ATTEMPTS = 20  # of these, after which samples are random
GP_ATTEMPTS = 3  # likewise; each takes half a second, and they hardly differ
DIGITS = 3  # significant digits of a sampled number, so that it is easy to read and type
STARTUP = 5  # complete trials before one may stop early, and before a model is used
DEEP = 0.5  # share of the weights that must be pruned before a trial may stop early
LEVEL = 0.9  # share of the weights that remain from one level of sparsity to the next


def gaussian_process(seed: int) -> BaseSampler:
    """Proposes what improves the best result, or the front, most in expectation."""
    return GPSampler(seed=seed, n_startup_trials=STARTUP)


def parzen_estimator(seed: int) -> BaseSampler:
    """Proposes what looks more like good trials than like bad ones."""
    return TPESampler(seed=seed, n_startup_trials=STARTUP, multivariate=True)


# By objective: the model, and how often it is asked before samples are random.
MODELS: dict[str, tuple[Callable[[int], BaseSampler], int]] = {
    "pareto": (gaussian_process, GP_ATTEMPTS),
    "accuracy": (parzen_estimator, TPE_ATTEMPTS),
}


def distributions(space: Space) -> dict[str, BaseDistribution]:
    """A space as Optuna's distributions."""
    return {name: _distribution(rule) for name, rule in space.items()}


def _distribution(rule: Range | Choices) -> BaseDistribution:
    if isinstance(rule, Choices):
        return CategoricalDistribution(rule.values)
    if rule.is_integer:
        return IntDistribution(int(rule.low), int(rule.high), log=rule.log)
    return FloatDistribution(rule.low, rule.high, log=rule.log)


def sample(study: optuna.Study, trial: FrozenTrial, search: Search) -> dict[str, Value]:
    """Parameters for a trial that are possible and within budget, and that no other trial has.

    Those that the trial already has stay. The parameters repeat those of another trial only if
    `ATTEMPTS` samples find no others.

    Raises:
        ValueError: If no sample is possible and within budget.
    """
    number = original_number(trial)
    if first := list(islice(first_points(search), number, number + 1)):
        return first[0] | trial.params
    known = distributions(search.space)
    others = [*chosen(study, trial), *_reserved(study, search)]
    seed = derive_seed(search.config.seed, "sampler", number) % 2**32
    model, attempts = MODELS[search.config.objective]
    sampler: BaseSampler = model(seed)
    joint = {name: rule for name, rule in known.items() if not rule.single()}
    repeated: dict[str, Value] = {}
    for attempt in range(ATTEMPTS):
        if attempt == attempts:  # the model prefers parameters over budget, or tried ones
            sampler, joint = RandomSampler(seed=seed), {}
        values = sampler.sample_relative(study, trial, joint)
        for name in sorted(known.keys() - values.keys()):
            values[name] = sampler.sample_independent(study, trial, name, known[name])
        values = {name: _rounded(search.space[name], values[name]) for name in search.space}
        values |= trial.params
        if not search.is_affordable(values):
            continue
        if values not in others:
            return values
        repeated = values
    if repeated:
        return repeated
    if search.budget is None:
        raise ValueError(f"search: none of {ATTEMPTS} samples is possible: narrow the ranges")
    raise ValueError(
        f"none of {ATTEMPTS} samples is within budget_epochs={search.budget}: increase it, or "
        "narrow the ranges"
    )


def chosen(study: optuna.Study, trial: FrozenTrial) -> list[dict[str, Value]]:
    """The parameters of all other trials, but of those whose process died."""
    trials = study.get_trials(deepcopy=False)
    return [each.params for each in trials if each.number != trial.number and not is_lost(each)]


def _reserved(study: optuna.Study, search: Search) -> list[dict[str, Value]]:
    """The first points whose trials have not chosen them yet."""
    trials = study.get_trials(deepcopy=False)
    waiting = {original_number(each) for each in trials if not each.params and not is_lost(each)}
    return [point for number, point in enumerate(first_points(search)) if number in waiting]


def first_points(search: Search) -> Iterator[dict[str, Value]]:
    """The parameters of the first trials: the default, and `SPREAD` that are spread over the space.

    A small space has fewer. They depend on no result, so all methods that vary the same parameters
    begin with the same trials.
    """
    found = [search.baseline]
    yield search.baseline
    rng = np.random.default_rng(derive_seed(search.config.seed, "spread"))
    for point in qmc.Halton(len(search.space), rng=rng).random(POINTS):
        values = {
            name: _at(rule, float(share))
            for (name, rule), share in zip(search.space.items(), point, strict=True)
        }
        if values not in found and search.is_affordable(values):
            found.append(values)
            yield values
        if len(found) > SPREAD:
            return


def _at(rule: Range | Choices, share: float) -> Value:
    """The value at a share in [0, 1) of a range, on its scale."""
    if isinstance(rule, Choices):
        return rule.values[int(share * len(rule.values))]
    high = rule.high + rule.is_integer  # an integer stands for the range up to the next one
    if rule.log:
        value = rule.low * (high / rule.low) ** share
    else:
        value = rule.low + share * (high - rule.low)
    return min(int(value), int(rule.high)) if rule.is_integer else _rounded(rule, value)


def _rounded(rule: Range | Choices, value: Value) -> Value:
    if isinstance(rule, Choices) or rule.is_integer:
        return value
    return min(max(float(f"{value:.{DIGITS}g}"), rule.low), rule.high)


Point = tuple[float, float]  # sparsity and accuracy, both in [0, 1]


def levels_between(before: Point | None, now: Point) -> dict[int, float]:
    """Accuracies at the levels of sparsity that a round reaches; level k keeps `LEVEL`^k.

    Trials with different prune rates reach a level in different rounds, or skip it. Accuracies in
    between are interpolated linearly in the logarithm of the remaining share.

    Args:
        before: The point after the previous round; None for the dense network.
        now: The point after this round.
    """
    if before is None:
        return {0: now[1]}
    first, last = _level(before[0]), _level(now[0])
    levels = range(floor(first) + 1, floor(last) + 1)
    slope = (now[1] - before[1]) / (last - first)
    return {level: before[1] + slope * (level - first) for level in levels}


def _level(sparsity: float) -> float:
    # Rounding errors must not make a network miss the level that it is pruned to.
    return log(1 - sparsity) / log(LEVEL) + 1e-6


def should_stop(study: optuna.Study, trial: FrozenTrial) -> bool:
    """Whether a trial is below the median of the complete ones at the same level of sparsity.

    Optuna's own median pruner compares the best value of a trial so far, which is the dense
    network's, since accuracy falls with sparsity.
    """
    level = trial.last_step
    if level is None or LEVEL**level > DEEP:
        return False
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    reached = [each.intermediate_values for each in complete if level in each.intermediate_values]
    others = [values[level] for values in reached]
    return len(others) >= STARTUP and trial.intermediate_values[level] < median(others)
