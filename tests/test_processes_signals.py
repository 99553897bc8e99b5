"""Signals: one becomes an exception, and is not lost where Python drops exceptions."""

import os
import signal

import pytest

from experiments.processes.signals import (
    Interrupted,
    defer_signals,
    handle_signals,
    raise_if_interrupted,
)

NUMBERS = [signal.SIGINT, signal.SIGTERM]


def send(number):
    os.kill(os.getpid(), number)
    for _ in range(100):  # the handler runs between two instructions
        pass


@pytest.mark.parametrize("number", NUMBERS)
def test_a_signal_becomes_an_exception(number):
    before = [signal.getsignal(each) for each in NUMBERS]
    with pytest.raises(Interrupted) as stop, handle_signals():
        send(number)
    assert (stop.value.number, stop.value.signal_name) == (number, number.name)
    assert [signal.getsignal(each) for each in NUMBERS] == before


def test_a_signal_is_deferred_until_the_block_ends():
    done = []

    def work():
        with defer_signals():
            send(signal.SIGTERM)
            done.append("in the block")
        done.append("after the block")

    with pytest.raises(Interrupted), handle_signals():
        work()
    assert done == ["in the block"]


def test_an_error_that_a_signal_has_caused_is_the_signal():
    def work():
        try:
            send(signal.SIGTERM)
        except BaseException:
            raise RecursionError("half of a module") from None

    with pytest.raises(Interrupted) as stop, handle_signals():
        work()
    assert stop.value.number == signal.SIGTERM
    with pytest.raises(RecursionError), handle_signals():
        raise RecursionError


class Finalized:
    def __init__(self, action):
        self.action = action

    def __del__(self):
        self.action()


def test_a_signal_in_a_finalizer_is_not_lost_and_prints_nothing(capfd):
    """Python drops an exception there, and would print it with a traceback."""
    with handle_signals():
        Finalized(lambda: send(signal.SIGTERM))
        with pytest.raises(Interrupted):
            raise_if_interrupted()
    assert capfd.readouterr() == ("", "")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_another_exception_in_a_finalizer_is_reported(monkeypatch):
    reported = []
    monkeypatch.setattr("sys.unraisablehook", lambda dropped: reported.append(dropped.exc_value))
    with handle_signals():
        Finalized(lambda: 1 / 0)
    assert [type(error) for error in reported] == [ZeroDivisionError]
