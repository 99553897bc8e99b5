"""Python imports this when a worker of an attacked command starts; see `faults`."""

import os
from pathlib import Path

if fault := os.environ.get("CHAOS_FAULT"):
    at, kind, folder = fault.split(" ", 2)
    from tests.chaos.faults import Hook

    Hook(Path(folder), int(at), kind.replace("_", " "), None).install()
