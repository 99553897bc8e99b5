"""Experiments: `python -m experiments --help` lists what can be run."""

import os

# Threads wait for each other by spinning. By default they spin so long that a second busy process
# on the machine makes a training step 60 times slower; this is as fast alone, and far better then.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

# Runs, rounds and epochs have bars of their own; one for each small file says nothing.
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
