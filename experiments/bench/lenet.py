"""Bench of LeNet-300-100: a training step on data of MNIST's size.

Half of the weights are pruned, batch 60, Adam.

* ours: the step of the dense engine (experiments/training/engine.py), batches included;
* plain: torchvision's per-image transforms through a `DataLoader`, `torch.nn.utils.prune`,
  `torch.optim.Adam`;
* floor: the bare matrix products of the step and `torch.optim.Adam(fused=True)`, nothing else.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.prune import random_unstructured
from torch.utils.data import DataLoader
from torchvision import transforms

from datasets import Split, View
from experiments.bench.timing import ImageByImage, Step, forever
from experiments.training.engine import Recipe, dense
from models import Architecture

LENET = Architecture("lenet_300_100", (1, 28, 28), 10)
IMAGES, BATCH, RATE = 55_000, 60, 1.2e-3


def ours(device: str) -> Step:
    """The training step of every experiment."""
    engine = dense(LENET, device, bf16=False)
    state = {name: value.to(device) for name, value in LENET.draw(0).items()}
    masks = {name: torch.rand_like(state[name]) < 0.5 for name in LENET.prunable}
    pixels, labels = _data()
    view = View(white=255, mean=0.1307, std=0.3081)
    split = Split(pixels.unsqueeze(1), labels, view).to(device)
    recipe = Recipe("adam", lambda progress: RATE, 0.0, 0.0, BATCH, 1, 0)
    engine.start(state, masks, recipe)
    batches = forever(lambda: engine.batches(split, BATCH, seed=0))
    loss_sum = torch.zeros((), device=device)
    return lambda: engine.train(batches, (RATE,), loss_sum)


def plain(device: str) -> Step:
    """The training step of most tutorials."""
    model = LENET.build().to(device)
    for layer in model.children():
        random_unstructured(layer, "weight", amount=0.5)  # type: ignore[no-untyped-call]
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize(0.1307, 0.3081)])
    loader = DataLoader(ImageByImage(*_data(), transform), batch_size=BATCH, shuffle=True)
    batches = forever(lambda: iter(loader))

    def step() -> None:
        images, labels = next(batches)
        loss = F.cross_entropy(model(images.to(device)), labels.to(device))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def floor(device: str) -> Step:
    """The matrix products of the step, into allocated tensors, and the fused update."""
    sizes = [784, 300, 100, 10]
    model = LENET.build().to(device)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE, fused=True)
    weights = [model.get_parameter(name) for name in LENET.prunable]
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


def _data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (IMAGES, 28, 28), generator=generator, dtype=torch.uint8)
    return pixels, torch.randint(10, (IMAGES,), generator=generator)
