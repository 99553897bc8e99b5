"""Bench: what does a training step cost, against the usual way and against the floor?

    python -m experiments bench

LeNet-300-100 at half sparsity on data of MNIST's size, batch 60, Adam, on every device there is:

* ours: the step of experiments/training.py, batches included;
* usual: torchvision's per-image transforms through a `DataLoader`, `torch.nn.utils.prune`, Adam as
  it comes;
* floor: the bare matrix products of the step and `torch.optim.Adam(fused=True)`, nothing else.

The three take turns, so that a machine that slows down slows all of them; ratios are taken turn by
turn.
"""

import argparse
import platform
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, repeat
from statistics import median
from time import perf_counter

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.nn.utils.prune import random_unstructured
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from datasets import Split
from experiments.training import Recipe, shuffled_batches, stepper
from models import build_model, draw_state, prunable_weights

IMAGES, BATCH, RATE = 55_000, 60, 1.2e-3
Step = Callable[[], object]


def main(argv: Sequence[str] | None = None) -> None:
    """Print a table of milliseconds and ratios for each device."""
    parser = argparse.ArgumentParser(prog="python -m experiments bench")
    parser.add_argument("--turns", type=int, default=15, help="turns of each (default: 15)")
    parser.add_argument("--steps", type=int, default=200, help="steps in a turn (default: 200)")
    asked = parser.parse_args(argv)
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    for device in devices:
        name = torch.cuda.get_device_name() if device == "cuda" else platform.machine()
        threads = torch.get_num_threads()
        print(f"{device} ({name}, {threads} threads), torch {torch.__version__}, ms a step:")
        steps = {"ours": ours(device), "usual": usual(device), "floor": floor(device)}
        times = take_turns(steps, asked.turns, asked.steps)
        for kind, values in times.items():
            print(f"  {kind:<14} {_spread(values, '8.3f')}")
        for a, b in (("usual", "ours"), ("ours", "floor")):
            ratios = [x / y for x, y in zip(times[a], times[b], strict=True)]
            print(f"  {a + ' / ' + b:<14} {_spread(ratios, '8.2f')}")


def take_turns(steps: dict[str, Step], turns: int, count: int) -> dict[str, list[float]]:
    """Milliseconds a step of each kind, turn by turn; the first turn warms up."""
    times: dict[str, list[float]] = {kind: [] for kind in steps}
    for turn in range(turns + 1):
        for kind, step in steps.items():
            began = perf_counter()
            for _ in range(count):
                step()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if turn:
                times[kind].append(1000 * (perf_counter() - began) / count)
    return times


def ours(device: str) -> Step:
    """The step that every experiment takes."""
    model = build_model("lenet_300_100", (1, 28, 28), 10).to(device)
    model.load_state_dict(draw_state("lenet_300_100", (1, 28, 28), 10, 0))
    masks = {
        name: torch.rand_like(model.get_parameter(name)) < 0.5 for name in prunable_weights(model)
    }
    pixels, labels = _data()
    images = (pixels.float() / 255).unsqueeze(1)
    split = Split(images.to(device), labels.to(device))
    recipe = Recipe("adam", lambda progress: RATE, 0.0, 0.0, BATCH, 1, 0)
    step = stepper(model, masks, recipe)
    batches = _forever(lambda: shuffled_batches(split, BATCH, seed=0))
    return lambda: step(*next(batches), RATE)


def usual(device: str) -> Step:
    """The step as tutorials write it."""
    model = build_model("lenet_300_100", (1, 28, 28), 10).to(device)
    for layer in model.children():
        random_unstructured(layer, "weight", amount=0.5)  # type: ignore[no-untyped-call]
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize(0.1307, 0.3081)])
    loader = DataLoader(_Pictures(*_data(), transform), batch_size=BATCH, shuffle=True)
    batches = _forever(lambda: iter(loader))

    def step() -> None:
        images, labels = next(batches)
        loss = F.cross_entropy(model(images.to(device)), labels.to(device))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def floor(device: str) -> Step:
    """The step's matrix products, into tensors that are there already, and the fused update."""
    sizes = [784, 300, 100, 10]
    model = build_model("lenet_300_100", (1, 28, 28), 10).to(device)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE, fused=True)
    weights = [model.get_parameter(name) for name in prunable_weights(model)]
    values = [torch.randn(BATCH, size, device=device) for size in sizes]  # of each layer
    errors = [torch.randn(BATCH, size, device=device) for size in sizes]
    outputs = [torch.empty(BATCH, size, device=device) for size in sizes]

    @torch.no_grad()
    def step() -> None:
        for layer, weight in enumerate(weights):
            torch.mm(values[layer], weight.t(), out=outputs[layer + 1])
            torch.mm(errors[layer + 1].t(), values[layer], out=weight.grad)
            if layer:
                torch.mm(errors[layer + 1], weight, out=outputs[layer])
        optimizer.step()

    return step


class _Pictures(Dataset[tuple[Tensor, int]]):
    """Images one by one, the way `torchvision.datasets.MNIST` gives them."""

    def __init__(
        self, pixels: Tensor, labels: Tensor, transform: Callable[[object], Tensor]
    ) -> None:
        self.pixels, self.labels, self.transform = pixels, labels, transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        picture = Image.fromarray(self.pixels[index].numpy())
        return self.transform(picture), int(self.labels[index])


def _data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (IMAGES, 28, 28), generator=generator, dtype=torch.uint8)
    return pixels, torch.randint(10, (IMAGES,), generator=generator)


def _forever(
    epoch: Callable[[], Iterator[tuple[Tensor, Tensor]]],
) -> Iterator[tuple[Tensor, Tensor]]:
    return chain.from_iterable(make() for make in repeat(epoch))


def _spread(values: list[float], form: str) -> str:
    low, middle, high = min(values), median(values), max(values)
    return f"{middle:{form}}  ({low:{form}} to {high:{form}}, n={len(values)})"
