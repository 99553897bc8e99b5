"""Serving: the network of an export as an MLflow model, for `mlflow models serve`.

Digits come as arrays, faces as photographs: PNG, JPEG or another format that Pillow reads, in
base64. A wrong request is an error of status 400 that says what is wrong.
"""

import base64
import binascii
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.pyfunc.model import PythonModel
from numpy.typing import NDArray

NETWORK, ABOUT = "network", "about"  # names of the model's files
PHOTOGRAPH = "photograph"  # column of a request
MOST_IMAGES = 10_000  # in a request
MOST_PHOTOGRAPHS = 64
MOST_BYTES = 20_000_000  # of a photograph
SHOWN = 10  # classes with their probabilities


class Served(PythonModel):
    """A network that names digits or faces."""

    def load_context(self, context: Any) -> None:
        """Called by MLflow, with the paths of the model's files."""
        self.open(Path(context.artifacts[NETWORK]), Path(context.artifacts[ABOUT]))

    def open(self, network: Path, about: Path) -> None:
        """Read the network and what the export says of it."""
        self.about = json.loads(about.read_text())
        self.session = onnxruntime.InferenceSession(network, providers=["CPUExecutionProvider"])

    # MLflow warns where there is no type hint, and takes no union.
    def predict(
        self, context: Any, model_input: pd.DataFrame, params: Any = None
    ) -> list[dict[str, Any]]:
        """The class of each image, or of each face in each photograph.

        Args:
            context: Not used.
            model_input: Pixels in [0, 1], [N, channels, height, width]; or a table with a column of
                photographs.
            params: Not used.

        Returns:
            A dictionary for each image or face: `name`, `probability`, and the `probabilities` of
            the most probable classes, by name. That of a photograph without a face has neither; all
            have the number of their `photograph`, and why there is no face as `outcome` and
            `reason`.
        """
        del context, params
        if self.about["preparation"] is None:
            return self.rankings(_checked_pixels(model_input))
        return self._named_faces(_decoded(model_input))

    def rankings(self, pixels: NDArray[np.float32]) -> list[dict[str, Any]]:
        """The most probable classes of each image [N, channels, height, width]."""
        (logits,) = self.session.run(None, {self.session.get_inputs()[0].name: pixels})
        logits = logits.astype(np.float64)
        shares = np.exp(logits - logits.max(1, keepdims=True))
        shares /= shares.sum(1, keepdims=True)
        found = []
        for row in shares:
            order = np.argsort(-row, kind="stable")[:SHOWN]
            best = {self.about["class_names"][number]: float(row[number]) for number in order}
            name, probability = next(iter(best.items()))
            found.append({"name": name, "probability": probability, "probabilities": best})
        return found

    def _named_faces(self, photographs: Sequence[bytes]) -> list[dict[str, Any]]:
        from datasets.photographs.files import Photograph
        from datasets.photographs.inputs import face_inputs
        from datasets.photographs.options import FaceOptions

        options = FaceOptions(**self.about["preparation"])
        with tempfile.TemporaryDirectory() as folder:
            files = []
            for number, content in enumerate(photographs):
                path = Path(folder, str(number))
                path.write_bytes(content)
                files.append(Photograph(str(number), "", path, ()))
            inputs = list(face_inputs(files, options, "cpu"))
        images = [np.asarray(each.image) for each in inputs if each.image]
        names = iter(self.rankings(_as_pixels(images)) if images else [])
        return [
            {PHOTOGRAPH: int(each.source), "outcome": each.outcome, "reason": each.reason}
            | (next(names) if each.image else {"name": None, "probability": None})
            for each in inputs
        ]


def _as_pixels(images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
    return np.stack(images)[:, None].astype(np.float32) / np.float32(255)


def _checked_pixels(pixels: Any) -> NDArray[np.float32]:
    """Raise MlflowException, which becomes status 400, for pixels that no image has."""
    array = np.asarray(pixels, dtype=np.float32)
    if not len(array):
        raise MlflowException.invalid_parameter_value("the request has no images")
    if len(array) > MOST_IMAGES:
        raise MlflowException.invalid_parameter_value(
            f"a request may have {MOST_IMAGES} images, got {len(array)}"
        )
    if not ((array >= 0) & (array <= 1)).all():  # NaN is neither
        raise MlflowException.invalid_parameter_value(
            f"pixels must be in [0, 1], got values from {array.min():g} to {array.max():g}"
        )
    return array


def _decoded(table: Any) -> list[bytes]:
    """The photographs of a request, still as files."""
    texts = list(table[PHOTOGRAPH])
    if not 0 < len(texts) <= MOST_PHOTOGRAPHS:
        raise MlflowException.invalid_parameter_value(
            f"a request must have 1 to {MOST_PHOTOGRAPHS} photographs, got {len(texts)}"
        )
    return [_decode(number, text) for number, text in enumerate(texts)]


def _decode(number: int, text: object) -> bytes:
    if not isinstance(text, str):
        raise MlflowException.invalid_parameter_value(f"photograph {number} is not text")
    if len(text) > MOST_BYTES * 4 // 3:
        raise MlflowException.invalid_parameter_value(
            f"photograph {number} has more than {MOST_BYTES} bytes"
        )
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):  # ValueError: it is not ASCII
        raise MlflowException.invalid_parameter_value(
            f"photograph {number} is not base64"
        ) from None
