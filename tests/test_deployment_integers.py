"""ONNX graphs for 8-bit integers: the same outputs, without what takes long."""

from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from datasets import Split, View
from experiments.deployment.formats import ALIGNED, smallest
from experiments.deployment.integers import for_integers, squares_kernel
from experiments.deployment.onnx_files import OnnxModel, quantise, write_onnx
from experiments.rounds.network import Network
from models.serving import NetworkSpec
from pruning.masks import apply_masks, dense_masks
from pruning.units import spread
from tests.conftest import ROOT


def network(model, side, pruned=0.0, l2=False):
    """A network for grey images without some of its units."""
    scale = (0.0, 1.0) if l2 else (0.4, 0.2)
    spec = NetworkSpec(model, (1, side, side), ("ada", "grace"), *scale, l2=l2)
    architecture, draw = spec.architecture, torch.Generator().manual_seed(0)
    state = architecture.draw(0)
    masks = dense_masks(state, architecture.prunable)
    kept = {
        width.name: torch.rand(width.count, generator=draw) >= pruned
        for width in architecture.widths
    }
    masks = spread(kept, masks, architecture.widths)
    state = {
        name: value if name in masks else torch.randn(value.shape, generator=draw)
        for name, value in state.items()
    }
    metadata = {"round": 1}
    return Network(spec.build(apply_masks(state, masks)), masks, spec, metadata)


def logits(graph, pixels):
    session = onnxruntime.InferenceSession(
        graph.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(None, {"pixels": pixels})[0]


@pytest.mark.parametrize(
    ("model", "side", "first", "left"),
    [
        ("lightcnn_9", 32, 4, 1),
        ("lightcnn_9", 37, 4, 1),
        ("lightcnn_29", 32, 4, 1),
        ("lightcnn_29_v2", 37, 0, 0),
    ],
)
def test_the_outputs_are_the_same(tmp_path, model, side, first, left):
    """All maxima of channels are replaced, also where pooling rounds up; that of fc1 is left."""
    write_onnx(network(model, side), tmp_path / "x.onnx")
    assert str(ROOT).encode() not in (tmp_path / "x.onnx").read_bytes()
    before = onnx.load(tmp_path / "x.onnx")
    after = for_integers(before)
    onnx.checker.check_model(after, full_check=True)
    pixels = np.random.default_rng(0).random((3, 1, side, side), dtype=np.float32)
    expected, found = logits(before, pixels), logits(after, pixels)
    assert np.ptp(expected) > 0
    grey = first > 0 and side % 2 == 0  # squares of 2x2 are read
    assert np.allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max() * grey)
    kinds, kinds_before = (Counter(node.op_type for node in g.graph.node) for g in (after, before))
    assert kinds["Max"] == left
    replaced = kinds_before["Max"] - left
    assert replaced >= 9
    assert kinds["MaxPool"] == kinds_before["MaxPool"] + replaced - grey
    assert kinds["SpaceToDepth"] == grey
    assert kinds["Conv"] == kinds_before["Conv"]
    makers = {name: node for node in after.graph.node for name in node.output}
    pooled = [
        node
        for node in after.graph.node
        if node.op_type == "MaxPool" and makers[node.input[0]].op_type == "Conv"
    ]
    assert len(pooled) == first - grey  # these come before the maximum


@pytest.mark.parametrize("side", [1, 3, 5, 7])
def test_a_kernel_of_squares_does_what_the_kernel_does(side):
    draw = torch.Generator().manual_seed(side)
    images = torch.randn(2, 1, 10, 6, generator=draw)
    kernel = torch.randn(3, 1, side, side, generator=draw)
    expected = F.conv2d(images, kernel, padding=side // 2)
    large = torch.from_numpy(squares_kernel(kernel.numpy()))
    outputs = F.conv2d(F.pixel_unshuffle(images, 2), large, padding=large.shape[-1] // 2)
    by_pixel = outputs.unflatten(1, (4, 3)).transpose(1, 2).flatten(1, 2)
    assert torch.allclose(F.pixel_shuffle(by_pixel, 2), expected, atol=1e-5)


class Own(nn.Module):
    """A convolution, a maximum of halves, a pooling; pixels are as they are."""

    def __init__(self, convolution, pooling):
        super().__init__()
        self.convolution, self.pooling = convolution, pooling

    def forward(self, pixels):
        first, second = self.convolution(pixels).chunk(2, dim=1)
        return self.pooling(torch.maximum(first, second)).flatten(1)


@pytest.mark.parametrize(
    ("convolution", "pooling", "channels", "squares"),
    [
        (nn.Conv2d(1, 6, 5, padding=2), nn.MaxPool2d(2), 1, True),
        (nn.Conv2d(1, 6, 3, padding=1, bias=False), nn.MaxPool2d(2), 1, True),
        (nn.Conv2d(1, 6, 1), nn.MaxPool2d(2), 1, True),
        (nn.Conv2d(3, 6, 5, padding=2), nn.MaxPool2d(2), 3, False),
        (nn.Conv2d(1, 6, 4, padding=2), nn.MaxPool2d(2), 1, False),
        (nn.Conv2d(1, 6, (3, 5), padding=(1, 2)), nn.MaxPool2d(2), 1, False),
        (nn.Conv2d(1, 6, 5, padding=2, stride=2), nn.MaxPool2d(2), 1, False),
        (nn.Conv2d(1, 6, 5, padding=4, dilation=2), nn.MaxPool2d(2), 1, False),
        (nn.Conv2d(1, 6, 5, padding=2), nn.MaxPool2d(3, 2, 1), 1, False),
        (nn.Conv2d(1, 6, 5, padding=2), nn.MaxPool2d(2, 2, 1, dilation=2), 1, False),
        (nn.Conv2d(1, 6, 5, padding=2), nn.MaxPool2d(2, dilation=2, ceil_mode=True), 1, False),
    ],
)
def test_squares_are_read_where_they_give_the_same(convolution, pooling, channels, squares):
    pixels = torch.rand(2, channels, 12, 16, generator=torch.Generator().manual_seed(0))
    model = Own(convolution, pooling).eval()
    program = torch.onnx.export(
        model, (pixels,), dynamo=True, input_names=["pixels"], verbose=False
    )
    after = for_integers(program.model_proto)
    kinds = Counter(node.op_type for node in after.graph.node)
    assert kinds["SpaceToDepth"] == squares
    assert kinds["Max"] == 0
    with torch.no_grad():
        expected = model(pixels).numpy()
    assert np.allclose(logits(after, pixels.numpy()), expected, atol=1e-5)


def test_a_graph_without_such_operations_stays_as_it_is(tmp_path):
    write_onnx(network("lenet_30_20", 8), tmp_path / "x.onnx")
    graph = onnx.load(tmp_path / "x.onnx")
    kinds = [node.op_type for node in graph.graph.node]
    assert [node.op_type for node in for_integers(graph).graph.node] == kinds


@pytest.mark.parametrize("l2", [False, True])
def test_layers_of_integers_have_aligned_units_and_the_outputs_of_the_network(tmp_path, l2):
    """Units that are added have no effect: in float32 the outputs are those without them."""
    pruned = network("lightcnn_9", 32, pruned=0.6, l2=l2)
    small, aligned = smallest(pruned), smallest(pruned, ALIGNED)
    counts = [left for _, left in aligned.metadata["units"].values()]
    assert all(count % ALIGNED == 0 for count in counts)
    differences = [
        count - left
        for count, (_, left) in zip(counts, small.metadata["units"].values(), strict=True)
    ]
    assert all(0 <= difference < ALIGNED for difference in differences)
    assert any(differences)
    draw = torch.Generator().manual_seed(1)
    images = torch.randint(256, (40, 1, 32, 32), dtype=torch.uint8, generator=draw)
    pixels = images / 255
    with torch.no_grad():
        expected = small.module(pixels)
        assert torch.allclose(aligned.module(pixels), expected, atol=1e-5)
    view = View(255, aligned.spec.mean, aligned.spec.std, l2=l2)
    quantise(aligned, Split(images, torch.zeros(40).long(), view), tmp_path / "x")
    found = OnnxModel(tmp_path / "x", threads=1)(pixels)
    spread_of = float(expected.std())
    assert 0 < float((found - expected).abs().mean()) < 0.1 * spread_of
    kinds = Counter(node.op_type for node in onnx.load(tmp_path / "x").graph.node)
    assert kinds["Max"] == 1


def test_no_more_units_are_added_than_there_are():
    pruned = network("lenet_30_20", 8, pruned=0.1)
    units = smallest(pruned, 64).metadata["units"]
    assert [left for _, left in units.values()] == [30, 20]
