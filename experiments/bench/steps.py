"""Bench: the time of a training step, against the plain loop and against the floor.

    python -m experiments bench

The variants take turns, so a machine that slows down slows all of them, and ratios are computed
turn by turn. bench/lenet.py, bench/density.py, bench/faces.py and bench/units.py say what is timed.
"""

import argparse
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from experiments.bench import faces, lenet
from experiments.bench.density import Densities
from experiments.bench.timing import Step, median_range, take_turns
from experiments.bench.units import Units
from experiments.processes.program import PROGRAM
from experiments.processes.terminal import did_you_mean


@dataclass(frozen=True)
class Bench:
    """Variants of one piece of work, ours first; `share` scales the number of steps in a turn."""

    what: str
    variants: dict[str, Callable[[str], Step]]
    share: float
    images: int  # in a step

    def compare(self, device: str, turns: int, steps: int) -> None:
        """Print milliseconds and ratios."""
        variants = {name: make(device) for name, make in self.variants.items()}
        times = take_turns(variants, turns, max(1, round(self.share * steps)))
        print(f"{self.what}, ms:")
        for name, values in times.items():
            print(f"  {name:<14} {median_range(values, '8.3f')}")
        speeds = [1000 * self.images / value for value in times["ours"]]
        print(f"  {'images/s, ours':<14} {median_range(speeds, '8.1f')}")
        pairs = [("plain", "ours")] + ([("ours", "floor")] if "floor" in times else [])
        for a, b in pairs:
            ratios = [x / y for x, y in zip(times[a], times[b], strict=True)]
            print(f"  {a + ' / ' + b:<14} {median_range(ratios, '8.2f')}", flush=True)


BENCHES: dict[str, Bench | Densities | Units] = {
    "lenet": Bench(
        "a training step of LeNet-300-100",
        {"ours": lenet.TRAINING.ours, "plain": lenet.TRAINING.plain, "floor": lenet.floor},
        share=1,
        images=lenet.BATCH,
    ),
    "engines": Densities(),
    "lightcnn": Bench(
        "a training step of LightCNN-9",
        {"ours": faces.TRAINING.ours, "plain": faces.TRAINING.plain},
        share=1 / 40,
        images=faces.BATCH,
    ),
    "units": Units(),
    "detection": Bench(
        f"finding faces in {faces.PHOTOGRAPHS} photographs",
        {"ours": faces.find_together, "plain": faces.find_singly},
        share=1 / 200,
        images=faces.PHOTOGRAPHS,
    ),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Print a table of milliseconds and ratios for each device."""
    parser = argparse.ArgumentParser(prog=f"{PROGRAM} bench")
    parser.add_argument("what", nargs="*", help=f"{', '.join(BENCHES)} (default: all)")
    parser.add_argument("--turns", type=int, default=15, help="turns of each variant (default: 15)")
    parser.add_argument("--steps", type=int, default=200, help="steps in a turn (default: 200)")
    asked = parser.parse_args(argv)
    for name in asked.what or BENCHES:
        if name not in BENCHES:
            hint = did_you_mean(name, BENCHES)
            raise ValueError(f"what must be one of {', '.join(BENCHES)}, got {name}{hint}")
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    for device in devices:
        machine = torch.cuda.get_device_name() if device == "cuda" else platform.machine()
        threads = torch.get_num_threads()
        print(f"{device} ({machine}, {threads} threads), torch {torch.__version__}", flush=True)
        for name in asked.what or BENCHES:
            BENCHES[name].compare(device, asked.turns, asked.steps)
