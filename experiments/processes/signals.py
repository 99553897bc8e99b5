"""Signals: SIGINT and SIGTERM stop a command with an exception, so that it can clean up."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupted(KeyboardInterrupt):
    """The process received the signal `number`, whose name is `signal_name`."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number
        self.signal_name = signal.Signals(number).name


_received: list[int] = []  # numbers of the signals since `handle_signals` began
_deferring: list[bool] = []  # one entry for each `defer_signals` that is active


def raise_if_interrupted() -> None:
    """Raise `Interrupted` if a signal came and its exception was lost.

    Python drops an exception of a signal handler that runs in a finalizer or a weak reference's
    callback. A thread other than the main one never gets it.
    """
    if _received:
        raise Interrupted(_received[0])


@contextmanager
def defer_signals() -> Iterator[None]:
    """Signals are deferred until the block ends.

    In the middle of a write to SQLite, `Interrupted` would leave the file locked: its traceback
    keeps the cursor open, and the clean-up would then wait for this same process.
    """
    if threading.current_thread() is not threading.main_thread():  # only that one gets signals
        yield
        return
    before = len(_received)
    _deferring.append(True)
    try:
        yield
    finally:
        _deferring.pop()
    if len(_received) > before:
        raise Interrupted(_received[-1])


@contextmanager
def handle_signals() -> Iterator[None]:
    """Turn the first SIGINT or SIGTERM into `Interrupted`.

    During the clean-up that follows, SIGTERM is ignored (`mlflow run` sends one after a Ctrl-C),
    and another SIGINT ends the process at once.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        del frame
        # Not SIG_IGN, with which Python reports a signal that is already pending as an error.
        signal.signal(signal.SIGTERM, lambda *_: None)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        _received.append(number)
        if not _deferring:
            raise Interrupted(number)

    report = sys.unraisablehook

    def report_others(dropped: "sys.UnraisableHookArgs") -> None:
        if not isinstance(dropped.exc_value, Interrupted):  # which `raise_if_interrupted` raises
            report(dropped)

    sys.unraisablehook = report_others
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except Exception as error:
        if _received:  # in an import, it leaves half a module, with which something else fails
            raise Interrupted(_received[0]) from error
        raise
    finally:
        sys.unraisablehook = report
        _received.clear()
        for number, handler in before.items():
            signal.signal(number, handler)
