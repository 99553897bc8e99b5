"""Studies in a real storage: which process runs which trial, and how trials end."""

import os
import re
import subprocess
import sys
from contextlib import ExitStack, contextmanager

import optuna
import pytest
from optuna.trial import TrialState
from sqlalchemy.engine import make_url

from experiments.tuning.sampling import SPREAD, distributions
from experiments.tuning.storage import FAILURE, exclusive_lock, is_lost
from experiments.tuning.study import Study
from tests.conftest import ROOT
from tests.searching import search_of, study_of

SMALL = {"model": "lenet_3", "epochs": 1, "trials": 3}


@pytest.fixture
def study(tmp_path):
    """A study with three waiting trials."""
    study = study_of(search_of(**SMALL), tmp_path)
    study.enqueue_missing()
    return study


def states(study):
    return [trial.state.name for trial in study.trials()]


def finish(study, failure=""):
    """Run the next trial; its number and its parameters."""
    with study.claim() as claim:
        params = study.params(claim)
        assert study.end(claim, None if failure else [0.9, 10], failure)
    return claim.number, params


def test_exactly_the_missing_trials_are_enqueued(study, tmp_path):
    assert states(study) == ["WAITING"] * 3
    study.enqueue_missing()
    assert (len(study.trials()), study.waiting(), study.ended()) == (3, 3, 0)
    finish(study)
    more = study_of(search_of(**SMALL | {"trials": 5}), tmp_path)
    more.enqueue_missing()
    assert states(more) == ["COMPLETE", *["WAITING"] * 4]
    assert (study.waiting(), more.waiting()) == (2, 4)  # each search counts its own `trials`
    study.enqueue_missing()
    assert len(study.trials()) == 5


def test_a_failed_trial_counts_and_a_lost_one_does_not(study):
    finish(study, failure="the loss is nan")
    with study.claim() as claim:
        study.requeue(claim.id)
    study.enqueue_missing()
    assert states(study) == ["FAIL", "FAIL", "WAITING", "WAITING"]
    assert [is_lost(trial) for trial in study.trials()[:2]] == [False, True]
    assert (study.ended(), study.waiting()) == (1, 2)


def test_a_trial_can_be_claimed_once(study):
    with ExitStack() as held:
        claims = [held.enter_context(study.claim()) for _ in range(4)]
        assert [claim.number for claim in claims[:3]] == [0, 1, 2]
        assert claims[3] is None
        assert states(study) == ["RUNNING"] * 3
    assert study.trials()[0].user_attrs["worker"].endswith(f" {os.getpid()}")


CLAIM = """
import os, sys
from experiments.tuning.study import Study
from experiments.tuning.storage import Storage
from tests.searching import search_of
search, url = search_of(model="lenet_3", epochs=1, trials=24), f"sqlite:///{sys.argv[1]}/optuna.db"
for number in range(4):
    if os.fork() == 0:
        study, found = Study(search, Storage(url, 60, print)), []
        study.enqueue_missing()
        while True:
            with study.claim() as claim:
                if claim is None:
                    break
                found.append(claim.number)
                assert study.end(claim, [0.9, 10])
        print(" ".join(map(str, [number, *found])) + "\\n", end="", flush=True)  # one write
        os._exit(0)
for _ in range(4):
    assert os.wait()[1] == 0
"""


def test_four_processes_share_the_trials_and_enqueue_them_once(tmp_path):
    """They also create the storage and the study at the same time."""
    done = subprocess.run(
        [sys.executable, "-c", CLAIM, tmp_path],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    study = study_of(search_of(**SMALL | {"trials": 24}), tmp_path)
    assert states(study) == ["COMPLETE"] * 24, done.stdout
    found = [list(map(int, line.split()[1:])) for line in done.stdout.splitlines()]
    assert len(found) == 4
    assert sum(map(bool, found)) > 1  # they did share
    assert sorted(number for numbers in found for number in numbers) == list(range(24)), done.stdout


def test_the_baseline_is_the_first_trial_and_its_retry(tmp_path):
    study = study_of(search_of(**SMALL | {"prune_rate": 0.33, "retrain_epochs": 7}), tmp_path)
    study.enqueue_missing()
    with study.claim() as claim:
        study.requeue(claim.id)  # before it had any parameters
    _, second = finish(study)
    finish(study)
    number, params = finish(study)
    assert number == 3
    assert params == {"prune_rate": 0.33, "retrain_epochs": 7} != second
    assert study.table()["again_for"].tolist()[3] == 0


def test_parameters_are_sampled_once(study):
    finish(study)
    with study.claim() as claim:
        assert study.params(claim) == study.params(claim) == study.trials()[1].params


def test_a_sample_of_which_a_part_is_stored_is_completed_within_budget(tmp_path):
    """As after an outage of the storage between two parameters."""
    asked = {"objective": "accuracy", "budget_epochs": 12, "epochs": 5, "trials": 14}
    study = study_of(search_of(**asked), tmp_path)
    study.enqueue_missing()
    rule = distributions(study.search.space)["retrain_epochs"]
    for _ in range(14):
        with study.claim() as claim:
            study.rdb.set_trial_param(claim.id, "retrain_epochs", 3, rule)
            params = study.params(claim)
            study.end(claim, [0.9])
        assert params["retrain_epochs"] == 3
        assert claim.number <= SPREAD or study.search.is_affordable(params)


def test_a_trial_ends_complete_stopped_or_failed(tmp_path):
    study = study_of(search_of(objective="accuracy", **SMALL), tmp_path)
    study.enqueue_missing()
    for values, failure in (([0.9], ""), (None, ""), (None, "the loss is nan")):
        with study.claim() as claim:
            study.params(claim)
            study.record_levels(claim, {0: 0.8, 3: 0.7})
            assert study.end(claim, values, failure)
    assert states(study) == ["COMPLETE", "PRUNED", "FAIL"]
    assert [trial.values for trial in study.trials()] == [[0.9], [0.7], None]
    assert study.ended() == 3
    assert study.table()["state"].tolist() == ["complete", "stopped early", "failed"]
    assert study.table()["reason"].tolist() == ["", "", "the loss is nan"]
    assert study.trials()[2].user_attrs[FAILURE] == "the loss is nan"


def test_the_baseline_is_never_stopped_early(tmp_path):
    study = study_of(search_of(objective="accuracy", **SMALL), tmp_path)
    rounds = dict.fromkeys(range(22), 0.9)
    study.enqueue_missing()
    for _ in range(5):
        study.optuna.add_trial(optuna.trial.create_trial(value=0.9, intermediate_values=rounds))
    with study.claim() as claim:
        assert not study.record_levels(claim, {0: 0.9, 7: 0.1})
        with study.claim() as second:
            assert study.record_levels(second, {0: 0.9, 7: 0.1})


def test_a_study_with_other_settings_is_refused_with_the_differences(study, tmp_path):
    study_of(search_of(**SMALL | {"trials": 50}, workers=3), tmp_path).check_settings()
    other = study_of(search_of(**SMALL, lr=0.5, search="lr=0.1..0.5"), tmp_path)
    message = (
        "the study weight-loss/digits/lenet_3/lottery was begun with other settings: lr (here 0.5, "
        "there 0.0012), retrain_lr (here 0.5, there 0.0012), space (here prune_rate=0.05..0.6:log,"
        "retrain_epochs=1..20:log,lr=0.1..0.5, there prune_rate=0.05..0.6:log,"
        "retrain_epochs=1..20:log); choose another name with study="
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        other.check_settings()


def test_a_study_continues_with_wider_ranges_and_not_with_narrower_ones(tmp_path):
    narrow = search_of(search="lr=0.001..0.01", **SMALL)
    wide = search_of(search="lr=0.001..0.1,retrain_epochs=1..40:log", **SMALL | {"trials": 20})
    study = study_of(narrow, tmp_path)
    study.check_settings()
    study.enqueue_missing()
    for _ in range(3):
        finish(study)
    wider = study_of(wide, tmp_path)
    wider.check_settings()
    wider.enqueue_missing()
    drawn = [finish(wider)[1] for _ in range(17)]
    assert any(params["lr"] > 0.01 or params["retrain_epochs"] > 20 for params in drawn)
    with pytest.raises(ValueError, match=r"was begun with other settings: space \(here prune_rate"):
        study_of(narrow, tmp_path).check_settings()


def test_of_two_commands_that_widen_different_ends_at_once_one_is_refused(tmp_path, monkeypatch):
    study_of(search_of(search="lr=0.001..0.01", **SMALL), tmp_path).check_settings()
    low = study_of(search_of(search="lr=0.0005..0.01", **SMALL), tmp_path)
    high = study_of(search_of(search="lr=0.001..0.02", **SMALL), tmp_path)
    refused = []

    @contextmanager
    def lock():
        """Once this command frees the storage's lock, the other checks its settings at once."""
        with exclusive_lock(make_url(low.storage.url)):
            yield
        try:
            high.check_settings()
        except ValueError as error:
            refused.append(str(error))

    monkeypatch.setattr(low.storage, "lock", lock)
    low.check_settings()
    assert len(refused) == 1
    assert "lr=0.001..0.02, there prune_rate" in refused[0]
    assert low.optuna.user_attrs["settings"] == low.search.settings()


@pytest.mark.parametrize("change", [{"scheme": 1}, {"scheme": None}, {"a_new_setting": 3}])
def test_a_study_of_another_version_is_refused_in_one_line(study, change):
    stored = study.search.settings() | change
    kept = {name: value for name, value in stored.items() if value is not None}
    study.optuna.set_user_attr("settings", kept)
    message = (
        "the study weight-loss/digits/lenet_3/lottery was begun by another version of this "
        "program; choose another name with study="
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        study.check_settings()


def test_a_study_is_reopened_by_name_with_its_directions(study, tmp_path):
    again = Study(study.search, study.storage)
    assert [trial.number for trial in again.trials()] == [0, 1, 2]
    names = optuna.get_all_study_names(study.storage.rdb)
    assert names == [study.search.name]
    directions = [direction.name for direction in again.optuna.directions]
    assert directions == ["MAXIMIZE", "MINIMIZE"]
    assert again.optuna.metric_names == ["valid_accuracy", "total_epochs"]
    assert {trial.state for trial in again.trials()} == {TrialState.WAITING}
