"""Signals: SIGINT and SIGTERM stop a command with an exception, so that it can clean up."""

import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

IMPORT_SECONDS = 15.0  # for which an import that is under way may delay a signal
LOOK_SECONDS = 0.01  # between looks whether it has ended
_IMPORTER = "<frozen importlib._bootstrap>"


class Interrupted(KeyboardInterrupt):
    """The process received the signal `number`, whose name is `signal_name`."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number
        self.signal_name = signal.Signals(number).name


_received: list[int] = []  # numbers of the signals since `handle_signals` began
_waiting: list[int] = []  # those whose exceptions are still to be raised
_deferring: list[bool] = []  # one entry for each `defer_signals` that is active


def raise_if_interrupted() -> None:
    """Raise `Interrupted` if a signal came and its exception was lost.

    Python drops an exception of a signal handler that runs in a finalizer or a weak reference's
    callback. A thread other than the main one never gets it.
    """
    if _received:
        _waiting.clear()
        raise Interrupted(_received[0])


def _raise_waiting() -> None:
    if _waiting and not _deferring:
        raise Interrupted(_waiting.pop())


@contextmanager
def defer_signals() -> Iterator[None]:
    """Signals are deferred until the block ends.

    In the middle of a write to SQLite, `Interrupted` would leave the file locked: its traceback
    keeps the cursor open, and the clean-up would then wait for this same process.
    """
    if threading.current_thread() is not threading.main_thread():  # only that one gets signals
        yield
        return
    _raise_waiting()  # if it came in an import
    _deferring.append(True)
    try:
        yield
    finally:
        _deferring.pop()
    _raise_waiting()


@contextmanager
def handle_signals() -> Iterator[None]:
    """Turn the first SIGINT or SIGTERM into `Interrupted`.

    An import that is under way is finished first: an exception there can leave half a module, and
    ends the process if it meets an extension in C++. During the clean-up that follows, SIGTERM is
    ignored (`mlflow run` sends one after a Ctrl-C), and another SIGINT ends the process at once.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        # Not SIG_IGN, with which Python reports a signal that is already pending as an error.
        signal.signal(signal.SIGTERM, lambda *_: None)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        _received.append(number)
        _waiting.append(number)
        give_up = time.monotonic() + IMPORT_SECONDS
        signal.signal(signal.SIGALRM, lambda _, frame: stop_unless_importing(frame, give_up))
        stop_unless_importing(frame, give_up)

    def stop_unless_importing(frame: FrameType | None, give_up: float) -> None:
        if _imports(frame) <= outside or time.monotonic() > give_up:
            _raise_waiting()
        elif _waiting:
            signal.setitimer(signal.ITIMER_REAL, LOOK_SECONDS)

    outside = _imports(sys._getframe())
    report = sys.unraisablehook

    def report_others(dropped: "sys.UnraisableHookArgs") -> None:
        if not isinstance(dropped.exc_value, Interrupted):  # which `raise_if_interrupted` raises
            report(dropped)

    sys.unraisablehook = report_others
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    before[signal.SIGALRM] = signal.getsignal(signal.SIGALRM)
    try:
        yield
    except Exception as error:
        if _received:  # it may have left something half done, with which something else fails
            raise Interrupted(_received[0]) from error
        raise
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        sys.unraisablehook = report
        _received.clear()
        _waiting.clear()
        for number, handler in before.items():
            signal.signal(number, handler)


def _imports(frame: FrameType | None) -> int:
    """How many frames of Python's importer are below this one."""
    count = 0
    while frame:
        count += frame.f_code.co_filename == _IMPORTER
        frame = frame.f_back
    return count
