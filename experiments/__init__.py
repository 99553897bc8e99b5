"""Experiments: `python -m experiments --help` lists what can be run."""

import os

# Threads wait for each other by spinning. By default they spin so long that a second busy process
# on the machine makes a training step 60 times slower; this is as fast alone, and far better then.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

# Runs, rounds and epochs have bars of their own; one for each small file says nothing.
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

import torch

# Optimizer states of weights whose gradient is zero decay into denormal numbers, which make a
# training step 2.4 times slower. Threads inherit this when they start, so it is set at once.
torch.set_flush_denormal(True)

# Every run repeats bit for bit; on a GPU that takes algorithms which torch must be asked for.
# Filling new memory, which goes with it, costs time, and we read none unwritten.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
torch.use_deterministic_algorithms(True)
torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
