"""Trials that were lost: who takes them from whom, and how often each is tried again."""

import sqlite3
from contextlib import ExitStack, closing

import pytest

from experiments.tuning.choose import latest_failures
from experiments.tuning.study import TakenError
from tests.searching import search_of, study_of
from tests.test_tuning_study import SMALL, empty, finish, folder, states, study

assert empty  # a fixture
assert folder  # a fixture
assert study  # a fixture


def test_what_was_lost_is_tried_once_more_with_the_same_parameters_and_then_made_up_for(study):
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


def test_what_was_interrupted_is_tried_again_without_end(study):
    finish(study)
    tried = []
    for _ in range(4):
        claim = claim_last(study)
        tried.append(study.params(claim))
        study.requeue(claim.id, counted=False)
    assert all(params == tried[0] for params in tried)
    assert (study.waiting(), study.ended(), len(study.trials())) == (2, 1, 7)


def claim_last(study):
    """The latest trial that waits."""
    with ExitStack() as held:
        claims = []
        while claim := held.enter_context(study.claim()):
            claims.append(claim)
        others = claims[:-1]
        for each in others:  # as if nobody had claimed them
            set_state(study, each.number, "WAITING")
    return claims[-1]


def set_state(study, number, state):
    with closing(sqlite3.connect(study.storage.url.removeprefix("sqlite:///"))) as database:
        database.execute("UPDATE trials SET state = ? WHERE number = ?", (state, number))
        database.commit()


def test_the_trial_of_a_process_that_is_gone_is_taken_from_it(study):
    with study.claim() as claim:
        assert claim.number == 0
    with study.claim() as claim:
        study.reclaim_dead()  # as kill -9 leaves the first: RUNNING, and nobody holds its lock
        assert states(study) == ["FAIL", "RUNNING", "WAITING", "WAITING"]
        assert claim.number == 1
        study.reclaim_dead()
    assert states(study)[1] == "RUNNING"
    study.reclaim_dead()
    assert states(study) == ["FAIL", "FAIL", "WAITING", "WAITING", "WAITING"]


def test_a_trial_without_a_heartbeat_is_taken_from_its_process_on_another_machine(study):
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


def test_a_trial_whose_process_lives_on_this_machine_is_never_taken(study):
    with study.claim() as claim:
        make_stale(study)  # as when the storage was away for long
        study.reclaim_dead()
        assert states(study)[0] == "RUNNING"
        assert study.end(claim, [0.9, 10])
    assert states(study) == ["COMPLETE", "WAITING", "WAITING"]


def make_stale(study):
    with closing(sqlite3.connect(study.storage.url.removeprefix("sqlite:///"))) as database:
        database.execute("UPDATE trial_heartbeats SET heartbeat = '2000-01-01 00:00:00'")
        database.commit()


def test_a_trial_that_was_done_cannot_be_lost(study):
    with study.claim() as claim:
        study.params(claim)
        study.end(claim, [0.9, 10])
        study.requeue(claim.id)
    assert states(study) == ["COMPLETE", "WAITING", "WAITING"]


def test_failures_are_counted_back_to_the_last_success_and_to_the_beginning(study, folder):
    study = study_of(search_of(**SMALL | {"trials": 9}), folder)
    study.enqueue_missing()
    finish(study, failure="one")
    finish(study)
    assert latest_failures(study.trials(), set()) == []
    finish(study, failure="two")
    finish(study, failure="three")
    assert latest_failures(study.trials(), set()) == ["two", "three"]
    assert latest_failures(study.trials(), {0, 1, 2, 3}) == []
    for _ in range(2):  # the first loss is nobody's fault
        claim = claim_last(study)
        study.requeue(claim.id)
    assert latest_failures(study.trials(), set()) == ["two", "three", "its process died, twice"]
