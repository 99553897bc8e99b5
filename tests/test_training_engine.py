"""Which engine trains a network, and what happens where the sparse one cannot be compiled."""

import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest
import torch

from experiments.config.experiment import config_from
from experiments.processes.terminal import describe_error
from experiments.rounds.data import load_data
from experiments.rounds.rounds import RoundResult, prune_rounds
from experiments.run import run_experiment
from experiments.tracking.log import Run
from experiments.tracking.resume import stored_config
from experiments.training import engine, kernels, sparse
from experiments.training.engine import COMPILING, ENGINES, choose, usable
from models import Architecture
from tests.conftest import QUICK, ROOT, TIMEOUT, command

RUN = [sys.executable, "-m", "experiments", "run"]


def masks_of(name, side, density):
    sizes = Architecture(name, (1, side, side), 10).sizes
    return {each: torch.arange(size) < round(density * size) for each, size in sizes.items()}


@pytest.mark.parametrize(
    ("name", "side", "batch_size", "density"),
    [
        ("lenet_300_100", 28, 60, 0.53),
        ("lenet_300_100", 28, 20, 0.31),
        ("lenet_300_100", 28, 128, 0.45),
        ("lenet_300_100", 28, 200, 0.32),
        ("lenet_300_100", 8, 60, 0.93),
        ("lenet_1000_500", 28, 60, 0.46),
    ],
)
def test_auto_is_the_sparse_engine_below_a_density(name, side, batch_size, density):
    """The densities in docs/results.md, to a percentage point."""
    below, above = (masks_of(name, side, density + step) for step in (-0.01, 0.01))
    assert choose("auto", below, batch_size, ()) == "sparse"
    assert choose("auto", above, batch_size, ()) == "compact"
    for kind in ENGINES:
        assert choose(kind, below, batch_size, ()) == choose(kind, above, batch_size, ()) == kind


def test_auto_is_the_sparse_engine_for_small_networks_even_if_they_are_dense():
    assert choose("auto", masks_of("lenet_30", 28, 1), 60, ()) == "sparse"


def run(*argv, **environment):
    """A finished command, and its output."""
    env = os.environ | {"PYTHONUNBUFFERED": "1"} | environment
    return subprocess.run(
        [*RUN, *argv], cwd=ROOT, env=env, capture_output=True, text=True, timeout=TIMEOUT
    )


PRINT_DIGEST = f"""
import sys
from hashlib import sha256
import weight_loss
digest = sha256()
for network in weight_loss.prune_rounds(**{QUICK}, engine=sys.argv[1]):
    for value in network.module.network.state_dict().values():
        digest.update(value.numpy().tobytes())
print("digest", digest.hexdigest())
"""


@pytest.mark.parametrize("threads", ["1", "2"])
def test_processes_that_compile_together_and_one_that_loads_compute_the_same(tmp_path, threads):
    """A kernel that was just compiled must not differ from the one on disk."""
    env = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path), "OMP_NUM_THREADS": threads}
    outputs = []
    for count in (2, 1):
        together = [
            subprocess.Popen(
                [sys.executable, "-c", PRINT_DIGEST, "auto"],
                env=env,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for _ in range(count)
        ]
        outputs += [process.communicate(timeout=TIMEOUT)[0] for process in together]
    *compiled, loaded = outputs
    assert {output.count(COMPILING) for output in compiled} <= {0, 1}
    assert COMPILING in "".join(compiled)
    assert COMPILING not in loaded
    digests = [re.findall("^digest (.*)$", output, re.MULTILINE) for output in outputs]
    assert digests[0]
    assert digests == [digests[0]] * 3


@pytest.fixture
def without_numba(tmp_path):
    """A PYTHONPATH with a Numba that cannot be imported."""
    folder = tmp_path / "broken" / "numba"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise ImportError('Numba needs\\nan older NumPy')\n")
    return f"{folder.parent}:{ROOT}"


def test_without_a_compiler_auto_is_dense_and_says_so(without_numba):
    lines = []
    for kind, path in (("auto", without_numba), ("dense", without_numba), ("dense", str(ROOT))):
        words = [sys.executable, "-c", PRINT_DIGEST, kind]
        env = os.environ | {"PYTHONPATH": path}
        done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=TIMEOUT)
        assert done.returncode == 0, done.stderr
        lines.append(done.stdout.splitlines())
    assert lines[0] == [
        "WARNING: the sparse engine cannot be compiled here (Numba needs an older NumPy): "
        "engine=auto is dense",
        *lines[1],
    ]
    assert lines[1] == lines[2]
    assert len(lines[2]) == 1


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("compare", {"reinits": "lottery", "seeds": 1, "rounds": 1}),
        ("tune", {"trials": 1, "confirm_seeds": 0, "rounds": 0, "executor": "inline"}),
    ],
)
def test_without_a_compiler_a_comparison_and_a_search_are_dense(store, without_numba, name, more):
    words = [sys.executable, "-m", "experiments", name, *command(**more)]
    env = os.environ | {"PYTHONPATH": without_numba}
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=TIMEOUT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("engine=auto is dense") == 1
    runs = mlflow.search_runs(search_all_experiments=True, output_format="list")
    engines = {run.data.params.get("engine") for run in runs}
    assert "dense" in engines
    assert engines <= {"dense", None}


def test_auto_changes_its_engine_between_rounds_and_continues_there():
    """The digits' lenet_300_100: dense with all weights, sparse with 80% of them."""
    asked = config_from(
        {"dataset": "digits", "epochs": 1, "retrain_epochs": 1, "rounds": 2, "device": "cpu"}
    ).resolved("digits")
    data = load_data(asked)[0]
    events = prune_rounds(asked, data)
    whole = [event for event in events if isinstance(event, RoundResult)]
    assert [each.metrics["sparse_engine"] for each in whole] == [0, 1, 1]
    for number in (0, 1):
        events = prune_rounds(asked, data, after=whole[number].network)
        rest = [event for event in events if isinstance(event, RoundResult)]
        for again, before in zip(rest, whole[number + 1 :], strict=True):
            assert again.metrics == before.metrics
            state = before.network.state
            assert all(torch.equal(again.network.state[name], state[name]) for name in state)
    last = [
        prune_rounds(asked.model_copy(update={"engine": kind}), data, after=whole[0].network)
        for kind in ("sparse", "dense")
    ]
    same, other = (
        next(each for each in events if isinstance(each, RoundResult)) for events in last
    )
    assert same.metrics == whole[1].metrics
    assert other.metrics["test_loss"] == pytest.approx(same.metrics["test_loss"], rel=1e-3)
    assert other.metrics["test_loss"] != same.metrics["test_loss"]


def test_without_a_compiler_the_sparse_engine_is_an_error(store, without_numba):
    done = run(*command(engine="sparse"), PYTHONPATH=without_numba)
    assert done.returncode == 2
    assert done.stderr == (
        "error: engine=sparse cannot be compiled here (Numba needs an older NumPy): "
        "use engine=dense\n"
    )


def test_the_dense_engine_needs_no_compiler(monkeypatch):
    def fail():
        raise OSError("it is compiled")

    monkeypatch.setattr(sparse, "compile_kernels", fail)
    lines = []
    assert usable("dense", lines.append) == "dense"
    assert not lines
    assert usable("auto", lines.append) == "dense"
    assert len(lines) == 1
    with pytest.raises(ValueError, match=r"engine=sparse .* here \(it is compiled\)"):
        usable("sparse", lines.append)


def test_a_full_disk_of_the_cache_is_named(monkeypatch):
    def fail():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(sparse, "compile_kernels", fail)
    lines = []
    assert usable("auto", lines.append) == "dense"
    assert "(the disk of Numba's cache is full; NUMBA_CACHE_DIR moves the cache)" in lines[0]
    with pytest.raises(ValueError, match="the disk of Numba's cache is full") as caught:
        usable("sparse", lines.append)
    assert "use engine=dense" in describe_error(caught.value)


def test_a_rule_and_the_kernels_have_as_many_lanes():
    assert engine.LANES == kernels.LANES


def test_kernels_are_compiled_where_none_can_be_kept():
    namespace = {}
    exec("def double(x): return 2 * x", namespace)  # has no file, so no folder for its kernel
    assert kernels._compiled(namespace["double"])(2.5) == 5


def interrupt(self):
    raise KeyboardInterrupt


def test_a_run_is_resumed_with_its_own_engine_only(store, without_numba, capsys):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "finish", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run_experiment(config_from(QUICK))
    (run_id,) = re.findall(r"^run ([0-9a-f]{32})", capsys.readouterr().out, re.MULTILINE)
    for kind in ENGINES:
        with pytest.raises(ValueError, match=rf"engine \(here {kind}, there auto\)"):
            run_experiment(config_from({"resume": run_id, "engine": kind}))
    done = run("--resume", run_id, PYTHONPATH=without_numba)
    assert done.returncode == 2
    assert done.stderr == (
        "error: engine=auto needs the sparse engine, which cannot be compiled here (Numba needs an "
        "older NumPy): use another machine, or a new experiment with engine=dense\n"
    )
    assert "engine=auto is dense" not in done.stdout
    assert run("--resume", run_id).returncode == 0


def test_a_run_from_before_the_parameter_was_dense_and_its_masks_can_be_shared(store):
    run_id = run_experiment(config_from(QUICK | {"engine": "dense"}))
    run = mlflow.get_run(run_id)
    file = Path(run.info.artifact_uri.removeprefix("file://"), "config.json")
    values = json.loads(file.read_text())
    assert values.pop("engine") == "dense"
    file.write_text(json.dumps(values))
    assert stored_config(run, "run", str(store)).engine == "dense"
    shared = QUICK | {"reinit": "random", "branch_of": run_id, "masks": "shared"}
    branched = mlflow.get_run(run_experiment(config_from(shared)))
    assert branched.data.params["engine"] == "auto"
    assert branched.data.metrics["sparse_engine"] == 1
    assert branched.data.metrics["remaining_weights"] == run.data.metrics["remaining_weights"]
