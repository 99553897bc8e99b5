"""Model: an export as an MLflow model that `mlflow models serve` answers for."""

import base64
import json
import os
import shutil
import tempfile
from io import BytesIO
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from experiments.deployment.formats import Request
from experiments.deployment.serve import ABOUT, NETWORK, PHOTOGRAPH, Served
from experiments.tracking.registry import save_served

SCRIPT = Path(__file__).with_name("served.py")
REQUIREMENTS = ("mlflow", "numpy", "pandas", "onnxruntime")
FACE_REQUIREMENTS = (
    *("torch", "torchvision", "facenet-pytorch", "pillow", "ImageHash", "pydantic", "scipy"),
    "scikit-learn",
)


def write_model(request: Request, network_file: Path, folder: Path) -> None:
    """Write an MLflow model of an ONNX file, in place of an earlier one.

    Its input is what users have: images as arrays, or photographs of which it finds the faces. Its
    example is a test image.
    """
    if folder.exists() and not (folder / "MLmodel").exists():
        raise ValueError(f"{folder} exists and is not a model: use another out")
    network, test = request.network, request.data.test
    assert test
    preparation = network.metadata["data"].get("preparation")
    about = {"class_names": list(network.class_names), "preparation": preparation}
    pixels = test.images[:1].float() / test.view.white
    example: Any = pixels.numpy() if preparation is None else photographs_of(pixels[0, 0].numpy())
    with tempfile.TemporaryDirectory() as place:
        files = {NETWORK: network_file, ABOUT: Path(place, "about.json")}
        files[ABOUT].write_text(json.dumps(about))
        served = Served()
        served.open(files[NETWORK], files[ABOUT])
        answer = served.predict(None, example)
        made = Path(place, "model")
        needed = REQUIREMENTS if preparation is None else REQUIREMENTS + FACE_REQUIREMENTS
        save_served(made, SCRIPT, files, example, answer, needed)
        put_whole(made, folder)


def put_whole(made: Path, folder: Path) -> None:
    """Copy a model, all or nothing, in place of an earlier one.

    Raises:
        OSError: If it cannot be written; the error names `folder`.
    """
    beside = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(beside, ignore_errors=True)  # left by a killed process that had this number
    try:
        beside.mkdir()
        for path in sorted(made.rglob("*")):  # folders before their files
            copied = beside / path.relative_to(made)
            copied.mkdir() if path.is_dir() else shutil.copyfile(path, copied)
        if folder.exists():
            shutil.rmtree(folder)
        beside.rename(folder)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(folder)) from None
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def photographs_of(pixels: Any) -> pd.DataFrame:
    """A request with one photograph, from its pixels in [0, 1], [height, width]."""
    content = BytesIO()
    Image.fromarray((pixels * 255).round().astype("uint8")).save(content, "PNG")
    return pd.DataFrame({PHOTOGRAPH: [base64.b64encode(content.getvalue()).decode()]})
