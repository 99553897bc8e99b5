"""Command: what a command line asks for is done, and a mistake is told in one line."""

import sys
from collections.abc import Callable

from experiments import server, summary
from experiments.held_run import ERRORS
from experiments.liveness import Interrupted, stop_signals

USER_ERROR = 2


def obey(work: Callable[[], object], when_stopped: str = "") -> None:
    """Do `work`; mistakes become one line and a non-zero exit, a signal its usual exit status.

    Args:
        when_stopped: What to tell somebody who has stopped it.
    """
    attached = server.attached_run()
    try:
        with stop_signals():
            work()
    except Interrupted as stop:
        if when_stopped:
            print(when_stopped, file=sys.stderr)
        sys.exit(128 + stop.number)
    except (*ERRORS, MemoryError, RuntimeError) as error:
        if not isinstance(error, ERRORS) and "memory" not in summary.explain(error):
            raise  # a mistake of ours, to be seen in full
        print(f"error: {summary.explain(error)}", file=sys.stderr)
        if attached and server.attached_run():  # not started yet, so nobody has marked it
            server.mark_failed(attached, error)
        sys.exit(USER_ERROR)
