"""Bench of samplers: which finds the front of a search best, on formulas whose front is known?

A formula gives the accuracy of a trial, to which Gaussian noise is added; its cost in epochs is
that of a real search. Trials run two at a time in real studies. The score of a study is the
hypervolume that its trials dominate, in true accuracy and the logarithm of epochs, as a share of
that of the true front (Zitzler & Thiele 1999).
"""

import argparse
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from math import exp, log, log10
from statistics import mean, stdev
from time import perf_counter

import numpy as np
from optuna.samplers import BaseSampler, RandomSampler, TPESampler

from experiments.config.parameters import validated
from experiments.config.tune import TuneConfig
from experiments.processes.program import PROGRAM
from experiments.processes.terminal import print_line, table_text
from experiments.tuning import sampling
from experiments.tuning.search import Search
from experiments.tuning.storage import Storage
from experiments.tuning.study import Claim, Study

Params = Mapping[str, float]
TRIALS = 30
AT_ONCE = 2
NOISE = 0.002  # standard deviation of a trial's accuracy
GRID = 200  # prune rates, and 41 learning rates, among which the true front is found


@dataclass(frozen=True)
class Landscape:
    """A formula, and the accuracy above which its hypervolume counts."""

    method: str  # what it searches is searched here
    floor: float
    accuracy: Callable[[Params], float]


def _lottery(params: Params) -> float:
    return (
        0.982 - 0.022 * exp(-(params["retrain_epochs"] - 1) / 3) - 0.012 * params["prune_rate"] ** 2
    )


def _keep(params: Params) -> float:
    rate = log10(params.get("retrain_lr", 10**-4.2)) + 3.9  # the best one is 0.000126
    return (
        0.981
        - 0.11 * params["prune_rate"] ** 2
        - 0.035 * exp(-params["retrain_epochs"] / 6)
        - 0.004 * rate**2
    )


LANDSCAPES = {
    "lottery": Landscape("lottery", 0.955, _lottery),
    "keep": Landscape("random", 0.94, _keep),
    "keep with rate": Landscape("keep", 0.94, _keep),
}


@dataclass(frozen=True)
class Sampler:
    """A model for the trials after the first ones, how often it is asked, and the first ones."""

    model: Callable[[int], BaseSampler]
    attempts: int = sampling.TPE_ATTEMPTS
    spread: int = sampling.SPREAD
    search: str = "none"


def _independent(seed: int) -> BaseSampler:
    return TPESampler(seed=seed, n_startup_trials=10)


SAMPLERS = {
    "gp": Sampler(*sampling.MODELS["pareto"]),
    "tpe": Sampler(sampling.parzen_estimator),
    "tpe_random_start": Sampler(sampling.parzen_estimator, spread=0),
    "tpe_linear": Sampler(sampling.parzen_estimator, search="prune_rate=0.05..0.6"),
    "tpe_independent": Sampler(_independent, spread=0, search="prune_rate=0.05..0.6"),
    "random": Sampler(lambda seed: RandomSampler(seed=seed)),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Print the mean and standard deviation of each sampler's score over the seeds."""
    parser = argparse.ArgumentParser(prog=f"{PROGRAM} bench_sampling")
    known = ", ".join(SAMPLERS)
    parser.add_argument("samplers", nargs="*", metavar="sampler", help=f"{known} (default: all)")
    parser.add_argument("--seeds", type=int, default=20, help="studies of each (default: 20)")
    args = parser.parse_args(argv)
    if unknown := [name for name in args.samplers if name not in SAMPLERS]:
        raise ValueError(f"sampler must be one of {known}, got {unknown[0]}")
    if args.seeds < 2:
        raise ValueError(f"seeds must be at least 2, got {args.seeds}")
    with tempfile.TemporaryDirectory() as folder:
        storage = Storage(f"sqlite:///{folder}/optuna.db", 60, print_line)
        _compare(args.samplers or [*SAMPLERS], args.seeds, storage)


def _compare(names: Sequence[str], seeds: int, storage: Storage) -> None:
    columns: dict[str, list[str]] = {"sampler": [], **{name: [] for name in LANDSCAPES}, "ms": []}
    first: dict[str, list[float]] = {}
    for turn, name in enumerate(names):
        columns["sampler"].append(name)
        spent: list[float] = []
        for place in LANDSCAPES:
            studies = [(f"{turn}/{place}/{seed}", seed) for seed in range(seeds)]
            played = [play(SAMPLERS[name], place, *study, storage) for study in studies]
            scores = [score for score, _ in played]
            spent += [seconds for _, seconds in played]
            text = f"{mean(scores):.3f} +- {stdev(scores):.3f}"
            columns[place].append(text)
            line = f"{name}, {place}: {text}"
            if place in first:
                gains = [a - b for a, b in zip(first[place], scores, strict=True)]
                better = sum(gain > 0 for gain in gains)
                line += (
                    f"; {columns['sampler'][0]} gains {mean(gains):.3f} +- {stdev(gains):.3f}, "
                    f"and is better for {better} of {seeds} seeds"
                )
            first.setdefault(place, scores)
            print_line(line)
        columns["ms"].append(f"{1000 * mean(spent) / TRIALS:.0f}")
    print_line(f"\n{table_text(columns)}")


def play(
    sampler: Sampler, name: str, study_name: str, seed: int, storage: Storage
) -> tuple[float, float]:
    """Run one study; its score, and the seconds that all its samples took."""
    asked = {"seed": seed, "trials": TRIALS, "study": study_name, "search": sampler.search}
    search = _search(name, asked)
    before = sampling.MODELS["pareto"], sampling.SPREAD
    sampling.MODELS["pareto"], sampling.SPREAD = (sampler.model, sampler.attempts), sampler.spread
    try:
        points, seconds = _run(Study(search, storage), LANDSCAPES[name].accuracy, seed)
    finally:
        sampling.MODELS["pareto"], sampling.SPREAD = before
    return hypervolume(points, LANDSCAPES[name].floor) / _ideal(name), seconds


Point = tuple[float, int]  # true accuracy, and epochs


def _run(study: Study, accuracy: Callable[[Params], float], seed: int) -> tuple[list[Point], float]:
    noise = np.random.default_rng([seed, 7]).normal(0, NOISE, TRIALS)
    running: deque[tuple[ExitStack, Claim, Point]] = deque()
    points: list[Point] = []
    seconds = 0.0
    study.enqueue_missing()
    while running or study.waiting():
        if study.waiting() and len(running) < AT_ONCE:
            held = ExitStack()
            claim = held.enter_context(study.claim())
            assert claim, "no other process works on it"
            began = perf_counter()
            params = study.params(claim)
            seconds += perf_counter() - began
            numbers = {key: float(value) for key, value in params.items()}
            points.append((accuracy(numbers), _epochs(study.search, numbers)))
            running.append((held, claim, points[-1]))
        else:
            held, claim, (true, epochs) = running.popleft()
            with held:
                study.end(claim, [true + noise[claim.number], epochs])
    return points, seconds


def _epochs(search: Search, params: Params) -> int:
    return search.resolved({}).epochs + search.cost(params).retraining


def hypervolume(points: Iterable[Point], floor: float) -> float:
    """The area that points dominate, of accuracy above `floor` and of log epochs."""
    best, area, most = floor, 0.0, _most_epochs()
    for accuracy, epochs in sorted(points, key=lambda point: (point[1], -point[0])):
        if accuracy > best:
            area += (accuracy - best) * log(most / epochs)
            best = accuracy
    return area


def _search(name: str, asked: Mapping[str, object] | None = None) -> Search:
    config = validated(TuneConfig, {"dataset": "mnist", "device": "cpu", **(asked or {})})
    return Search(config, LANDSCAPES[name].method, "mnist", "lenet_300_100", (1, 28, 28), 10, ())


@cache
def _most_epochs() -> int:
    return _epochs(_search("lottery"), {"prune_rate": 0.05, "retrain_epochs": 20})


@cache
def _ideal(name: str) -> float:
    """The hypervolume of the true front, found on a grid."""
    search, landscape = _search(name), LANDSCAPES[name]
    rates = np.geomspace(1.2e-5, 1.2e-3, 41) if "retrain_lr" in search.space else [None]
    points = []
    for prune_rate in np.linspace(0.05, 0.6, GRID):
        for epochs in range(1, 21):
            params = {"prune_rate": float(prune_rate), "retrain_epochs": epochs}
            tried = [params if rate is None else params | {"retrain_lr": rate} for rate in rates]
            points.append((max(map(landscape.accuracy, tried)), _epochs(search, params)))
    return hypervolume(points, landscape.floor)
