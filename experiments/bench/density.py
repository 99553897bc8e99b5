"""Bench of engines: a training step of LeNet-300-100 by the density of its layers, batch 60, Adam.

* dense, sparse: the engines of experiments/training/;
* torch.sparse: PyTorch's CSR matrices (bench/csr.py), with the batches of the dense engine;
* plain: as in bench/lenet.py, where pruned weights cost as much as survivors.

*All in* is a step as an experiment takes it. *Alone*, the batch is always the same, and what it
takes to gather it is left out; the plain loop, which is about loading, has no such variant.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import repeat
from statistics import median

import torch

from datasets import Split
from experiments.bench.csr import csr_step
from experiments.bench.lenet import TRAINING
from experiments.bench.timing import Step, median_range, take_turns
from experiments.bench.training import forever
from experiments.processes.terminal import table_text
from experiments.training.engine import Engine, dense
from experiments.training.sparse import SparseEngine
from pruning.masks import Masks

DENSITIES = (1.0, 0.8, 0.55, 0.33, 0.2, 0.1, 0.05, 0.02, 0.012)
GROUP = 20  # steps in a call of an engine; an experiment makes longer ones


@dataclass(frozen=True)
class Densities:
    """The variants at each density, as two tables."""

    what: str = "a training step of LeNet-300-100 by density"

    def compare(self, device: str, turns: int, steps: int) -> None:
        """Print milliseconds per step, and how many times faster the sparse engine is."""
        if device != "cpu":
            return
        for title, plain in (("all in", True), ("alone", False)):
            columns: dict[str, list[str]] = {"density": []}
            for density in DENSITIES:
                variants = all_in(density) if plain else alone(density)
                times = take_turns(variants, turns, max(1, steps // GROUP))
                columns["density"].append(f"{density:g}")
                for name, values in times.items():
                    times[name] = [value / GROUP for value in values]
                    columns.setdefault(name, []).append(f"{median(times[name]):.3f}")
                ratios = [a / b for a, b in zip(times["dense"], times["sparse"], strict=True)]
                columns.setdefault("dense / sparse", []).append(median_range(ratios, ".2f"))
            print(f"{self.what}, {title}, ms:\n{table_text(columns)}", flush=True)


def masks_of(density: float) -> Masks:
    """Random masks, of the same density in all layers."""
    network, draw = TRAINING.network, torch.Generator().manual_seed(0)
    return {
        name: torch.rand(value.shape, generator=draw) < density
        for name, value in network.draw(0).items()
        if name in network.prunable
    }


def all_in(density: float) -> dict[str, Step]:
    """`GROUP` steps of each variant, batches included."""
    recipe, state, masks = TRAINING.recipe, TRAINING.network.draw(0), masks_of(density)
    pixels, labels = TRAINING.data()
    split = Split(pixels.unsqueeze(1), labels, TRAINING.view)
    loss_sum, rates = torch.zeros(()), [recipe.lr(0)] * GROUP
    steps: dict[str, Step] = {}
    engines: dict[str, Engine] = {
        "dense": dense(TRAINING.network, "cpu", bf16=False),
        "sparse": SparseEngine(TRAINING.network),
    }
    for name, engine in engines.items():
        engine.start(state, masks, recipe)
        batches: Iterator[object] = forever(
            lambda engine=engine: engine.batches(split, recipe.batch_size, seed=0)  # type: ignore[misc]
        )
        steps[name] = lambda engine=engine, batches=batches: engine.train(  # type: ignore[misc]
            batches, rates, loss_sum
        )
    step = csr_step(TRAINING.network, state, masks, recipe.lr(0))
    same = forever(lambda: engines["dense"].batches(split, recipe.batch_size, seed=0))
    steps["torch.sparse"] = lambda: [step(*next(same)) for _ in range(GROUP)]
    once = TRAINING.plain("cpu", density)
    steps["plain"] = lambda: [once() for _ in range(GROUP)]
    return steps


def alone(density: float) -> dict[str, Step]:
    """The same without gathering batches, and without the plain loop."""
    recipe, state, masks = TRAINING.recipe, TRAINING.network.draw(0), masks_of(density)
    pixels, labels = TRAINING.data()
    split = Split(pixels.unsqueeze(1), labels, TRAINING.view)
    loss_sum, rates = torch.zeros(()), [recipe.lr(0)] * GROUP
    ours, sparse = dense(TRAINING.network, "cpu", bf16=False), SparseEngine(TRAINING.network)
    ours.start(state, masks, recipe)
    sparse.start(state, masks, recipe)
    batch = next(ours.batches(split, recipe.batch_size, seed=0))
    rows = next(sparse.batches(split, recipe.batch_size, seed=0))
    sparse.train(repeat(rows), [0.0], loss_sum)  # gathers the batch
    sparse.network = sparse.network._replace(pixels=sparse.network.pixels[:0])  # and never again
    step = csr_step(TRAINING.network, state, masks, recipe.lr(0))
    return {
        "dense": lambda: ours.train(repeat(batch), rates, loss_sum),
        "sparse": lambda: sparse.train(repeat(rows), rates, loss_sum),
        "torch.sparse": lambda: [step(*batch) for _ in range(GROUP)],
    }
