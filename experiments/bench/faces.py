"""Benchmarks of the face pipeline: a training step of LightCNN-9, and face detection.

* Training, batch 20, half of the weights pruned. Ours: the step of the dense engine in the recipe's
  precision, with batched crops and mirroring. Plain: float32, torchvision's transforms on one image
  at a time through a `DataLoader`, `torch.nn.utils.prune`, `torch.optim.AdamW`.
* Detection. Ours: MTCNN on batches of photographs of one size. Plain: one photograph at a time.
"""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib import cbook
from PIL import Image, ImageOps
from torch import Tensor, nn
from torch.nn.utils.prune import random_unstructured
from torch.utils.data import DataLoader
from torchvision import transforms

from datasets import Split, View
from datasets.photographs.detection import Detector
from experiments.bench.timing import ImageByImage, forever
from experiments.config.experiment import has_bf16
from experiments.training.engine import Recipe, dense
from models import Architecture

CLASSES, SIDE = 7, 128
NETWORK = Architecture("lightcnn_9", (1, SIDE, SIDE), CLASSES)
IMAGES, BATCH, RATE, DECAY, CLIP, SMOOTHING = 200, 20, 1e-3, 0.05, 1.0, 0.1
MEAN, STD = 0.5, 0.25
PHOTOGRAPHS = 16
Step = Callable[[], object]


def ours(device: str) -> Step:
    """The training step of an experiment."""
    engine = dense(NETWORK, device, has_bf16(device))
    state = {name: value.to(device) for name, value in NETWORK.draw(0).items()}
    masks = {name: torch.rand_like(state[name]) < 0.5 for name in NETWORK.prunable}
    pixels, labels = _data()
    split = Split(pixels.unsqueeze(1), labels, View(255, MEAN, STD, crop=SIDE)).to(device)
    recipe = Recipe(
        optimizer="adamw",
        lr=lambda progress: RATE,
        momentum=0.0,
        weight_decay=DECAY,
        batch_size=BATCH,
        epochs=1,
        eval_every=0,
        grad_clip=CLIP,
        label_smoothing=SMOOTHING,
    )
    engine.start(state, masks, recipe)
    batches = forever(lambda: engine.batches(split, BATCH, seed=0))
    loss_sum = torch.zeros((), device=device)
    return lambda: engine.train(batches, (RATE,), loss_sum)


def plain(device: str) -> Step:
    """The training step as tutorials write it."""
    model = _model().to(device)
    for layer in model.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            random_unstructured(layer, "weight", amount=0.5)  # type: ignore[no-untyped-call]
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=DECAY)
    transform = transforms.Compose(
        [
            transforms.RandomCrop(SIDE),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )
    loader = DataLoader(ImageByImage(*_data(), transform), batch_size=BATCH, shuffle=True)
    batches = forever(lambda: iter(loader))

    def step() -> None:
        images, labels = next(batches)
        logits = model(images.to(device))
        loss = F.cross_entropy(logits, labels.to(device), label_smoothing=SMOOTHING)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()

    return step


def find_together(device: str) -> Step:
    """Detection in `PHOTOGRAPHS` pictures of one size, as prepare_faces does it."""
    detector, pictures = Detector(device), _portraits()
    return lambda: detector.find(pictures)


def find_singly(device: str) -> Step:
    """The same with one call of MTCNN per picture."""
    detector, pictures = Detector(device), _portraits()
    return lambda: [detector.mtcnn.detect(picture, landmarks=True) for picture in pictures]


def _model() -> nn.Module:
    model = NETWORK.build()
    model.load_state_dict(NETWORK.draw(0))
    return model


def _data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (IMAGES, 144, 144), generator=generator, dtype=torch.uint8)
    return pixels, torch.randint(CLASSES, (IMAGES,), generator=generator)


def _portraits() -> list[Image.Image]:
    """Matplotlib's portrait, 256x300, at different brightness."""
    path = cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)
    with Image.open(str(path)) as image:
        picture = ImageOps.contain(image.convert("RGB"), (256, 300))
    light = np.linspace(0.8, 1.1, PHOTOGRAPHS)
    return [picture.point(lambda value, factor=factor: value * factor) for factor in light]
