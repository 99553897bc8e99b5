"""ONNX graphs whose maxima are pooled: the same outputs, without a maximum of two tensors."""

from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from datasets import Split, View
from experiments.deployment.formats import ALIGNED, smallest
from experiments.deployment.maxima import pool_maxima
from experiments.deployment.onnx_files import OnnxModel, quantise, write_onnx
from experiments.rounds.network import Network
from models.serving import NetworkSpec
from pruning.masks import apply_masks, dense_masks
from pruning.units import spread


def network(model, side, pruned=0.0):
    """A network for grey images without some of its units."""
    spec = NetworkSpec(model, (1, side, side), ("ada", "grace"), 0.4, 0.2)
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
    ("model", "side", "pools", "left"),
    [
        ("lightcnn_9", 32, 4, 1),
        ("lightcnn_9", 37, 4, 1),
        ("lightcnn_29", 37, 4, 1),
        ("lightcnn_29_v2", 37, 0, 0),
    ],
)
def test_pooled_maxima_give_the_same_bits(tmp_path, model, side, pools, left):
    """All maxima of channels are replaced, also where pooling rounds up; that of fc1 is left."""
    write_onnx(network(model, side), tmp_path / "x.onnx")
    before = onnx.load(tmp_path / "x.onnx")
    after = pool_maxima(before)
    onnx.checker.check_model(after, full_check=True)
    pixels = np.random.default_rng(0).random((3, 1, side, side), dtype=np.float32)
    expected = logits(before, pixels)
    assert np.ptp(expected) > 0
    assert np.array_equal(logits(after, pixels), expected)
    kinds, kinds_before = (Counter(node.op_type for node in g.graph.node) for g in (after, before))
    assert kinds["Max"] == left
    replaced = kinds_before["Max"] - left
    assert replaced >= 9
    assert kinds["MaxPool"] == kinds_before["MaxPool"] + replaced
    makers = {name: node for node in after.graph.node for name in node.output}
    pooled = [
        node
        for node in after.graph.node
        if node.op_type == "MaxPool" and makers[node.input[0]].op_type == "Conv"
    ]
    assert len(pooled) == pools  # these come before the maximum


def test_a_graph_without_maxima_of_channels_stays_as_it_is(tmp_path):
    write_onnx(network("lenet_30_20", 8), tmp_path / "x.onnx")
    graph = onnx.load(tmp_path / "x.onnx")
    kinds = [node.op_type for node in graph.graph.node]
    assert [node.op_type for node in pool_maxima(graph).graph.node] == kinds


def test_layers_of_integers_have_aligned_units_and_the_outputs_of_the_network(tmp_path):
    """Units that are added have no effect: in float32 the outputs are those without them."""
    pruned = network("lightcnn_9", 32, pruned=0.6)
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
    quantise(aligned, Split(images, torch.zeros(40).long(), View(255, 0.4, 0.2)), tmp_path / "x")
    found = OnnxModel(tmp_path / "x", threads=1)(pixels)
    spread_of = float(expected.std())
    assert 0 < float((found - expected).abs().mean()) < 0.1 * spread_of
    kinds = Counter(node.op_type for node in onnx.load(tmp_path / "x").graph.node)
    assert kinds["Max"] == 1


def test_no_more_units_are_added_than_there_are():
    pruned = network("lenet_30_20", 8, pruned=0.1)
    units = smallest(pruned, 64).metadata["units"]
    assert [left for _, left in units.values()] == [30, 20]
