"""The attacks of `make chaos`, for a few minutes."""

import os
import subprocess
import sys

import pytest

from tests.chaos.campaign import SHARES
from tests.conftest import ROOT

MINUTES = 2.5


@pytest.mark.slow
@pytest.mark.servers
def test_attacks_are_survived(tmp_path):
    record = tmp_path / "chaos.jsonl"
    words = [f"--minutes={MINUTES}", "--seed=0", f"--record={record}"]
    done = subprocess.run(
        [sys.executable, "-m", "tests.chaos", *words],
        cwd=ROOT,
        env=os.environ | {"TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for part in SHARES:
        assert f'"part": "{part}"' in record.read_text()


def test_an_attack_that_is_not_survived_is_reported(tmp_path):
    """So that the campaign can fail: it looks for a file that no command makes."""
    from random import Random

    from tests.chaos.jobs import JOBS, Lab, LostError

    lab = Lab(tmp_path)
    lab.measure(["run"])
    job = JOBS["run"]
    with lab.folder(job, Random(0)) as folder:
        lab.finish(job, folder)
    lab.expected["run"] = {"something": "else"}
    with pytest.raises(LostError, match="the results differ"), lab.folder(job, Random(1)) as folder:
        lab.finish(job, folder)
