"""TODO."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupted(KeyboardInterrupt):
    """Somebody asked the process to stop; `signal_name` says how."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number
        self.signal_name = signal.Signals(number).name


_received: list[int] = []


_deferring: list[bool] = []


def raise_if_interrupted() -> None:
    """Raise `Interrupted` if a signal came whose exception Python swallowed.

    It does so when the handler happens to run inside a finalizer or a weak reference's callback.
    """
    if _received:
        raise Interrupted(_received[0])


@contextmanager
def defer_signals() -> Iterator[None]:
    """A signal that comes meanwhile is obeyed afterwards.

    In the middle of a write to SQLite, `Interrupted` would leave the file locked: its traceback
    keeps the open cursor, and what cleans up waits for this very process.
    """
    if threading.current_thread() is not threading.main_thread():  # which alone gets signals
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

    While that is cleaned up after, SIGTERM is ignored (`mlflow run` sends one after a Ctrl-C), and
    another SIGINT ends the process at once.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        del frame
        signal.signal(signal.SIGTERM, lambda *_: None)  # for SIG_IGN, one on its way is an error
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        _received.append(number)
        if not _deferring:
            raise Interrupted(number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    _received.clear()
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
