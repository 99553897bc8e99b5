"""A training step on random images, half of the weights pruned: ours, and that of tutorials."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, repeat
from typing import TypeVar

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.nn.utils.prune import random_unstructured
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from datasets import Split, View
from experiments.bench.timing import Step
from experiments.config.experiment import has_bf16
from experiments.training.engine import Recipe, dense
from models import PRUNABLE_LAYERS, Architecture

T = TypeVar("T")


@dataclass(frozen=True)
class Training:
    """What is trained, and how, without momentum."""

    network: Architecture
    images: int
    side: int  # of the stored images
    view: View
    recipe: Recipe
    bf16: bool = False  # where the device has it

    def ours(self, device: str) -> Step:
        """The training step of an experiment."""
        engine = dense(self.network, device, self.bf16 and has_bf16(device))
        state = {name: value.to(device) for name, value in self.network.draw(0).items()}
        masks = {name: torch.rand_like(state[name]) < 0.5 for name in self.network.prunable}
        pixels, labels = self.data()
        split = Split(pixels.unsqueeze(1), labels, self.view).to(device)
        engine.start(state, masks, self.recipe)
        batches = forever(lambda: engine.batches(split, self.recipe.batch_size, seed=0))
        loss_sum = torch.zeros((), device=device)
        return lambda: engine.train(batches, (self.recipe.lr(0),), loss_sum)

    def plain(self, device: str, density: float = 0.5) -> Step:
        """The training step as tutorials write it."""
        recipe, model = self.recipe, self.network.build()
        model.load_state_dict(self.network.draw(0))
        model.to(device)
        for layer in model.modules():
            if isinstance(layer, PRUNABLE_LAYERS):
                random_unstructured(layer, "weight", 1 - density)  # type: ignore[no-untyped-call]
        start = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[recipe.optimizer]
        optimizer = start(model.parameters(), lr=recipe.lr(0), weight_decay=recipe.weight_decay)
        steps = [transforms.ToTensor(), transforms.Normalize(self.view.mean, self.view.std)]
        if crop := self.view.crop:
            steps = [transforms.RandomCrop(crop), transforms.RandomHorizontalFlip(), *steps]
        images_one_by_one = ImageByImage(*self.data(), transforms.Compose(steps))
        loader = DataLoader(images_one_by_one, batch_size=recipe.batch_size, shuffle=True)
        batches = forever(lambda: iter(loader))

        def step() -> None:
            images, labels = next(batches)
            logits, labels = model(images.to(device)), labels.to(device)
            loss = F.cross_entropy(logits, labels, label_smoothing=recipe.label_smoothing)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            if recipe.grad_clip:
                torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.grad_clip)
            optimizer.step()

        return step

    def data(self) -> tuple[Tensor, Tensor]:
        """Pixels as files store them [images, side, side], and labels."""
        draw, shape = torch.Generator().manual_seed(0), (self.images, self.side, self.side)
        pixels = torch.randint(256, shape, generator=draw, dtype=torch.uint8)
        return pixels, torch.randint(self.network.classes, (self.images,), generator=draw)


@dataclass(frozen=True)
class ImageByImage(Dataset[tuple[Tensor, int]]):
    """Images one by one, as `torchvision.datasets.MNIST` returns them."""

    pixels: Tensor
    labels: Tensor
    transform: Callable[[object], Tensor]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        picture = Image.fromarray(self.pixels[index].numpy())
        return self.transform(picture), int(self.labels[index])


def forever(epoch: Callable[[], Iterator[T]]) -> Iterator[T]:
    """The batches of epoch after epoch, without end."""
    return chain.from_iterable(make() for make in repeat(epoch))
