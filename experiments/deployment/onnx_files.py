"""ONNX files: a network for ONNX Runtime, in float32 and with 8-bit integers."""

import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import Tensor

from datasets import Split
from experiments.deployment.integers import for_integers
from experiments.rounds.network import Network
from pruning.files import write_whole

PIXELS, LOGITS = "pixels", "logits"  # names of the input and the output
CALIBRATION_IMAGES = 512  # the first ones of the training images, in their own order
BATCH = 32  # of these


class OnnxModel:
    """A file in ONNX Runtime: pixels in [0, 1], [N, channels, height, width], to logits.

    Args:
        threads: How many to compute with; 0: as many as PyTorch.
    """

    def __init__(self, path: Path, threads: int = 0) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or torch.get_num_threads()
        self.session = onnxruntime.InferenceSession(
            path, options, providers=["CPUExecutionProvider"]
        )

    def __call__(self, pixels: Tensor) -> Tensor:
        """Pixels to logits, on the CPU."""
        (logits,) = self.session.run([LOGITS], {PIXELS: pixels.numpy()})
        return torch.from_numpy(logits)


def write_onnx(network: Network, path: Path) -> None:
    """Write a network as an ONNX file, for any number of images at a time."""
    write_whole(path, _graph(network).SerializeToString())


def quantise(network: Network, train: Split, path: Path) -> None:
    """Write a network as an ONNX file with 8-bit integers.

    Weights have a scale for each unit, activations one for each tensor, from the range that they
    have on training images (Jacob et al. 2018, arXiv:1712.05877).
    """
    graph = for_integers(_graph(network))
    with tempfile.TemporaryDirectory() as folder, _quiet():
        ready, made = Path(folder, "ready.onnx"), Path(folder, "made.onnx")
        quant_pre_process(graph, ready)
        quantize_static(
            ready,
            made,
            _Calibration(train),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        write_whole(path, made.read_bytes())


def _graph(network: Network) -> onnx.ModelProto:
    example = torch.zeros(2, *network.spec.image_shape)
    with _quiet():
        program = torch.onnx.export(
            network.module,
            (example,),
            dynamo=True,
            input_names=[PIXELS],
            output_names=[LOGITS],
            dynamic_shapes={PIXELS: {0: torch.export.Dim("images")}},
            verbose=False,
        )
    assert program
    model = program.model_proto
    graph = model.graph
    for part in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info):
        del part.metadata_props[:]  # where the code is on this machine, among others
    return model


class _Calibration(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, split: Split) -> None:
        self.split = split
        rows = torch.arange(min(len(split), CALIBRATION_IMAGES))
        self.rows = iter(torch.split(rows, BATCH))

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        """Pixels of the next images, or None at the end."""
        rows = next(self.rows, None)
        if rows is None:
            return None
        images, _ = self.split.stored(rows)
        return {PIXELS: (images.float() / self.split.view.white).numpy()}


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' progress and warnings, which are not for users."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
