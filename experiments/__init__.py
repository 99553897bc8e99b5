"""Experiments: `python -m experiments --help` lists the commands."""

import os

# OpenMP threads spin while they wait for each other. With the default spin count, a second busy
# process on the machine makes a training step 60 times slower; a smaller count avoids that and is
# as fast otherwise.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

# Progress bars show rounds and epochs; one more for each logged file is only noise.
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
