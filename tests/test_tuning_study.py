"""Who does which trial, and what becomes of it, in a real storage."""

import os
import re
import shutil
import sqlite3
import subprocess
import sys
from contextlib import ExitStack, closing

import optuna
import pytest
from optuna.trial import TrialState

from experiments.tuning.storage import FAILURE, is_lost
from experiments.tuning.study import Study, TakenError
from experiments.tuning.table import latest_failures
from tests.conftest import ROOT
from tests.searching import search_of, study_of

SMALL = {"model": "lenet_3", "epochs": 1, "trials": 3}


@pytest.fixture(scope="module")
def empty(tmp_path_factory):
    """A storage without studies; making the tables takes a moment, so it is made once."""
    folder = tmp_path_factory.mktemp("optuna")
    study_of(search_of(study="another"), folder)
    return folder / "optuna.db"


@pytest.fixture
def folder(empty, tmp_path):
    shutil.copy(empty, tmp_path / "optuna.db")
    return tmp_path


@pytest.fixture
def study(folder):
    """A study whose three trials wait."""
    study = study_of(search_of(**SMALL), folder)
    study.fill_up()
    return study


def states(study):
    return [trial.state.name for trial in study.trials()]


def finish(study, failure=""):
    """Do the next trial; its number and its parameters."""
    with study.claim() as claim:
        params = study.params(claim)
        assert study.end(claim, None if failure else [0.9, 10], failure)
    return claim.number, params


def test_exactly_what_is_missing_is_added(study, folder):
    assert states(study) == ["WAITING"] * 3
    study.fill_up()
    assert (len(study.trials()), study.waiting(), study.ended()) == (3, 3, 0)
    finish(study)
    more = study_of(search_of(**SMALL | {"trials": 5}), folder)
    more.fill_up()
    assert states(more) == ["COMPLETE", *["WAITING"] * 4]
    assert (study.waiting(), more.waiting()) == (2, 4)  # each knows its own number
    study.fill_up()
    assert len(study.trials()) == 5


def test_a_failed_trial_counts_and_a_lost_one_does_not(study):
    finish(study, failure="the loss is nan")
    with study.claim() as claim:
        study.lose(claim.id)
    study.fill_up()
    assert states(study) == ["FAIL", "FAIL", "WAITING", "WAITING"]
    assert [is_lost(trial) for trial in study.trials()[:2]] == [False, True]
    assert (study.ended(), study.waiting()) == (1, 2)


def test_a_trial_is_claimed_by_one_and_nobody_else(study):
    with ExitStack() as held:
        claims = [held.enter_context(study.claim()) for _ in range(4)]
        assert [claim.number for claim in claims[:3]] == [0, 1, 2]
        assert claims[3] is None
        assert states(study) == ["RUNNING"] * 3
    assert study.trials()[0].user_attrs["worker"].endswith(f" {os.getpid()}")


CLAIM = """
import os, sys
from experiments.tuning.study import Study
from experiments.tuning.storage import open_storage
from tests.searching import search_of, study_of
search, folder = search_of(model="lenet_3", epochs=1, trials=24), sys.argv[1]
for number in range(4):
    if os.fork() == 0:
        study, found = study_of(search, folder), []
        study.fill_up()
        while True:
            with study.claim() as claim:
                if claim is None:
                    break
                found.append(claim.number)
                assert study.end(claim, [0.9, 10])
        print(number, *found, flush=True)
        os._exit(0)
for _ in range(4):
    assert os.wait()[1] == 0
"""


def test_four_processes_at_once_do_each_trial_once_and_fill_up_once(folder):
    """They also make the study, all at the same moment."""
    done = subprocess.run(
        [sys.executable, "-c", CLAIM, folder],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = [list(map(int, line.split()[1:])) for line in done.stdout.splitlines()]
    assert len(found) == 4
    assert sum(map(bool, found)) > 1  # nobody did it all alone
    assert sorted(number for numbers in found for number in numbers) == list(range(24))
    study = study_of(search_of(**SMALL | {"trials": 24}), folder)
    assert states(study) == ["COMPLETE"] * 24


def test_what_was_lost_is_tried_once_more_with_the_same_parameters_and_then_made_up_for(study):
    finish(study)
    with study.claim() as claim:
        params = study.params(claim)
        study.lose(claim.id)
    finish(study)
    with study.claim() as again:
        assert again.number == 3
        assert study.params(again) == params
        study.lose(again.id)
    assert study.waiting() == 0
    study.fill_up()
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
        study.lose(claim.id, counted=False)
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


def test_the_baseline_is_the_first_trial_and_whatever_is_done_in_its_place(folder):
    study = study_of(search_of(**SMALL | {"prune_rate": 0.33, "retrain_epochs": 7}), folder)
    study.fill_up()
    with study.claim() as claim:
        study.lose(claim.id)  # before it had any parameters
    _, second = finish(study)
    finish(study)
    number, params = finish(study)
    assert number == 3
    assert params == {"prune_rate": 0.33, "retrain_epochs": 7} != second
    assert study.table()["again_for"].tolist()[3] == 0


def test_the_trial_of_a_process_that_is_gone_is_taken_from_it(study):
    with study.claim() as claim:
        assert claim.number == 0
    with study.claim() as claim:
        study.sweep()  # as kill -9 leaves the first: RUNNING, and nobody holds its lock
        assert states(study) == ["FAIL", "RUNNING", "WAITING", "WAITING"]
        assert claim.number == 1
        study.sweep()
    assert states(study)[1] == "RUNNING"
    study.sweep()
    assert states(study) == ["FAIL", "FAIL", "WAITING", "WAITING", "WAITING"]


def test_a_trial_without_a_heartbeat_is_taken_from_its_process_on_another_machine(study):
    with study.claim() as claim:
        study.write(claim, "lock", "another:/tmp/weight-loss.lock")
        study.sweep()
        assert states(study)[0] == "RUNNING"
        make_stale(study)
        study.sweep()
        assert states(study) == ["FAIL", "WAITING", "WAITING", "WAITING"]
        with pytest.raises(TakenError):
            study.report(claim, {0: 0.9})
        with pytest.raises(TakenError):
            study.write(claim, "x", 1)
        assert not study.end(claim, [0.9, 10])
    assert states(study) == ["FAIL", "WAITING", "WAITING", "WAITING"]
    assert study.trials()[0].values is None


def test_a_trial_whose_process_lives_on_this_machine_is_never_taken(study):
    with study.claim() as claim:
        make_stale(study)  # as when the storage was away for long
        study.sweep()
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
        study.lose(claim.id)
    assert states(study) == ["COMPLETE", "WAITING", "WAITING"]


def test_parameters_are_drawn_once(study):
    finish(study)
    with study.claim() as claim:
        assert study.params(claim) == study.params(claim) == study.params_of(1)


def test_a_trial_ends_complete_stopped_or_failed(folder):
    study = study_of(search_of(objective="accuracy", **SMALL), folder)
    study.fill_up()
    for values, failure in (([0.9], ""), (None, ""), (None, "the loss is nan")):
        with study.claim() as claim:
            study.params(claim)
            study.report(claim, {0: 0.8, 3: 0.7})
            assert study.end(claim, values, failure)
    assert states(study) == ["COMPLETE", "PRUNED", "FAIL"]
    assert [trial.values for trial in study.trials()] == [[0.9], [0.7], None]
    assert study.ended() == 3
    assert study.table()["state"].tolist() == ["complete", "stopped early", "failed"]
    assert study.table()["reason"].tolist() == ["", "", "the loss is nan"]
    assert study.trials()[2].user_attrs[FAILURE] == "the loss is nan"


def test_the_baseline_is_never_stopped(folder):
    study = study_of(search_of(objective="accuracy", **SMALL), folder)
    rounds = dict.fromkeys(range(22), 0.9)
    study.fill_up()
    for _ in range(5):
        study.optuna.add_trial(optuna.trial.create_trial(value=0.9, intermediate_values=rounds))
    with study.claim() as claim:
        assert not study.report(claim, {0: 0.9, 7: 0.1})
        with study.claim() as second:
            assert study.report(second, {0: 0.9, 7: 0.1})


def test_a_study_that_asks_something_else_is_refused_with_what_differs(study, folder):
    study_of(search_of(**SMALL | {"trials": 50}, workers=3), folder).check_settings()
    other = study_of(search_of(**SMALL, lr=0.5, search="lr=0.1..0.5"), folder)
    message = (
        "the study weight-loss/digits/lenet_3/lottery was begun with other settings: lr (here 0.5, "
        "there None), space (here prune_rate=0.05..0.6,retrain_epochs=1..20:log,lr=0.1..0.5, there "
        "prune_rate=0.05..0.6,retrain_epochs=1..20:log); choose another name with study="
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        other.check_settings()


def test_failures_are_counted_back_to_the_last_success_and_to_the_beginning(study, folder):
    study = study_of(search_of(**SMALL | {"trials": 9}), folder)
    study.fill_up()
    finish(study, failure="one")
    finish(study)
    assert latest_failures(study.trials(), set()) == []
    finish(study, failure="two")
    finish(study, failure="three")
    assert latest_failures(study.trials(), set()) == ["two", "three"]
    assert latest_failures(study.trials(), {0, 1, 2, 3}) == []
    for _ in range(2):  # the first loss is nobody's fault
        claim = claim_last(study)
        study.lose(claim.id)
    assert latest_failures(study.trials(), set()) == ["two", "three", "its process died, twice"]


def test_a_study_is_opened_again_by_its_name_with_its_directions(study, folder):
    again = Study(study.search, study.storage)
    assert [trial.number for trial in again.trials()] == [0, 1, 2]
    names = optuna.get_all_study_names(study.storage.rdb)
    assert sorted(names) == ["another/lottery", study.search.name]
    directions = [direction.name for direction in again.optuna.directions]
    assert directions == ["MAXIMIZE", "MINIMIZE"]
    assert again.optuna.metric_names == ["valid_accuracy", "total_epochs"]
    assert {trial.state for trial in again.trials()} == {TrialState.WAITING}
