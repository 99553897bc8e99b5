"""Lost trials: how they are found, and how often each is retried."""

import sqlite3
from contextlib import ExitStack, closing

import pytest

from experiments.tuning.choose import latest_failures
from experiments.tuning.study import TakenError
from tests.searching import search_of, study_of
from tests.test_tuning_study import SMALL, finish, states, study

assert study  # a fixture


def test_a_lost_trial_is_retried_once_and_then_replaced(study):
    finish(study)
    with study.claim() as claim:
        params = study.params(claim)
        study.requeue(claim.id)
    finish(study)
    with study.claim() as again:
        assert again.number == 3
        assert study.params(again) == params
        study.requeue(again.id)
    assert study.waiting() == 0
    study.enqueue_missing()
    number, new = finish(study)
    assert number == 4
    assert new != params
    assert states(study) == ["COMPLETE", "FAIL", "COMPLETE", "FAIL", "COMPLETE"]


def test_an_interrupted_trial_is_retried_any_number_of_times(study):
    finish(study)
    tried = []
    for _ in range(4):
        claim = claim_last(study)
        tried.append(study.params(claim))
        study.requeue(claim.id, counted=False)
    assert all(params == tried[0] for params in tried)
    assert (study.waiting(), study.ended(), len(study.trials())) == (2, 1, 7)


def claim_last(study):
    """Claim the latest waiting trial."""
    with ExitStack() as held:
        claims = []
        while claim := held.enter_context(study.claim()):
            claims.append(claim)
        others = claims[:-1]
        for each in others:  # undo the other claims
            set_state(study, each.number, "WAITING")
    return claims[-1]


def set_state(study, number, state):
    with closing(sqlite3.connect(study.storage.url.removeprefix("sqlite:///"))) as database:
        database.execute("UPDATE trials SET state = ? WHERE number = ?", (state, number))
        database.commit()


def test_the_trial_of_a_dead_process_is_reclaimed(study):
    with study.claim() as claim:
        assert claim.number == 0
    with study.claim() as claim:
        study.reclaim_dead()  # the first is RUNNING and not locked, as after kill -9
        assert states(study) == ["FAIL", "RUNNING", "WAITING", "WAITING"]
        assert claim.number == 1
        study.reclaim_dead()
    assert states(study)[1] == "RUNNING"
    study.reclaim_dead()
    assert states(study) == ["FAIL", "FAIL", "WAITING", "WAITING", "WAITING"]


def test_a_trial_of_another_machine_without_a_heartbeat_is_reclaimed(study):
    with study.claim() as claim:
        study.set_attr(claim, "lock", "another:/tmp/weight-loss.lock")
        study.reclaim_dead()
        assert states(study)[0] == "RUNNING"
        make_stale(study)
        study.reclaim_dead()
        assert states(study) == ["FAIL", "WAITING", "WAITING", "WAITING"]
        with pytest.raises(TakenError):
            study.record_levels(claim, {0: 0.9})
        with pytest.raises(TakenError):
            study.set_attr(claim, "x", 1)
        assert not study.end(claim, [0.9, 10])
    assert states(study) == ["FAIL", "WAITING", "WAITING", "WAITING"]
    assert study.trials()[0].values is None


def test_a_trial_whose_process_is_alive_on_this_machine_is_never_reclaimed(study):
    with study.claim() as claim:
        make_stale(study)  # as after a long outage of the storage
        study.reclaim_dead()
        assert states(study)[0] == "RUNNING"
        assert study.end(claim, [0.9, 10])
    assert states(study) == ["COMPLETE", "WAITING", "WAITING"]


def make_stale(study):
    with closing(sqlite3.connect(study.storage.url.removeprefix("sqlite:///"))) as database:
        database.execute("UPDATE trial_heartbeats SET heartbeat = '2000-01-01 00:00:00'")
        database.commit()


def test_a_trial_that_has_ended_cannot_be_lost(study):
    with study.claim() as claim:
        study.params(claim)
        study.end(claim, [0.9, 10])
        study.requeue(claim.id)
    assert states(study) == ["COMPLETE", "WAITING", "WAITING"]


def test_failures_are_counted_since_the_last_success_and_since_the_start(tmp_path):
    study = study_of(search_of(**SMALL | {"trials": 9}), tmp_path)
    study.enqueue_missing()
    finish(study, failure="one")
    finish(study)
    assert latest_failures(study.trials(), set()) == []
    finish(study, failure="two")
    finish(study, failure="three")
    assert latest_failures(study.trials(), set()) == ["two", "three"]
    assert latest_failures(study.trials(), {0, 1, 2, 3}) == []
    for _ in range(2):  # only the second loss counts
        claim = claim_last(study)
        study.requeue(claim.id)
    assert latest_failures(study.trials(), set()) == ["two", "three", "its process died, twice"]
