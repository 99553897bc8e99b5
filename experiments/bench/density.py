"""Bench of engines: a training step of LeNet-300-100 by the density of its layers, batch 60, Adam.

* dense, sparse: the engines of experiments/training/;
* torch.sparse: PyTorch's CSR matrices (bench/csr.py), with the batches of the dense engine;
* plain: as in bench/lenet.py, where pruned weights cost as much as survivors.

*All in* is a step as an experiment takes it. *Alone*, the batch is always the same, and what it
takes to gather it is left out; the plain loop, which is about loading, has no such variant.
"""

from itertools import repeat
from statistics import median

import torch

from datasets import Split
from experiments.bench.csr import csr_step
from experiments.bench.lenet import TRAINING
from experiments.bench.timing import Step, median_range, take_turns
from experiments.bench.training import forever
from experiments.processes.terminal import table_text
from experiments.training.engine import dense
from experiments.training.sparse import SparseEngine
from pruning.masks import Masks

DENSITIES = (1.0, 0.8, 0.55, 0.33, 0.2, 0.1, 0.05, 0.02, 0.012)
GROUP = 100  # steps in a call of an engine, as with eval_every=100


class Densities:
    """The variants at each density, as two tables."""

    def compare(self, device: str, turns: int, steps: int) -> None:
        """Print milliseconds per step, and how many times faster the sparse engine is."""
        if device != "cpu":
            return
        for title in ("all in", "alone"):
            columns: dict[str, list[str]] = {"density": [f"{density:g}" for density in DENSITIES]}
            for density in DENSITIES:
                steps_of = variants(density, title == "alone")
                times = take_turns(steps_of, turns, max(1, steps // GROUP))
                for name, values in times.items():
                    columns.setdefault(name, []).append(f"{median(values) / GROUP:.3f}")
                ratios = [a / b for a, b in zip(times["dense"], times["sparse"], strict=True)]
                columns.setdefault("dense / sparse", []).append(median_range(ratios, ".2f"))
            what = f"a training step of LeNet-300-100 by density, {title}"
            print(f"{what}, ms:\n{table_text(columns)}", flush=True)


def masks_of(density: float) -> Masks:
    """Random masks, of the same density in all layers."""
    network, draw = TRAINING.network, torch.Generator().manual_seed(0)
    return {
        name: torch.rand(value.shape, generator=draw) < density
        for name, value in network.draw(0).items()
        if name in network.prunable
    }


def variants(density: float, alone: bool) -> dict[str, Step]:
    """`GROUP` steps of each variant."""
    network, recipe, masks = TRAINING.network, TRAINING.recipe, masks_of(density)
    state, rates, loss_sum = network.draw(0), [recipe.lr(0)] * GROUP, torch.zeros(())
    pixels, labels = TRAINING.data()
    split = Split(pixels.unsqueeze(1), labels, TRAINING.view)
    engine, sparse = dense(network, "cpu", bf16=False), SparseEngine(network)
    engine.start(state, masks, recipe)
    sparse.start(state, masks, recipe)
    images = forever(lambda: engine.batches(split, recipe.batch_size, seed=0))
    others = forever(lambda: engine.batches(split, recipe.batch_size, seed=0))
    rows = forever(lambda: sparse.batches(split, recipe.batch_size, seed=0))
    if alone:
        images, others, rows = repeat(next(images)), repeat(next(others)), repeat(next(rows))
        sparse.train(rows, [0.0], loss_sum)  # gathers the batch
        sparse.shares = sparse.shares._replace(pixels=0 * sparse.shares.pixels)  # and never again
    step = csr_step(network, state, masks, recipe.lr(0))
    steps: dict[str, Step] = {
        "dense": lambda: engine.train(images, rates, loss_sum),
        "sparse": lambda: sparse.train(rows, rates, loss_sum),
        "torch.sparse": lambda: [step(*next(others)) for _ in range(GROUP)],
    }
    if not alone:
        once = TRAINING.plain("cpu", density)
        steps["plain"] = lambda: [once() for _ in range(GROUP)]
    return steps
