"""Pictures with and without faces from installed packages, and folders of them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from matplotlib import cbook
from PIL import Image, ImageDraw

from tests.conftest import data_folder


def orl_root() -> Path | None:
    """A folder with the real ORL faces in it, if this machine has one."""
    root = data_folder("orl_faces/s1/1.pgm")
    return root and root / "orl_faces"


def portrait(width: int = 256) -> Image.Image:
    """Grace Hopper, in colour; her face is a third of the width."""
    with cbook.get_sample_data("grace_hopper.jpg") as file, Image.open(file) as image:
        return image.convert("RGB").resize((width, width * 600 // 512), Image.Resampling.BICUBIC)


def bearded(width: int = 256) -> Image.Image:
    """The same with a black beard: another person, as far as a network can tell."""
    picture, scale = portrait(width), width / 300
    beard = [scale * side for side in (118, 158, 194, 206)]
    ImageDraw.Draw(picture).ellipse(beard, fill=(25, 20, 20))
    return picture


def flower() -> Image.Image:
    """A picture without a face."""
    from sklearn.datasets import load_sample_image

    return Image.fromarray(load_sample_image("flower.jpg")).resize((200, 132))


def scene(
    seed: int, width: int = 150, person: Callable[[int], Image.Image] = portrait
) -> Image.Image:
    """A portrait on a random background, 240x240; different for every seed."""
    random = np.random.default_rng(seed)
    blocks = Image.fromarray(random.integers(60, 200, (4, 4, 3), dtype=np.uint8))
    picture = blocks.resize((240, 240), Image.Resampling.BICUBIC)
    picture.paste(person(width), (int(random.integers(240 - width)), int(random.integers(60))))
    return picture


def folder(root: Path, **classes: int) -> Path:
    """A folder of class folders with the given numbers of scenes."""
    seed = 0
    for label, count in classes.items():
        (root / label).mkdir(parents=True)
        for number in range(count):
            scene(seed).save(root / label / f"{number}.png")
            seed += 1
    return root
