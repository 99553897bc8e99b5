"""Patience: a server that does not answer is waited for, with longer and longer pauses."""

import time
from collections.abc import Callable
from typing import TypeVar

from experiments.processes.signals import defer_signals, raise_if_interrupted
from experiments.processes.terminal import Echo, describe_error

LONGEST_PAUSE = 30.0  # seconds
Result = TypeVar("Result")


def retry(
    what: str,
    do: Callable[[], Result],
    unreachable: tuple[type[Exception], ...],
    patience: float,
    echo: Echo,
) -> Result:
    """The result of `do`, which is tried again while it raises one of `unreachable`.

    Args:
        what: Who does not answer, in words.
        patience: For how many seconds at most.

    Raises:
        ConnectionError: If it does not answer within that time.
    """
    began, pause = time.monotonic(), 1.0
    while True:
        try:
            with defer_signals():
                return do()
        except unreachable as error:
            why = describe_error(error.__cause__ or error)
            left = patience - (time.monotonic() - began)
        if left <= 0:
            raise ConnectionError(
                f"{what} has not answered for {patience:g} s ({why}): see that it runs and can be "
                "reached; the same command goes on from here"
            )
        if pause == 1.0:
            echo(f"{what} does not answer ({why}); waiting for it, {patience:g} s at most")
        raise_if_interrupted()
        time.sleep(min(pause, left))
        pause = min(2 * pause, LONGEST_PAUSE)
