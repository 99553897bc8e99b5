"""Which engine trains a network, and what happens where the sparse one cannot be compiled."""

import os
import re
import subprocess
import sys

import pytest
import torch

from experiments.config.experiment import config_from
from experiments.run import run_experiment
from experiments.tracking.log import Run
from experiments.training import kernels
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
        ("lenet_1000_500", 28, 60, 0.45),
    ],
)
def test_auto_is_the_sparse_engine_below_a_density(name, side, batch_size, density):
    """The densities in docs/results.md, to half a percentage point."""
    below, above = (masks_of(name, side, density + step) for step in (-0.005, 0.01))
    assert choose("auto", below, batch_size) == "sparse"
    assert choose("auto", above, batch_size) == "dense"
    for engine in ENGINES:
        assert choose(engine, below, batch_size) == choose(engine, above, batch_size) == engine


def test_auto_is_the_sparse_engine_for_small_networks_even_if_they_are_dense():
    assert choose("auto", masks_of("lenet_30", 28, 1), 60) == "sparse"


def run(*argv, **environment):
    """A finished command, and its output."""
    env = os.environ | {"PYTHONUNBUFFERED": "1"} | environment
    return subprocess.run(
        [*RUN, *argv], cwd=ROOT, env=env, capture_output=True, text=True, timeout=TIMEOUT
    )


def accuracies(output):
    return re.findall(r"^round .*%  valid ([\d.]+)  test ([\d.]+)", output, re.MULTILINE)


PRINT_DIGEST = f"""
from hashlib import sha256
import weight_loss
digest = sha256()
for network in weight_loss.prune_rounds(**{QUICK}):
    for value in network.module.network.state_dict().values():
        digest.update(value.numpy().tobytes())
print("digest", digest.hexdigest())
"""


def test_processes_that_compile_together_and_one_that_loads_compute_the_same_bits(tmp_path):
    """A kernel that was just compiled must not differ from the one on disk."""
    env = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    outputs = []
    for count in (2, 1):
        together = [
            subprocess.Popen(
                [sys.executable, "-c", PRINT_DIGEST],
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


def test_without_a_compiler_auto_is_dense_and_says_so(store, without_numba):
    done = run(*command(), PYTHONPATH=without_numba)
    assert done.returncode == 0, done.stderr
    line = (
        "WARNING: the sparse engine cannot be compiled here (Numba needs an older NumPy): "
        "engine=auto is dense"
    )
    assert done.stdout.splitlines().count(line) == 1
    dense = run(*command(engine="dense"))
    assert accuracies(done.stdout) == accuracies(dense.stdout) != []
    assert COMPILING not in dense.stdout


def test_without_a_compiler_the_sparse_engine_is_an_error(store, without_numba):
    done = run(*command(engine="sparse"), PYTHONPATH=without_numba)
    assert done.returncode == 2
    assert done.stderr == (
        "error: engine=sparse cannot be compiled here (Numba needs an older NumPy): "
        "use engine=dense\n"
    )


def test_what_needs_no_compiler_is_not_compiled():
    def fail(line):
        raise AssertionError(line)

    assert usable("dense", fail) == "dense"
    assert usable("sparse", fail) == "sparse"  # by now it is on disk
    assert usable("auto", fail) == "auto"


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
    for engine in ENGINES:
        with pytest.raises(ValueError, match=rf"engine \(here {engine}, there auto\)"):
            run_experiment(config_from({"resume": run_id, "engine": engine}))
    done = run("--resume", run_id, PYTHONPATH=without_numba)
    assert done.returncode == 2
    assert f"resume: run {run_id} began with the sparse engine, which this" in done.stderr
    assert run("--resume", run_id).returncode == 0
