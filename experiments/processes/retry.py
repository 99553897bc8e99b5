"""Retry: wait for a server that does not answer, with longer and longer pauses."""

import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import TypeVar

from experiments.processes.signals import defer_signals, raise_if_interrupted
from experiments.processes.terminal import Echo, describe_error

LONGEST_PAUSE = 30.0  # seconds
Result = TypeVar("Result")


def retry(
    server: str,
    call: Callable[[], Result],
    unreachable: tuple[type[Exception], ...],
    patience: float,
    echo: Echo,
    defer: bool = True,
    trouble: str = "does not answer",
    advice: str = "check that it is running and can be reached",
) -> Result:
    """The result of `call`, which is repeated while it raises one of `unreachable`.

    Args:
        server: What is called, in words; `trouble` says what is wrong with it, and `advice` what
            to do if it stays so.
        patience: How long to retry, in seconds.
        defer: Whether to defer signals while `call` runs; `call` should then be short.

    Raises:
        ConnectionError: If the server does not answer within that time.
    """
    started, pause = time.monotonic(), 1.0
    while True:
        try:
            with defer_signals() if defer else nullcontext():
                return call()
        except unreachable as error:
            why = describe_error(error.__cause__ or error)
            left = patience - (time.monotonic() - started)
        if left <= 0:
            raise ConnectionError(
                f"{server} {trouble}, even after {patience:g} s ({why}): {advice}; "
                "the same command continues from here"
            )
        if pause == 1.0:
            echo(f"{server} {trouble} ({why}); waiting up to {patience:g} s")
        raise_if_interrupted()
        time.sleep(min(pause, left))
        pause = min(2 * pause, LONGEST_PAUSE)
