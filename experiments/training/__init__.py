"""How one network is trained and evaluated under one set of masks.

Importing this package sets PyTorch up so that the same seed gives the same bytes.
"""

import os

import torch

# Optimizer states of weights whose gradient is zero decay into denormal numbers, which make a
# training step 2.4 times slower. Threads inherit the setting when they start, so it comes first.
torch.set_flush_denormal(True)

# The same as `use_deterministic_algorithms(True)`, which also imports the compiler (1.3 s).
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
torch.set_deterministic_debug_mode("error")
# That also fills new memory, which takes time, and nothing here reads uninitialised memory.
torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
