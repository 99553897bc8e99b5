"""Claims on experiments, as several processes make them."""

import threading
import time

import mlflow
import pytest

from experiments.config.experiment import config_from
from experiments.processes.locks import run_lock
from experiments.processes.tasks import THREADS_PER_WORKER
from experiments.tracking.claims import Claims, duplicate_of, mark_started
from experiments.tracking.fingerprint import fingerprint
from tests.conftest import QUICK
from tests.test_tracking_session import begin, parent

assert parent  # a fixture
ASKED = config_from(QUICK)


def claim(claims):
    return claims.claim("an arm", ASKED, "digits", "digest")


def test_of_two_processes_one_gets_an_experiment_until_it_gives_it_up(parent):
    with Claims() as ours:
        assert claim(ours).config == ASKED
        with Claims() as theirs:
            assert claim(theirs) is None
            ours.release("an arm")
            assert claim(theirs)
            assert claim(ours) is None
        assert claim(ours)
    with Claims() as theirs:
        assert claim(theirs)


def test_a_claim_whose_search_fails_is_given_up(parent, monkeypatch):
    def fails(*_):
        raise OSError("the store does not answer")

    with monkeypatch.context() as patched, Claims() as ours:
        patched.setattr("experiments.tracking.claims.find_or_resume", fails)
        with pytest.raises(OSError, match="the store"):
            claim(ours)
        patched.undo()
        with Claims() as theirs:
            assert claim(theirs)


def test_an_experiment_that_is_running_is_not_claimed(parent):
    key = fingerprint(ASKED.resolved("digits"), "digest", THREADS_PER_WORKER)
    tags = {"lock": "elsewhere", "heartbeat": str(time.time()), "weight_loss.fingerprint": key}
    run_id = begin(parent, **tags)
    with Claims() as ours, Claims() as theirs:
        assert claim(ours) is None
        mlflow.MlflowClient().set_terminated(run_id, "FINISHED")
        assert claim(theirs).run.info.run_id == run_id  # it is not locked


def test_the_run_of_another_process_is_waited_for_and_then_taken_as_ours(parent):
    """Whatever its fingerprint is: that of another machine's processor may differ from ours."""
    other = begin(parent)
    with Claims() as ours:
        assert claim(ours).run is None
        ours.release("an arm", duplicate=other)
        with run_lock(other):
            mlflow.MlflowClient().set_tag(other, "weight_loss.heartbeat", str(time.time()))
            assert claim(ours) is None
        mlflow.MlflowClient().set_terminated(other, "FINISHED")
        assert claim(ours).run.info.run_id == other


def test_if_the_run_of_another_process_dies_the_experiment_is_ours(parent):
    other = begin(parent, heartbeat="0")
    with Claims() as ours:
        ours.release("an arm", duplicate=other)
        assert claim(ours).run is None


@pytest.fixture
def announced(parent):
    """Two runs of the same experiment in other processes, the earlier one first."""
    tags = {"lock": "elsewhere", "heartbeat": str(time.time()), "weight_loss.fingerprint": "same"}
    runs = [mlflow.get_run(begin(parent, **tags)) for _ in range(2)]
    return sorted((run.info.start_time, run.info.run_id) for run in runs)


def ids_of(announced):
    return [run_id for _, run_id in announced]


def test_of_two_runs_announced_at_the_same_time_the_later_one_gives_way(announced):
    first, second = ids_of(announced)
    assert duplicate_of(second, "same").info.run_id == first
    began = time.monotonic()
    threading.Timer(1, lambda: mlflow.MlflowClient().delete_run(second)).start()
    assert duplicate_of(first, "same") is None
    assert time.monotonic() > began + 1  # the second may have looked before it could see the first


def test_a_run_gives_way_to_one_that_has_begun_whatever_the_clocks_say(announced):
    first, second = ids_of(announced)
    mark_started(second)
    assert duplicate_of(first, "same").info.run_id == second


def test_a_run_gives_way_to_one_that_has_finished_but_not_to_one_that_was_killed(announced):
    first, second = ids_of(announced)
    mlflow.MlflowClient().set_terminated(second, "FINISHED")
    assert duplicate_of(first, "same").info.run_id == second
    mlflow.MlflowClient().set_terminated(second, "KILLED")
    assert duplicate_of(first, "same") is None
    assert duplicate_of(first, "other") is None
