"""docs/python.md: its code is that of docs/python_api.py, which runs."""

import re
import subprocess
import sys

from tests.conftest import ROOT, TIMEOUT

SCRIPT = ROOT / "docs" / "python_api.py"


def cells():
    """The code of the script by cell."""
    _, *parts = re.split(r"^# %% .*\n", SCRIPT.read_text(), flags=re.MULTILINE)
    return [part.strip() for part in parts]


def test_the_page_shows_the_script_cell_by_cell():
    page = (ROOT / "docs" / "python.md").read_text()
    assert re.findall(r"```python\n(.*?)\n```", page, re.DOTALL) == cells()


def test_the_script_runs_in_any_folder(store):
    done = subprocess.run(
        [sys.executable, SCRIPT], capture_output=True, text=True, timeout=TIMEOUT, cwd=store
    )
    assert done.returncode == 0, done.stderr
    assert "fc1.weight (300, 64) 51.2% left" in done.stdout
    rounds = re.findall(r"^(\d) (\d+\.\d%) 0\.9\d+$", done.stdout, re.MULTILINE)
    assert rounds == [("0", "0.0%"), ("1", "20.0%"), ("2", "36.0%"), ("3", "48.8%")]
    assert (store / "random.safetensors").is_file()
