import re
import subprocess
import sys
from math import log

import pytest
import torch

from experiments.bench import csr, density, lenet, sampling, steps, units
from experiments.bench.timing import take_turns
from experiments.tuning.sampling import MODELS
from models import Architecture
from pruning.masks import apply_masks
from pruning.units import cost
from tests.conftest import ROOT, TIMEOUT

RATIOS = {"lenet": ["floor", "ours / floor"], "lightcnn": [], "detection": []}


@pytest.mark.parametrize("what", RATIOS)
def test_the_bench_prints_times_and_ratios(capsys, what):
    steps.main([what, "--turns", "1", "--steps", "3"])
    said = capsys.readouterr().out
    for kind in ("ours", "plain", "images/s, ours", "plain / ours", *RATIOS[what]):
        row = re.search(
            rf"^  {kind} +([\d.]+)  \( *([\d.]+) to +([\d.]+), n=1\)$", said, re.MULTILINE
        )
        low, middle, high = float(row[2]), float(row[1]), float(row[3])
        assert 0 < low <= middle <= high, kind


def test_the_bench_of_engines_has_two_tables(capsys, monkeypatch):
    monkeypatch.setattr(density, "DENSITIES", (0.5, 0.02))
    steps.main(["engines", "--turns", "2", "--steps", "20"])
    _machine, *lines = capsys.readouterr().out.splitlines()
    for title, kinds in (("all in", 4), ("alone", 3)):
        what, heads, *rows = lines[:4]
        del lines[:4]
        assert what == f"a training step of LeNet-300-100 by density, {title}, ms:"
        names = ["density", "dense", "sparse", "torch.sparse", "plain"][: kinds + 1]
        assert heads.split() == [*names, "dense", "/", "sparse"]
        for row, expected in zip(rows, ("0.5", "0.02"), strict=True):
            found, *times = row.split()[: kinds + 1]
            assert found == expected
            assert all(0.01 < float(time) < 1000 for time in times)
            assert re.search(r" [\d.]+  \([\d.]+ to [\d.]+, n=2\)$", row)
        assert float(rows[1].split()[2]) < float(rows[0].split()[2])  # fewer survivors, less time
    assert not lines


def test_the_bench_of_units_has_a_row_for_each_share(capsys, monkeypatch):
    monkeypatch.setattr(units, "SHARES", (0.5, 0.1))
    steps.main(["units", "--turns", "1", "--steps", "1"])
    _machine, what, heads, *rows = capsys.readouterr().out.splitlines()
    assert what == "a training step of LightCNN-9 by units left, ms:"
    assert heads.split() == ["multiply-adds", "dense", "compact", "dense", "/", "compact"]
    assert [row.split()[0] for row in rows] == ["0.5", "0.1"]
    assert float(rows[1].split()[2]) < float(rows[0].split()[2])  # fewer units, less time
    for share in (0.5, 0.1):
        masks, uses = units.masks_of(share), units.TRAINING.network.uses
        left = cost(masks, uses) / sum(uses[name] * mask.numel() for name, mask in masks.items())
        assert share - 0.02 < left <= share


def test_a_step_with_torch_sparse_is_that_of_the_dense_engine():
    network = Architecture("lenet_20_10", (1, 8, 8), 10)
    state, draw = network.draw(0), torch.Generator().manual_seed(0)
    masks = {name: torch.rand(state[name].shape, generator=draw) < 0.3 for name in network.prunable}
    images = torch.rand(30, 1, 8, 8, generator=draw)
    labels = torch.randint(10, (30,), generator=draw)
    model = network.build()
    model.load_state_dict(apply_masks(state, masks))
    loss = torch.nn.functional.cross_entropy(model(images), labels)
    expected = dict(zip(state, torch.autograd.grad(loss, list(model.parameters())), strict=True))
    values = images.flatten(1).t().contiguous()
    mask = masks["fc1.weight"]
    weight = state["fc1.weight"][mask].requires_grad_()
    hidden = csr.Product.apply(weight, values, csr.Matrix(mask))
    hidden = (hidden + state["fc1.bias"].unsqueeze(1)).relu().t()
    for number in (2, 3):
        name = f"fc{number}.weight"
        hidden = hidden @ (state[name] * masks[name]).t() + state[f"fc{number}.bias"]
        hidden = hidden.relu() if number == 2 else hidden
    (found,) = torch.autograd.grad(torch.nn.functional.cross_entropy(hidden, labels), [weight])
    assert torch.allclose(found, expected["fc1.weight"][mask], rtol=1e-4, atol=1e-7)


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


def test_a_front_dominates_the_area_between_its_steps():
    """Of the true front's area in log epochs up to 910, above 90%."""
    points = [(0.95, 91), (0.93, 455), (0.91, 10), (0.5, 1)]
    whole = 0.01 * log(91) + 0.04 * log(10)
    assert sampling.hypervolume(points, 0.9) == pytest.approx(whole)
    assert sampling.hypervolume([], 0.9) == 0


def test_samplers_play_the_same_seeds_on_every_formula(capsys, monkeypatch):
    before = dict(MODELS)
    monkeypatch.setattr(sampling, "TRIALS", 10)
    monkeypatch.setattr(sampling, "GRID", 20)
    sampling.main(["random", "random", "--seeds", "2"])
    *lines, _heads, one, two = capsys.readouterr().out.strip().split("\n")
    assert one.split()[:-1] == two.split()[:-1]  # all but the milliseconds
    scores = [float(word) for word in re.findall(r"(0\.\d+) \+-", one)]
    assert len(scores) == len(sampling.LANDSCAPES)
    assert all(0.5 < score < 1 for score in scores)
    assert lines[3].endswith("random gains 0.000 +- 0.000, and is better for 0 of 2 seeds")
    assert before == MODELS
