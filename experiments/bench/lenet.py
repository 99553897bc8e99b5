"""Bench of LeNet-300-100: a training step on data of MNIST's size.

Half of the weights are pruned, batch 60, Adam.

* ours: the step of the dense engine (experiments/training/engine.py), batches included;
* plain: torchvision's per-image transforms through a `DataLoader`, `torch.nn.utils.prune`,
  `torch.optim.Adam`;
* floor: the bare matrix products of the step and `torch.optim.Adam(fused=True)`, nothing else.
"""

import torch

from datasets import View
from experiments.bench.timing import Step
from experiments.bench.training import Training
from experiments.training.engine import Recipe
from models import Architecture

LENET = Architecture("lenet_300_100", (1, 28, 28), 10)
BATCH, RATE = 60, 1.2e-3
TRAINING = Training(
    LENET,
    images=55_000,
    side=28,
    view=View(white=255, mean=0.1307, std=0.3081),
    recipe=Recipe("adam", lambda progress: RATE, 0.0, 0.0, BATCH, 1, 0),
)


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
