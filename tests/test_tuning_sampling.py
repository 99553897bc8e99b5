"""Sampling and early stopping, against values worked out by hand."""

import os
import random
import subprocess
import sys
from math import log

import optuna
import pytest
from optuna.pruners import MedianPruner
from optuna.trial import TrialState, create_trial

from experiments.tuning.sampling import (
    SPREAD,
    STARTUP,
    distributions,
    first_points,
    levels_between,
    sample,
    should_stop,
)
from tests.conftest import ROOT, TIMEOUT
from tests.searching import search_of, study_of

LIMITED = {"objective": "accuracy", "budget_epochs": 12, "epochs": 5}
WIDE = "lr=0.0001..0.1:log,rewind_epoch=0..5,criterion=magnitude/snip"


def sampled(study, number):
    """The parameters sampled for a trial, after all earlier trials exist."""
    while len(study.trials()) <= number:
        study.optuna.add_trial(create_trial(state=TrialState.WAITING))
    return sample(study.optuna, study.trials()[number], study.search)


def complete(study, count):
    """Add complete trials within budget; longer retraining is more accurate."""
    chance, space = random.Random(0), study.search.space
    for _ in range(count):
        params = {"prune_rate": chance.uniform(0.4, 0.6), "retrain_epochs": chance.randint(1, 2)}
        if "lr" in space:
            params |= {"lr": chance.uniform(0.001, 0.1), "rewind_epoch": chance.randint(0, 4)}
            params |= {"criterion": chance.choice(["magnitude", "snip"])}
        values = scores(study, params)
        study.optuna.add_trial(
            create_trial(values=values, params=params, distributions=distributions(space))
        )


def scores(study, params):
    """An accuracy that grows with retraining, and what a search for a front needs beside it."""
    value = 0.9 - params["prune_rate"] / 10 + params["retrain_epochs"] / 100
    epochs = study.search.resolved(params).epochs + study.search.cost(params).retraining
    return [value, epochs][: len(study.optuna.directions)]


@pytest.mark.parametrize("before", [0, 15], ids=["spread", "model"])
@pytest.mark.parametrize("asked", [LIMITED, {}], ids=["accuracy", "pareto"])
def test_all_samples_are_within_budget_and_range(before, asked, tmp_path):
    trials = {"trials": before + 25}
    search = search_of("rewind", reinit="rewind", search=WIDE, **trials, **asked)
    study, draws = study_of(search, tmp_path), []
    complete(study, before)
    study.enqueue_missing()
    while study.waiting():
        with study.claim() as claim:
            draws.append(study.params(claim))
            study.end(claim, scores(study, draws[-1]))
    assert len(draws) == 25
    assert len({tuple(values.items()) for values in draws}) == 25
    for values in draws[before == 0 :]:  # the first trial of all is the default
        assert list(values) == list(study.search.space)
        assert 0.05 <= values["prune_rate"] <= 0.6
        assert 0.0001 <= values["lr"] <= 0.1
        assert values["retrain_epochs"] in range(1, 21)
        assert values["rewind_epoch"] in range(6)
        assert values["criterion"] in ("magnitude", "snip")
        assert study.search.is_affordable(values)
        assert all(float(f"{values[name]:.3g}") == values[name] for name in ("prune_rate", "lr"))


@pytest.mark.parametrize("asked", [{}, {"objective": "accuracy", "budget_epochs": 50}])
def test_impossible_combinations_are_not_sampled(asked, tmp_path):
    search = search_of("rewind", reinit="rewind", search="rewind_epoch=0..20", epochs=5, **asked)
    study = study_of(search, tmp_path)
    rewinds = [sampled(study, number)["rewind_epoch"] for number in range(1, 16)]
    assert max(rewinds) < 5 < 20 == search.space["rewind_epoch"].high
    assert len(set(rewinds)) > 3


def test_ranges_with_almost_no_possible_value_are_an_error(tmp_path):
    search = search_of("rewind", reinit="rewind", search="rewind_epoch=1..100000", epochs=2)
    message = "search: none of 200 samples is possible: narrow the ranges"
    with pytest.raises(ValueError, match=f"^{message}$"):
        sampled(study_of(search, tmp_path), 1)


def test_samples_stay_within_bounds_that_have_many_digits(tmp_path):
    study = study_of(search_of(search="prune_rate=0.20001..0.20049"), tmp_path)
    draws = [sampled(study, number)["prune_rate"] for number in range(10)]
    assert all(0.2 <= rate <= 0.20049 for rate in draws)  # the baseline is 0.2


def test_a_budget_that_no_sample_meets_is_an_error(tmp_path):
    ask = {"objective": "accuracy", "budget_epochs": 1, "search": "prune_rate=0.3..0.5"}
    study = study_of(search_of(model="lenet_3", **ask), tmp_path)
    with pytest.raises(
        ValueError, match=r"none of 200 samples is within budget_epochs=1: increase it"
    ):
        sampled(study, 1)


def test_the_same_seed_number_and_history_give_the_same_sample(tmp_path):
    studies = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        (tmp_path / name).mkdir()
        studies.append(study_of(search_of(seed=seed), tmp_path / name))
        complete(studies[-1], 12)
    one, two, other = ([sampled(study, number) for number in (12, 13)] for study in studies)
    assert one == two
    assert one[0] != one[1]
    assert one != other


def test_methods_begin_with_the_same_samples(tmp_path):
    first = {name: [*first_points(search_of(name))] for name in ("keep", "random", "lottery")}
    assert first["random"] == first["lottery"]
    for keep, lottery in zip(first["keep"], first["lottery"], strict=True):
        assert {name: keep[name] for name in lottery} == lottery  # keep has retrain_lr as well


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("method", ["keep", "lottery"])
def test_the_first_trials_are_the_default_and_points_in_every_quarter_of_each_range(method, seed):
    search = search_of(method, seed=seed)
    default, *points = first_points(search)
    assert default == search.baseline
    assert len(points) == SPREAD
    for name, rule in search.space.items():
        high = rule.high + rule.is_integer
        shares = [log(point[name] / rule.low) / log(high / rule.low) for point in points]
        assert {int(4 * share) for share in shares} == {0, 1, 2, 3}, name
    assert len({point["retrain_epochs"] for point in points}) >= SPREAD / 2


def test_first_trials_over_budget_are_replaced(tmp_path):
    limited, free = search_of(**LIMITED), search_of(epochs=5)
    points = [*first_points(limited)]
    assert len(points) == 1 + SPREAD
    assert all(limited.is_affordable(point) for point in points[1:])
    assert not all(limited.is_affordable(point) for point in first_points(free))


def test_results_do_not_change_the_first_trials_and_change_later_ones(tmp_path):
    with_results = study_of(search_of(study="with"), tmp_path)
    complete(with_results, 3)
    without = study_of(search_of(study="without"), tmp_path)
    numbers = (4, SPREAD)
    assert [sampled(with_results, n) for n in numbers] == [sampled(without, n) for n in numbers]
    complete(with_results, 8)
    assert sampled(with_results, 30) != sampled(without, 30)


def test_a_space_of_few_points_is_exhausted_before_any_is_repeated(tmp_path):
    asked = {"search": "prune_rate=0.4/0.5/0.6,retrain_epochs=1..4", "trials": 14}
    study, drawn = study_of(search_of(prune_rate=0.4, retrain_epochs=1, **asked), tmp_path), []
    study.enqueue_missing()
    while study.waiting():
        with study.claim() as claim:
            drawn.append(study.params(claim))
            study.end(claim, [0.9, claim.number])
    assert len({tuple(values.items()) for values in drawn[:12]}) == 12
    assert all(values in drawn[:12] for values in drawn[12:])


def test_a_later_trial_leaves_the_first_points_to_their_own_trials(tmp_path):
    """Another process may have claimed one of these, but not chosen its parameters yet."""
    rules = "prune_rate=0.4..0.41,retrain_epochs=1..2"
    search = search_of(search=rules, prune_rate=0.4, retrain_epochs=1)
    reserved, study = list(first_points(search)), study_of(search, tmp_path)
    assert len(reserved) == 1 + SPREAD
    for number in range(len(reserved), 40):
        assert sampled(study, number) not in reserved


CONTINUE = """
import sys
from experiments.tuning.storage import Storage
from experiments.tuning.study import Study
from tests.searching import search_of
trials, rules = int(sys.argv[2]), "prune_rate=0.4..0.41,retrain_epochs=1..2"
search = search_of(search=rules, prune_rate=0.4, retrain_epochs=1, trials=trials)
study = Study(search, Storage(f"sqlite:///{sys.argv[1]}/optuna.db", 60, print))
study.enqueue_missing()
while study.waiting():
    with study.claim() as claim:
        if claim:
            params = study.params(claim)
            study.end(claim, [0.9 - params["prune_rate"], 10 + claim.number])
"""


def test_processes_that_work_on_one_study_do_not_repeat_a_trial(tmp_path):
    """In a space of 22 points: two processes at once, then a third continues."""
    study_of(search_of(), tmp_path)
    for trials, count in ((12, 2), (18, 1)):
        command = [sys.executable, "-c", CONTINUE, str(tmp_path), str(trials)]
        env = os.environ | {"PYTHONPATH": str(ROOT)}
        processes = [subprocess.Popen(command, env=env) for _ in range(count)]
        assert [process.wait(TIMEOUT) for process in processes] == [0] * count
    name = "weight-loss/digits/lenet_300_100/lottery"
    trials = optuna.load_study(study_name=name, storage=f"sqlite:///{tmp_path}/optuna.db").trials
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 18
    assert len({tuple(trial.params.items()) for trial in trials}) == 18


def level(left):
    """The fractional level of sparsity at which this share remains."""
    return log(left) / log(0.9)


def test_the_dense_network_is_level_zero():
    assert levels_between(None, (0.0, 0.97)) == {0: 0.97}


def test_accuracy_at_a_level_between_two_rounds_is_interpolated():
    found = levels_between((0.0, 0.96), (0.2, 0.90))  # level 2.118
    assert list(found) == [1, 2]
    assert found[1] == pytest.approx(0.96 - 0.06 / level(0.8), abs=1e-6)
    assert found[2] == pytest.approx(0.96 - 2 * 0.06 / level(0.8), abs=1e-6)
    further = levels_between((0.2, 0.90), (0.36, 0.80))  # level 4.236
    assert list(further) == [3, 4]
    slope = -0.1 / (level(0.64) - level(0.8))
    assert further[4] == pytest.approx(0.9 + slope * (4 - level(0.8)), abs=1e-6)


def test_a_large_round_reports_every_level_that_it_skips():
    found = levels_between((0.0, 0.9), (0.9, 0.45))
    assert list(found) == list(range(1, 22))  # 0.9^21 = 10.9%, 0.9^22 = 9.8%
    assert found[21] == pytest.approx(0.9 - 0.45 * 21 / level(0.1), abs=1e-6)


def test_a_round_that_reaches_no_level_reports_none():
    assert levels_between((0.2, 0.9), (0.25, 0.8)) == {}  # levels 2.118 and 2.730


def test_a_level_that_is_hit_exactly_is_reported_once():
    first = levels_between((0.0, 0.9), (1 - 0.9, 0.8))
    second = levels_between((1 - 0.9, 0.8), (1 - 0.9**2, 0.6))
    assert (list(first), list(second)) == ([1], [2])
    assert first[1] == pytest.approx(0.8, abs=1e-6)
    assert second[2] == pytest.approx(0.6, abs=1e-6)


def reported(rate, rounds, accuracy):
    """What a trial reports if its accuracy depends on sparsity alone."""
    sparsities = [1 - (1 - rate) ** number for number in range(rounds + 1)]
    points = [(each, accuracy(each)) for each in sparsities]
    found = [levels_between(*pair) for pair in zip([None, *points[:-1]], points, strict=True)]
    assert sum(map(len, found)) == len({key for each in found for key in each})  # none twice
    return {key: value for each in found for key, value in each.items()}


def test_different_prune_rates_report_the_same_levels_in_different_rounds():
    def accuracy(sparsity):  # linear in the level, so that interpolation is exact
        return 0.9 - 0.02 * level(1 - sparsity)

    slow, fast = reported(0.2, 10, accuracy), reported(0.5, 3, accuracy)
    assert list(slow) == list(range(22))  # 0.8^10 = 10.7%
    assert list(fast) == list(range(20))  # 0.5^3 = 12.5%
    for key in fast:
        assert fast[key] == pytest.approx(slow[key], abs=1e-6)
        assert fast[key] == pytest.approx(0.9 - 0.02 * key, abs=1e-6)


@pytest.fixture
def study(tmp_path):
    return study_of(search_of(**LIMITED), tmp_path).optuna


def trial(state=TrialState.RUNNING, *, rounds):
    """A trial that has reported these accuracies by level."""
    value = list(rounds.values())[-1] if state == TrialState.COMPLETE else None
    return create_trial(state=state, value=value, intermediate_values=rounds)


def finished(study, *accuracies):
    """Complete trials that went straight from 95% to these accuracies at level 21."""
    for last in accuracies:
        rounds = {key: 0.95 - (0.95 - last) * key / 21 for key in range(22)}
        study.add_trial(trial(TrialState.COMPLETE, rounds=rounds))


def stops(study, rounds, rule=should_stop):
    study.add_trial(trial(rounds=rounds))
    return rule(study, study.trials[-1])


def test_no_trial_is_stopped_before_enough_others_are_complete(study):
    finished(study, *[0.9] * (STARTUP - 1))
    study.add_trial(trial(TrialState.PRUNED, rounds={8: 0.9}))
    assert not stops(study, {0: 0.95, 8: 0.1})
    finished(study, 0.9)
    assert stops(study, {0: 0.95, 8: 0.1})


def test_no_trial_is_stopped_while_over_half_of_the_weights_remain(study):
    finished(study, *[0.9] * STARTUP)
    assert not stops(study, {0: 0.0})
    assert not stops(study, {6: 0.0})  # 53% are left
    assert stops(study, {7: 0.0})  # 48%
    assert not stops(study, {})


def test_exactly_the_trials_below_the_median_at_their_level_are_stopped(study):
    finished(study, 0.5, 0.6, 0.74, 0.8, 0.9)  # the median at level 7: 0.95 - 0.21 / 3 = 0.88
    assert stops(study, {0: 0.99, 7: 0.8799})
    assert not stops(study, {0: 0.2, 7: 0.8801})
    assert not stops(study, {21: 0.74})
    assert stops(study, {7: 0.99, 21: 0.7399})


def test_the_number_of_the_round_does_not_matter(study):
    finished(study, *[0.74] * STARTUP)
    slow = {0: 0.95, **dict.fromkeys(range(1, 14), 0.9), 14: 0.82}
    fast = {0: 0.95, 14: 0.82}
    assert not stops(study, slow)
    assert not stops(study, fast)
    assert stops(study, fast | {14: 0.80})
    assert stops(study, slow | {14: 0.80})


def test_trials_that_did_not_reach_the_level_are_not_compared(study):
    finished(study, *[0.9] * (STARTUP - 1))
    study.add_trial(trial(TrialState.COMPLETE, rounds={0: 0.95, 7: 0.9}))
    assert not stops(study, {8: 0.1})
    assert stops(study, {7: 0.1})


def test_optunas_median_pruner_judges_a_trial_by_its_dense_network(study):
    finished(study, *[0.9] * STARTUP)
    bad = {0: 0.96, 7: 0.3, 14: 0.1}
    assert stops(study, bad)
    assert not stops(study, bad, MedianPruner(n_startup_trials=STARTUP).prune)


def test_distributions_are_those_of_the_space():
    known = distributions(search_of(search="lr=0.001..0.01:log,criterion=snip").space)
    assert known == {
        "prune_rate": optuna.distributions.FloatDistribution(0.05, 0.6, log=True),
        "retrain_epochs": optuna.distributions.IntDistribution(1, 20, log=True),
        "lr": optuna.distributions.FloatDistribution(0.001, 0.01, log=True),
        "criterion": optuna.distributions.CategoricalDistribution(("magnitude", "snip")),
    }
