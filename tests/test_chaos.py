"""The attacks of `make chaos`, for a few minutes."""

import os
import subprocess
import sys

import pytest

from tests.chaos.campaign import SHARES
from tests.chaos.faults import known_sites, sites
from tests.chaos.servers import binaries
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
    for part in set(SHARES) - (set() if binaries() else {"storage"}):
        assert f'"part": "{part}"' in record.read_text()


@pytest.mark.slow
def test_a_result_that_differs_is_noticed(tmp_path):
    """So that the attacks can fail."""
    from random import Random

    from tests.chaos.jobs import JOBS, Lab, NotSurvivedError

    lab = Lab(tmp_path)
    lab.measure(["run"])
    job = JOBS["run"]
    with lab.folder(job, Random(0)) as folder:
        lab.finish(job, folder)
    lab.expected["run"] = {"something": "else"}
    with (
        pytest.raises(NotSurvivedError, match="the results differ"),
        lab.folder(job, Random(1)) as folder,
    ):
        lab.finish(job, folder)


@pytest.mark.slow
def test_the_writes_of_the_commands_are_known(tmp_path):
    """After a change, `python -m tests.chaos.faults` lists them; `make chaos` must hit new ones."""
    assert sites(tmp_path) == known_sites()
