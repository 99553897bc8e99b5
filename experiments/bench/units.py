"""Bench of units: a training step of LightCNN-9 by the multiply-adds that unit pruning leaves.

* dense: the dense engine, on the masked network;
* compact: the compact engine, on the units that are left.

Both as an experiment takes a step, batch 20, with the recipe of faces in float32; random scores
choose the units, layer by layer.
"""

from statistics import median

import torch

from datasets import Split
from experiments.bench.faces import TRAINING
from experiments.bench.timing import Step, median_range, take_turns
from experiments.bench.training import forever
from experiments.processes.terminal import table_text
from experiments.training.engine import Engine, compact, dense
from pruning.masks import Masks, dense_masks, layerwise
from pruning.units import cost, prune_units

SHARES = (1.0, 0.5, 0.25, 0.125)


class Units:
    """Both engines at each share of the multiply-adds, as a table."""

    def compare(self, device: str, turns: int, steps: int) -> None:
        """Print milliseconds per step, and how many times faster the compact engine is."""
        columns: dict[str, list[str]] = {"multiply-adds": [f"{share:g}" for share in SHARES]}
        for share in SHARES:
            masks = masks_of(share)
            variants = {
                "dense": step_of(dense(TRAINING.network, device, bf16=False), masks, device),
                "compact": step_of(compact(TRAINING.network, device, bf16=False), masks, device),
            }
            times = take_turns(variants, turns, max(1, steps // 200))
            for name, values in times.items():
                columns.setdefault(name, []).append(f"{median(values):.1f}")
            ratios = [a / b for a, b in zip(times["dense"], times["compact"], strict=True)]
            columns.setdefault("dense / compact", []).append(median_range(ratios, ".2f"))
        print(
            f"a training step of LightCNN-9 by units left, ms:\n{table_text(columns)}", flush=True
        )


def masks_of(share: float) -> Masks:
    """Masks of random units that leave a share of the multiply-adds."""
    network, draw = TRAINING.network, torch.Generator().manual_seed(0)
    state = network.draw(0)
    masks = dense_masks(state, network.prunable)
    scores = {name: torch.rand(mask.shape, generator=draw) for name, mask in masks.items()}
    groups = layerwise(tuple(width.name for width in network.widths))
    limit = int(share * cost(masks, network.uses))
    return prune_units(scores, masks, network.widths, groups, network.uses, limit)


def step_of(engine: Engine, masks: Masks, device: str) -> Step:
    """A step of an engine, as an experiment takes it."""
    state = {name: value.to(device) for name, value in TRAINING.network.draw(0).items()}
    pixels, labels = TRAINING.data()
    split = Split(pixels.unsqueeze(1), labels, TRAINING.view).to(device)
    engine.start(state, {name: mask.to(device) for name, mask in masks.items()}, TRAINING.recipe)
    batches = forever(lambda: engine.batches(split, TRAINING.recipe.batch_size, seed=0))
    loss_sum = torch.zeros((), device=device)
    return lambda: engine.train(batches, (TRAINING.recipe.lr(0),), loss_sum)
