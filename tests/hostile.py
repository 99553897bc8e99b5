"""Hostile files: damaged at random, and read with little memory."""

import tracemalloc
from contextlib import contextmanager

MEGABYTE = 1 << 20


class TooLongError(BaseException):
    """Something takes too long; a BaseException, so that no reader catches it."""


def too_long(*_):
    """A handler of SIGALRM."""
    raise TooLongError


@contextmanager
def memory_limit():
    """Fails if the block takes more than 64 MB of Python's and NumPy's memory at its peak."""
    tracemalloc.start()
    try:
        yield
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 64 * MEGABYTE


def mutate(content, dice):
    """Change, cut, remove or insert bytes of a bytearray."""
    kind = dice.randrange(4)
    place = dice.randrange(len(content))
    if kind == 0:
        content[place] ^= 1 << dice.randrange(8)
    elif kind == 1:
        del content[place:]
    elif kind == 2:
        del content[place : place + dice.randrange(1, 9)]
    else:
        content[place:place] = dice.randbytes(dice.randrange(1, 9))
    return content
