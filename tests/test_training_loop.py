from dataclasses import replace
from itertools import chain

import pytest
import torch
import torch.nn.functional as F

from datasets import Split, Splits, View, load_splits
from experiments.training.engine import ENGINES, DenseEngine, Recipe, clip
from experiments.training.loop import DivergedError, derive_seed, train
from experiments.training.optimizers import OPTIMIZERS
from experiments.training.schedules import SCHEDULES, warmed
from models import Architecture
from pruning.masks import apply_masks


@pytest.fixture(scope="module")
def data() -> Splits:
    return load_splits("digits", "nowhere", seed=0, train_limit=250)[0]


def recipe(**changes) -> Recipe:
    plain = {
        "optimizer": "adam",
        "lr": lambda progress: 1e-3,
        "momentum": 0.0,
        "weight_decay": 0.0,
        "batch_size": 60,
        "epochs": 3,
        "eval_every": 0,
    }
    return Recipe(**(plain | changes))


each_engine = pytest.mark.parametrize("kind", ENGINES)


def random_masks(state, architecture, density, seed=1):
    draw = torch.Generator().manual_seed(seed)
    return {
        name: torch.rand(state[name].shape, generator=draw) < density
        for name in architecture.prunable
    }


def setting(density=1.0, bf16=False, kind="dense"):
    architecture = Architecture("lenet_20_10", (1, 8, 8), 10)
    state = architecture.draw(0)
    masks = random_masks(state, architecture, density)
    return ENGINES[kind](architecture, "cpu", bf16), state, masks


def finish(training):
    evaluations = []
    while True:
        try:
            evaluations.append(next(training))
        except StopIteration as end:
            return evaluations, end.value


CLASSES = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_every_optimizer_is_torchs_own_bit_for_bit(name, weight_decay, momentum):
    generator = torch.Generator().manual_seed(0)
    ours = [torch.randn(7, 5, generator=generator), torch.randn(3, generator=generator)]
    theirs = [torch.nn.Parameter(value.clone()) for value in ours]
    extra = {"momentum": momentum} if name == "sgd" else {}
    reference = CLASSES[name](theirs, lr=0.1, weight_decay=weight_decay, fused=True, **extra)
    update = OPTIMIZERS[name].start(ours, momentum, weight_decay)
    for number in range(5):
        gradients = [torch.randn(value.shape, generator=generator) for value in ours]
        reference.param_groups[0]["lr"] = lr = 0.1 / (1 + number)
        for parameter, gradient in zip(theirs, gradients, strict=True):
            parameter.grad = gradient.clone()
        reference.step()
        update(gradients, lr)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_pruned_weights_are_zero_after_every_step(name, data, monkeypatch):
    engine, state, masks = setting(density=0.5)
    seen = []
    real = F.cross_entropy

    def watch(logits, labels, **kwargs):
        seen.append(
            all(not engine.model.get_parameter(key)[~mask].any() for key, mask in masks.items())
        )
        return real(logits, labels, **kwargs)

    monkeypatch.setattr("experiments.training.engine.F.cross_entropy", watch)
    momentum = 0.9 if name == "sgd" else 0.0
    plan = recipe(optimizer=name, momentum=momentum, weight_decay=0.1, epochs=4)
    _, trained = finish(train(engine, state, masks, data, plan, seed=0))
    assert len(seen) >= 4 * 5
    assert all(seen)
    for key, mask in masks.items():
        assert not trained.state[key][~mask].any()
        assert not trained.state[key][~mask].signbit().any()
        assert trained.state[key][mask].all()  # survivors live on


@each_engine
def test_training_starts_from_the_masked_state(data, kind):
    engine, state, masks = setting(density=0.5, kind=kind)
    plan = recipe(lr=lambda progress: 0.0, epochs=1)
    _, trained = finish(train(engine, state, masks, data, plan, seed=0))
    expected = apply_masks(state, masks)
    assert all(torch.equal(trained.state[key], expected[key]) for key in expected)


@each_engine
def test_training_learns_and_repeats_bit_for_bit(data, kind):
    results = []
    for _ in range(2):
        engine, state, masks = setting(kind=kind)
        plan = recipe(epochs=20, lr=lambda progress: 0.01)
        evaluations, trained = finish(train(engine, state, masks, data, plan, seed=5))
        results.append((evaluations, trained.state))
    assert results[0][0] == results[1][0]
    assert all(torch.equal(results[0][1][key], results[1][1][key]) for key in state)
    assert evaluations[-1].train_loss < 0.5 * evaluations[0].train_loss
    _, other = finish(train(engine, state, masks, data, plan, seed=6))
    assert not torch.equal(other.state["fc1.weight"], trained.state["fc1.weight"])


def test_every_epoch_sees_every_image_once_in_an_order_of_its_own(data):
    pixels = torch.arange(250, dtype=torch.uint8).reshape(250, 1, 1, 1).expand(250, 1, 8, 8)
    marked = Split(pixels, data.train.labels, View(white=1, mean=0, std=1))
    seen = []

    class Spy(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = torch.nn.Linear(64, 10)

        def forward(self, images):
            if self.training:
                seen.append(images[:, 0, 0, 0].int().tolist())
            return self.fc(images.flatten(1) / 250)

    model = Spy()
    start = {key: value.clone() for key, value in model.state_dict().items()}
    splits = replace(data, train=marked)
    finish(train(DenseEngine(model), start, {}, splits, recipe(epochs=2), seed=0))
    assert [len(batch) for batch in seen] == [60, 60, 60, 60, 10] * 2
    first, second = list(chain(*seen[:5])), list(chain(*seen[5:]))
    assert sorted(first) == sorted(second) == list(range(250))
    assert first != second


@each_engine
def test_evaluations_fall_on_epoch_ends_and_on_the_grid(data, kind):
    engine, state, masks = setting(kind=kind)
    evaluations, trained = finish(train(engine, state, masks, data, recipe(eval_every=4), seed=0))
    assert [evaluation.iteration for evaluation in evaluations] == [4, 5, 8, 10, 12, 15]
    assert [evaluation.iteration for evaluation in evaluations if evaluation.ends_epoch] == [
        5,
        10,
        15,
    ]
    assert [evaluation.epoch for evaluation in evaluations] == [1, 1, 2, 2, 3, 3]
    on_grid = [
        evaluation
        for evaluation in evaluations
        if evaluation.iteration % 4 == 0 or evaluation.iteration == 15
    ]
    assert (
        trained.best_iteration
        == min(on_grid, key=lambda evaluation: evaluation.valid_loss).iteration
    )


@each_engine
def test_the_best_state_is_the_one_of_minimum_validation_loss(data, kind):
    engine, state, masks = setting(kind=kind)
    plan = recipe(lr=lambda progress: 0.003 if progress < 0.4 else 0.3, epochs=6)
    evaluations, trained = finish(train(engine, state, masks, data, plan, seed=0))
    best = min(evaluations, key=lambda evaluation: evaluation.valid_loss)
    assert trained.best_iteration == best.iteration < evaluations[-1].iteration
    engine.load(trained.best_state)
    assert engine.evaluate(data.valid) == (best.valid_loss, best.valid_accuracy)


@each_engine
def test_the_snapshot_is_the_state_after_its_epoch(data, kind):
    engine, state, masks = setting(kind=kind)
    _, short = finish(train(engine, state, masks, data, recipe(epochs=2), seed=0))
    _, long = finish(train(engine, state, masks, data, recipe(epochs=4), 0, snapshot_epoch=2))
    assert all(torch.equal(long.snapshot[key], short.state[key]) for key in state)
    _, none = finish(train(engine, state, masks, data, recipe(epochs=1), 0, snapshot_epoch=0))
    assert all(torch.equal(none.snapshot[key], state[key]) for key in state)


@each_engine
def test_a_loss_that_is_not_finite_stops_training(data, kind):
    engine, state, masks = setting(kind=kind)
    with pytest.raises(DivergedError, match=r"the loss is (nan|inf) in epoch 1, iteration 5"):
        finish(train(engine, state, masks, data, recipe(lr=lambda progress: 1e30), seed=0))


def test_evaluate_by_hand():
    model = torch.nn.Flatten()  # the images are the logits
    logits = torch.tensor([[2, 0], [0, 1], [3, 0]], dtype=torch.uint8)
    view = View(white=1, mean=0, std=1)
    split = Split(logits.reshape(3, 1, 1, 2), torch.tensor([0, 0, 1]), view)
    loss, accuracy = DenseEngine(model).evaluate(split)
    assert accuracy == 1 / 3
    by_hand = torch.log(1 + torch.exp(torch.tensor([-2.0, 1.0, 3.0]))).mean()
    assert loss == pytest.approx(by_hand.item(), rel=1e-6)


@each_engine
@pytest.mark.parametrize("crop", [0, 6])
def test_an_evaluation_says_which_images_are_correct(data, kind, crop):
    """Also where the images are evaluated in several parts."""
    architecture = Architecture("lenet_20_10", (1, crop or 8, crop or 8), 10)
    state = architecture.draw(0)
    engine, train = ENGINES[kind](architecture, "cpu", False), data.train
    images, labels = train.images.repeat(5, 1, 1, 1), train.labels.repeat(5)
    split = Split(images, labels, replace(train.view, crop=crop))
    engine.start(state, random_masks(state, architecture, 0.5), recipe())
    engine.train(engine.batches(split, 60, 0), [0.01] * 20, torch.zeros(()))
    correct = torch.rand(len(split)) < 0.5  # all of it is overwritten
    loss, accuracy = engine.evaluate(split, correct)
    assert (loss, accuracy) == engine.evaluate(split)
    assert int(correct.sum()) / len(split) == accuracy
    model = architecture.build()
    model.load_state_dict(engine.snapshot())
    assert torch.equal(correct, model(split.view.fixed(images)).argmax(1) == labels)
    assert 0.1 < accuracy < 0.99


def test_seeds_of_streams_differ():
    seeds = {
        derive_seed(seed, number, name) for seed in (0, 1) for number in (0, 1) for name in "ab"
    }
    assert len(seeds) == 8
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed(1, "a") == derive_seed(1, "a")


def test_a_warm_up_rises_to_the_schedule_it_precedes():
    factor = warmed(SCHEDULES["cosine"], 0.25)
    rising = [factor(progress) for progress in (0, 0.125, 0.25)]
    assert rising == pytest.approx([0.04, 0.52, 1])
    assert [factor(progress) for progress in (0.625, 1)] == pytest.approx([0.505, 0.01])
    plain = warmed(SCHEDULES["cosine"], 0)
    assert plain(0.3) == SCHEDULES["cosine"](0.3)


def test_clipping_scales_all_gradients_alike_and_never_up():
    gradients = [torch.tensor([3.0, 0.0]), torch.tensor([[4.0]])]
    clip(gradients, 1.0)
    assert [value.flatten().tolist() for value in gradients] == [
        pytest.approx([0.6, 0]),
        pytest.approx([0.8]),
    ]
    clip(gradients, 100.0)
    assert gradients[1].item() == pytest.approx(0.8)


def one_step(engine, state, masks, data, plan, lr=0.1):
    engine.start(state, masks, plan)
    loss = torch.zeros(())
    engine.train(engine.batches(data.train, 60, 0), [lr], loss)
    return loss, engine.snapshot()


@each_engine
def test_pruned_weights_do_not_count_in_the_norm(data, kind):
    """The step of a clipped, masked network equals the one of its survivors' gradients alone."""
    engine, state, masks = setting(density=0.3, kind=kind)
    plan = recipe(optimizer="sgd", grad_clip=0.01)
    _, after = one_step(engine, state, masks, data, plan)
    before = apply_masks(state, masks)
    moved = torch.cat([(after[key] - before[key]).flatten() for key in before])
    assert moved.norm().item() == pytest.approx(0.1 * 0.01, rel=1e-3)


def test_label_smoothing_is_torchs(data):
    engine, state, masks = setting()
    loss, _ = one_step(engine, state, masks, data, recipe(label_smoothing=0.2))
    engine.load(state)
    images, labels = next(engine.batches(data.train, 60, 0))
    expected = F.cross_entropy(engine.model(images), labels, label_smoothing=0.2)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


def test_bfloat16_is_near_float32_and_leaves_float32_weights(data):
    engine, state, masks = setting()
    exact, _ = one_step(engine, state, masks, data, recipe())
    halved, _, _ = setting(bf16=True)
    near, after = one_step(halved, state, masks, data, recipe())
    assert near.item() == pytest.approx(exact.item(), rel=0.02)
    assert near.item() != exact.item()
    assert near.dtype == torch.float32
    assert all(value.dtype == torch.float32 for value in after.values())
    for each in (engine, halved):
        each.load(state)
    exact_loss, near_loss = engine.evaluate(data.valid)[0], halved.evaluate(data.valid)[0]
    assert near_loss == pytest.approx(exact_loss, rel=0.02)
    assert near_loss != exact_loss


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_layout_in_memory_changes_nothing_but_the_last_bits(name):
    """Fused optimizers require parameters and gradients with the same strides."""
    pixels = torch.randint(256, (8, 1, 12, 12), dtype=torch.uint8)
    split = Split(pixels, torch.arange(8) % 3, View(255, 0.5, 0.25))
    results = []
    for layout in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(0)
        model = torch.nn.Sequential(
            torch.nn.Conv2d(1, 4, 3),
            torch.nn.ReLU(),
            torch.nn.Conv2d(4, 6, 3),
            torch.nn.Flatten(),
            torch.nn.Linear(6 * 64, 3),
        ).to(memory_format=layout)
        engine = DenseEngine(model)
        engine.start(engine.snapshot(), {}, recipe(optimizer=name))
        for _ in range(5):
            engine.train(engine.batches(split, 8, 0), [0.01], torch.zeros(()))
        results.append([value.detach().clone() for value in model.parameters()])
    for plain, last in zip(*results, strict=True):
        assert torch.allclose(plain, last, atol=1e-4)


def test_schedules_go_from_one_to_their_floor():
    assert [SCHEDULES["constant"](progress) for progress in (0, 0.5, 1)] == [1, 1, 1]
    cosine = [SCHEDULES["cosine"](progress) for progress in (0, 0.5, 1)]
    assert cosine == pytest.approx([1, 0.505, 0.01])
