"""Experiments: `python -m experiments --help` lists the commands."""

import os
import signal
import sys

# Until `handle_signals` takes over, Ctrl-C ends a command without a traceback.
if sys.argv[:1] == ["-m"]:  # as it is while `python -m experiments` imports this
    signal.signal(signal.SIGINT, signal.SIG_DFL)

# OpenMP threads spin while they wait for each other. With the default spin count, a second busy
# process on the machine makes a training step 60 times slower; a smaller count avoids that and is
# as fast otherwise.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

# Progress bars show rounds and epochs; one more for each logged file is only noise.
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
