"""Benchmarks of the face pipeline: a training step of LightCNN-9, and face detection.

* Training, batch 20, half of the weights pruned. Ours: the step of the dense engine in the recipe's
  precision, with batched crops and mirroring. Plain: float32, torchvision's transforms on one image
  at a time through a `DataLoader`, `torch.nn.utils.prune`, `torch.optim.AdamW`.
* Detection. Ours: MTCNN on batches of photographs of one size. Plain: one photograph at a time.
"""

import numpy as np
from matplotlib import cbook
from PIL import Image, ImageOps

from datasets import View
from datasets.photographs.detection import Detector
from experiments.bench.timing import Step
from experiments.bench.training import Training
from experiments.training.engine import Recipe
from models import Architecture

PHOTOGRAPHS, BATCH, SIDE = 16, 20, 128
TRAINING = Training(
    Architecture("lightcnn_9", (1, SIDE, SIDE), classes=7),
    images=200,
    side=144,
    view=View(white=255, mean=0.5, std=0.25, crop=SIDE),
    recipe=Recipe(
        optimizer="adamw",
        lr=lambda progress: 1e-3,
        momentum=0.0,
        weight_decay=0.05,
        batch_size=BATCH,
        epochs=1,
        eval_every=0,
        grad_clip=1.0,
        label_smoothing=0.1,
    ),
    bf16=True,
)


def find_together(device: str) -> Step:
    """Detection in `PHOTOGRAPHS` pictures of one size, as prepare_faces does it."""
    detector, pictures = Detector(device), _portraits()
    return lambda: detector.find(pictures)


def find_singly(device: str) -> Step:
    """The same with one call of MTCNN per picture."""
    detector, pictures = Detector(device), _portraits()
    return lambda: [detector.mtcnn.detect(picture, landmarks=True) for picture in pictures]


def _portraits() -> list[Image.Image]:
    """Matplotlib's portrait, 256x300, at different brightness."""
    path = cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)
    with Image.open(str(path)) as image:
        picture = ImageOps.contain(image.convert("RGB"), (256, 300))
    light = np.linspace(0.8, 1.1, PHOTOGRAPHS)
    return [picture.point(lambda value, factor=factor: value * factor) for factor in light]
