"""Inputs: pictures for a trained network, cut out and scaled as its training images were."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from datasets.photographs import SIDE
from datasets.photographs.contact_sheets import draw_rejected, draw_thumbnail
from datasets.photographs.crops import cut_face
from datasets.photographs.detection import detect_faces
from datasets.photographs.files import Photograph
from datasets.photographs.manifest import KEPT, classify
from datasets.photographs.options import FaceOptions
from datasets.photographs.pictures import UnreadableError, ignore_decoder_warnings, read_picture

LIGHT = 0.5  # mean pixel of the four corners, from which a picture looks dark on light


@dataclass(frozen=True)
class Input:
    """A picture, or a face in it."""

    source: str  # path relative to the folder that was given
    outcome: str  # KEPT, or why the network does not get it
    reason: str
    image: Image.Image | None  # 8-bit grey, for the network
    shown: Image.Image  # SIDE x SIDE, for a contact sheet


def face_inputs(
    photographs: Sequence[Photograph], options: FaceOptions, device: str
) -> Iterator[Input]:
    """The faces that `options` choose, found and cut as `prepare_faces` does.

    A photograph without such a face yields one input, with the reason. `device` is a torch device.
    """
    for window in detect_faces(photographs, device):
        for detection, picture in window:
            for row in classify(detection, options):
                about = row.source, row.outcome, row.reason
                if row.outcome == KEPT and picture and row.face:
                    crop = cut_face(picture.grey, row.face, options)
                    yield Input(*about, crop, crop.convert("RGB"))
                else:
                    box = row.face.box if row.face else None
                    thumbnail = draw_thumbnail(picture.grey, box) if picture else None
                    yield Input(*about, None, draw_rejected(thumbnail))


def whole_inputs(
    photographs: Sequence[Photograph], size: tuple[int, int], invert: bool
) -> Iterator[Input]:
    """Whole pictures in grey, resized to `size` (height, width); `invert` makes black white."""
    for photograph in photographs:
        try:
            with ignore_decoder_warnings():
                grey = read_picture(photograph.path).grey
        except UnreadableError as error:
            yield Input(photograph.source, "unreadable", str(error), None, draw_rejected(None))
            continue
        image = grey.resize(size[::-1], Image.Resampling.BICUBIC)
        if invert:
            image = Image.eval(image, lambda value: 255 - value)
        shown = image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.NEAREST)
        yield Input(photograph.source, KEPT, "", image, shown)


def is_light(image: Image.Image) -> bool:
    """Whether a grey picture looks dark on a light background: its corners are light."""
    corners = np.asarray(image, dtype=float)[[0, 0, -1, -1], [0, -1, 0, -1]]
    return bool(corners.mean() > LIGHT * 255)
