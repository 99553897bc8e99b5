"""The compact engine: a smaller network with the same outputs, trained as the whole one is."""

import pytest
import torch

from datasets import Split, View, load_splits
from experiments.training.compact import CompactEngine
from experiments.training.engine import DenseEngine, choose, dense
from models import Architecture
from pruning.masks import apply_masks, dense_masks
from pruning.units import spread, units_of
from tests.test_training_loop import recipe

NAMES = ("lenet_20_10", "lightcnn_9", "lightcnn_29", "lightcnn_29_v2")


@pytest.fixture(scope="module")
def data():
    return load_splits("digits", "nowhere", seed=0, train_limit=250)[0]


def faces(count=6, side=17):
    draw = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 1, side, side), generator=draw, dtype=torch.uint8)
    return Split(pixels, torch.arange(count) % 3, View(255, 0.5, 0.25))


def unit_masks(architecture, share=0.5):
    draw = torch.Generator().manual_seed(0)
    kept = {
        width.name: torch.rand(width.count, generator=draw) < share for width in architecture.widths
    }
    masks = dense_masks(architecture.draw(0), architecture.prunable)
    return spread(kept, masks, architecture.widths)


def holey(masks):
    """Masks that also lack single weights."""
    draw = torch.Generator().manual_seed(1)
    return {
        name: mask & (torch.rand(mask.shape, generator=draw) < 0.5) for name, mask in masks.items()
    }


@pytest.mark.parametrize("change", [dict, holey], ids=["units", "units-and-weights"])
@pytest.mark.parametrize("name", NAMES)
def test_the_compact_network_has_the_outputs_of_the_masked_one(name, change):
    architecture = Architecture(name, (1, 17, 17), 3)
    state, masks, split = architecture.draw(0), change(unit_masks(architecture)), faces()
    for bias in state:
        if bias.endswith("bias"):  # units without inputs are constants
            state[bias] = torch.randn(state[bias].shape, generator=torch.Generator().manual_seed(2))
    compact, whole = CompactEngine(architecture, "cpu", False), dense(architecture, "cpu", False)
    for engine in (compact, whole):
        engine.start(state, masks, recipe())
    assert compact.evaluate(split) == pytest.approx(whole.evaluate(split), rel=1e-5)
    model, parameters = compact.engine.model, architecture.parameters
    assert sum(value.numel() for value in model.parameters()) < 0.7 * parameters
    images = split.view.fixed(split.images)
    with torch.no_grad():
        assert torch.allclose(model(images), whole.model(images), rtol=1e-4, atol=1e-5)
    before, after = apply_masks(state, masks), compact.snapshot()
    assert all(after[name].equal(value) for name, value in before.items())


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_it_trains_as_the_dense_engine_does(optimizer, data):
    architecture = Architecture("lenet_20_10", (1, 8, 8), 10)
    state, masks = architecture.draw(0), holey(unit_masks(architecture))
    plan = recipe(optimizer=optimizer, momentum=0.9 if optimizer == "sgd" else 0.0, grad_clip=1.0)
    results = []
    for engine in (CompactEngine(architecture, "cpu", False), dense(architecture, "cpu", False)):
        engine.start(state, masks, plan)
        loss = torch.zeros(())
        for seed in range(4):
            engine.train(engine.batches(data.train, 60, seed), [0.01] * 5, loss)
        results.append((engine.snapshot(), engine.evaluate(data.valid), float(loss)))
    (ours, our_figures, our_loss), (theirs, figures, loss) = results
    assert not ours["fc1.weight"].equal(state["fc1.weight"])
    for name, value in theirs.items():
        assert torch.allclose(ours[name], value, rtol=1e-3, atol=1e-5), name
    assert our_figures == pytest.approx(figures, rel=1e-4)
    assert our_loss == pytest.approx(loss, rel=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_with_all_units_it_is_the_dense_engine_bit_for_bit(name):
    architecture, split = Architecture(name, (1, 17, 17), 3), faces()
    state = architecture.draw(0)
    whole = dense_masks(state, architecture.prunable)
    masks = holey(whole) | {name: whole[name] for name in architecture.prunable[-1:]}
    snapshots = []
    for engine in (CompactEngine(architecture, "cpu", False), dense(architecture, "cpu", False)):
        engine.start(state, masks, recipe(optimizer="adamw", weight_decay=0.05, grad_clip=1.0))
        torch.manual_seed(0)
        engine.train(engine.batches(split, 3, 0), [0.001] * 2, torch.zeros(()))
        engine.load(engine.snapshot())
        snapshots.append(engine.snapshot())
    for tensor, value in snapshots[1].items():
        assert snapshots[0][tensor].equal(value)


def test_biases_of_units_that_are_left_out_keep_the_values_that_were_loaded(data):
    architecture = Architecture("lenet_20_10", (1, 8, 8), 10)
    state, masks = architecture.draw(0), unit_masks(architecture)
    gone = ~units_of(masks, architecture.widths)["fc1"]
    engine = CompactEngine(architecture, "cpu", False)
    engine.start(state | {"fc1.bias": torch.full((20,), 3.0)}, masks, recipe())
    engine.train(engine.batches(data.train, 60, 0), [0.01] * 5, torch.zeros(()))
    bias = engine.snapshot()["fc1.bias"]
    assert (bias[gone] == 3).all()
    assert (bias[~gone] != 3).all()
    engine.load(engine.snapshot() | {"fc1.bias": torch.full((20,), 4.0)})
    assert (engine.snapshot()["fc1.bias"] == 4).all()


def test_auto_chooses_by_the_size_of_the_compact_network():
    """Half of the neurons: within the compact network no weight is pruned."""
    architecture = Architecture("lenet_1000_500", (1, 28, 28), 10)
    masks = unit_masks(architecture)
    assert isinstance(dense(architecture, "cpu", False), DenseEngine)
    assert choose("auto", masks, 60, architecture.widths) == "compact"
    assert choose("auto", masks, 60, ()) == "sparse"  # 37% of the weights survive


@pytest.mark.parametrize("name", ["lenet_20_10", "lightcnn_9", "lightcnn_29"])
def test_a_network_without_survivors_in_a_layer_still_trains(name):
    """Global pruning may empty a layer: what is left has a unit in each, of no effect."""
    architecture = Architecture(name, (1, 17, 17), 3)
    state, split = architecture.draw(0), faces()
    masks = dense_masks(state, architecture.prunable)
    empty = architecture.prunable[1]
    masks[empty] = torch.zeros_like(masks[empty])
    compact, whole = CompactEngine(architecture, "cpu", False), dense(architecture, "cpu", False)
    for engine in (compact, whole):
        engine.start(state, masks, recipe())
        torch.manual_seed(0)
        engine.train(engine.batches(split, 3, 0), [0.01, 0.01], torch.zeros(()))
    assert compact.evaluate(split) == pytest.approx(whole.evaluate(split), rel=1e-4)
    assert not compact.snapshot()[empty].any()
