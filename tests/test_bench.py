import re
import subprocess
import sys

import pytest
import torch

from experiments.bench import lenet, steps
from experiments.bench.timing import take_turns
from tests.conftest import ROOT, TIMEOUT

RATIOS = {"lenet": ["floor", "ours / floor"], "lightcnn": [], "detection": []}


@pytest.mark.parametrize("what", steps.BENCHES)
def test_the_bench_prints_times_and_ratios(capsys, what):
    steps.main([what, "--turns", "1", "--steps", "3"])
    said = capsys.readouterr().out
    for kind in ("ours", "plain", "images/s, ours", "plain / ours", *RATIOS[what]):
        row = re.search(
            rf"^  {kind} +([\d.]+)  \( *([\d.]+) to +([\d.]+), n=1\)$", said, re.MULTILINE
        )
        low, middle, high = float(row[2]), float(row[1]), float(row[3])
        assert 0 < low <= middle <= high, kind


def test_a_misspelt_bench_is_one_line():
    command = [sys.executable, "-m", "experiments", "bench", "lenett"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT)
    assert done.returncode == 2
    assert re.fullmatch(
        r"error: what must be one of .*, got lenett \(did you mean lenet\?\)\n", done.stderr
    )


def test_turns_alternate_and_the_first_is_not_counted():
    calls = []
    steps = {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}
    times = take_turns(steps, turns=2, count=2)
    assert calls == ["a", "a", "b", "b"] * 3
    assert {kind: len(values) for kind, values in times.items()} == {"a": 2, "b": 2}


def test_the_floor_does_the_products_of_a_real_step():
    """Forward and backward of LeNet-300-100: three products, three for weights, two for inputs."""
    step = lenet.floor("cpu")
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        step()
    counts = {event.key: event.count for event in profile.key_averages()}
    assert counts["aten::mm"] == 8
    assert counts["aten::_fused_adam_"] == 1
