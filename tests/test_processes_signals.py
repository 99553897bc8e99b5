"""Signals: one becomes an exception, and is not lost where Python drops exceptions."""

import importlib
import os
import signal
import sys
import time

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


MODULE = """
import os, signal, time
os.kill(os.getpid(), signal.{name})
time.sleep(0.2)
whole = True
"""


@pytest.mark.parametrize("number", NUMBERS)
def test_a_signal_waits_until_an_import_has_ended(number, tmp_path, monkeypatch):
    (tmp_path / "interrupted_module.py").write_text(MODULE.format(name=number.name))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "interrupted_module", raising=False)
    before = [signal.getsignal(each) for each in (*NUMBERS, signal.SIGALRM)]

    def work():
        importlib.import_module("interrupted_module")
        time.sleep(60)

    with pytest.raises(Interrupted) as stop, handle_signals():
        work()
    assert stop.value.number == number
    assert sys.modules.pop("interrupted_module").whole
    assert [signal.getsignal(each) for each in (*NUMBERS, signal.SIGALRM)] == before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_a_signal_in_an_import_is_raised_before_signals_are_deferred(tmp_path, monkeypatch):
    """Before a run is created, for instance, although no look has come since the import."""
    monkeypatch.setattr("experiments.processes.signals.LOOK_SECONDS", 60.0)
    (tmp_path / "slow_module.py").write_text(MODULE.format(name="SIGTERM"))
    monkeypatch.syspath_prepend(tmp_path)
    done = []

    def work():
        importlib.import_module("slow_module")
        done.append("after the import")
        with defer_signals():
            done.append("in the block")

    with pytest.raises(Interrupted), handle_signals():
        work()
    assert done == ["after the import"]


def test_a_signal_is_raised_once():
    """The clean-up after it may defer signals."""
    done = []

    def work():
        try:
            with defer_signals(), defer_signals():
                send(signal.SIGTERM)
                done.append("in both blocks")
        finally:
            with defer_signals():
                done.append("clean-up")

    with pytest.raises(Interrupted), handle_signals():
        work()
    assert done == ["in both blocks", "clean-up"]


def test_an_import_that_does_not_end_is_interrupted(tmp_path, monkeypatch):
    monkeypatch.setattr("experiments.processes.signals.IMPORT_SECONDS", 0.3)
    text = MODULE.format(name="SIGTERM").replace("0.2", "60")
    (tmp_path / "endless_module.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    began = time.monotonic()
    with pytest.raises(Interrupted), handle_signals():
        importlib.import_module("endless_module")
    assert 0.3 < time.monotonic() - began < 30


def test_a_command_that_runs_in_an_import_can_be_interrupted(tmp_path, monkeypatch):
    (tmp_path / "script_module.py").write_text(
        "import time\n"
        "from experiments.processes.signals import handle_signals\n"
        "from tests.test_processes_signals import send\n"
        "with handle_signals():\n"
        "    send(15)\n"
        "    time.sleep(60)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    began = time.monotonic()
    with pytest.raises(Interrupted):
        importlib.import_module("script_module")
    assert time.monotonic() - began < 30


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
