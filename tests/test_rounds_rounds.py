from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from datasets import Images, split_images
from experiments.config.experiment import config_from
from experiments.config.fields import PRUNINGS
from experiments.rounds.metrics import METRICS, UNITS, Metric
from experiments.rounds.plan import plan_rounds
from experiments.rounds.rounds import BaseRun
from experiments.training.engine import ENGINES
from experiments.training.loop import DivergedError
from pruning.checkpoint import load_checkpoint, save_checkpoint
from pruning.controls import CONTROLS
from pruning.criteria import CRITERIA
from pruning.masks import apply_masks
from pruning.reinit import REINITS
from tests.rounds import config, run, same


class ByHand:
    """An engine without `nn.Module`: a LeNet's products and gradients written out, plain SGD."""

    def __init__(self, architecture, device, bf16):
        assert device == "cpu"
        assert not bf16
        self.layers = [name.removesuffix(".weight") for name in architecture.prunable]

    def start(self, state, masks, recipe):
        assert recipe.optimizer == "sgd"
        self.masks = masks
        self.load(apply_masks(state, masks))

    def batches(self, split, batch_size, seed):
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(split), generator=generator)
        for rows in torch.split(order, batch_size):
            images, labels = split.stored(rows)
            yield split.view.varied(images, generator).flatten(1), labels

    def train(self, batches, rates, loss_sum):
        for lr, (values, labels) in zip(rates, batches, strict=False):
            layers = self.forward(values)
            errors = layers[-1].softmax(1)
            loss_sum -= errors[range(len(labels)), labels].log().mean()
            errors[range(len(labels)), labels] -= 1
            errors /= len(labels)
            for name, inputs in zip(reversed(self.layers), reversed(layers[:-1]), strict=True):
                before = (errors @ self.state[f"{name}.weight"]) * (inputs > 0)
                step = lr * errors.t() @ inputs * self.masks[f"{name}.weight"]
                self.state[f"{name}.weight"] -= step
                self.state[f"{name}.bias"] -= lr * errors.sum(0)
                errors = before

    def forward(self, values):
        layers = [values]
        for name in self.layers:
            values = values @ self.state[f"{name}.weight"].t() + self.state[f"{name}.bias"]
            values = values.relu() if name != self.layers[-1] else values
            layers.append(values)
        return layers

    def load(self, state):
        self.state = {name: value.clone() for name, value in state.items()}

    def evaluate(self, split, correct=None):
        images, labels = split.stored(torch.arange(len(split)))
        logits = self.forward(split.view.fixed(images).flatten(1))[-1]
        loss = torch.nn.functional.cross_entropy(logits, labels)
        right = logits.argmax(1) == labels
        if correct is not None:
            correct[:] = right
        return float(loss), int(right.sum()) / len(split)

    def snapshot(self):
        return apply_masks(self.state, self.masks)


def test_another_engine_runs_the_same_rounds(data, monkeypatch):
    monkeypatch.setitem(ENGINES, "by_hand", ByHand)
    settings = config(optimizer="sgd", lr=0.2, epochs=8, retrain_epochs=8, eval_every=3)
    dense, by_hand = (
        run(settings.model_copy(update={"engine": name}), data) for name in ("dense", "by_hand")
    )
    for theirs, ours in zip(dense, by_hand, strict=True):
        assert same(theirs.network.masks, ours.network.masks)
        for name, value in theirs.network.state.items():
            assert torch.allclose(value, ours.network.state[name], atol=1e-5)
        assert theirs.metrics == pytest.approx(ours.metrics, abs=1e-4)
    assert dense[-1].metrics["valid_accuracy"] > 0.5


def test_a_new_metric_is_one_record(data, monkeypatch):
    dead = Metric(
        "dead units",
        "weights",
        lambda m: sum(int((~mask.any(1)).sum()) for mask in m.masks.values()),
    )
    monkeypatch.setitem(METRICS, "dead_units", dead)
    assert [result.metrics["dead_units"] for result in run(config(), data)] == [0] * 4


def as_base(results):
    return BaseRun(results[0], lambda number: results[number].network)


ARMS = [{"reinit": reinit, "criterion": criterion} for reinit in REINITS for criterion in CRITERIA]
CHOOSING = [name for name, control in CONTROLS.items() if control.network == "pruned"]
ARMS += [{"reinit": reinit, "control": control} for reinit in REINITS for control in CHOOSING]
ARMS += [{"reinit": reinit, "pruning": "one_shot"} for reinit in REINITS]
ARMS += [{"criterion": criterion, "pruning": "one_shot"} for criterion in CRITERIA]


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("arm", ARMS, ids=lambda arm: "-".join(arm.values()))
def test_every_arm_prunes_exactly_and_never_revives(arm, scope, data):
    results = run(config(scope=scope, **arm), data)
    assert [result.network.round for result in results] == [0, 1, 2, 3]
    remaining = [result.metrics["remaining_weights"] for result in results]
    total = 64 * 30 + 30 * 20 + 20 * 10
    if scope == "layer":
        layers = [64 * 30, 30 * 20, 20 * 10]
        expected = [total]
        for _ in range(3):
            layers = [n - round(0.2 * n) for n in layers]
            expected.append(sum(layers))
    else:
        expected = [total]
        for _ in range(3):
            expected.append(expected[-1] - round(0.2 * expected[-1]))
    assert remaining == expected
    nested = CONTROLS[arm.get("control", "none")].nested and arm.get("pruning") != "one_shot"
    for before, after in pairwise(results if nested else results[:2]):
        for name, mask in after.network.masks.items():
            assert not (mask & ~before.network.masks[name]).any()
    for result in results:
        for name, mask in result.network.masks.items():
            assert not result.network.state[name][~mask].any()
        assert result.metrics["sparsity"] == 1 - result.metrics["remaining_weights"] / total


def test_the_dense_network_does_not_depend_on_what_comes_after_it(data):
    """So that methods compared at one seed begin with the same network."""
    ways = [{"reinit": reinit} for reinit in REINITS]
    ways += [{"retrain_epochs": 1}, {"prune_rate": 0.5}, {"criterion": "random"}, {"rounds": 1}]
    dense = [next(iter(run(config(warmup_epochs=1, **way), data))) for way in ways]
    assert all(same(one.network.state, dense[0].network.state) for one in dense)


def test_magnitude_prunes_the_smallest_of_each_layer(data):
    dense, pruned = run(config(rounds=1), data)
    for name, mask in pruned.network.masks.items():
        sizes = dense.network.state[name].abs()
        assert sizes[~mask].max() <= sizes[mask].min()


def stored(network, reinit):
    """As a checkpoint keeps it: without what its round pruned, unless the method needs that."""
    return network if REINITS[reinit].continues else replace(network, before={})


@pytest.mark.parametrize("reinit", REINITS)
@pytest.mark.parametrize("pruning", PRUNINGS)
def test_continuing_from_any_round_changes_nothing(reinit, pruning, data):
    settings = config(reinit=reinit, pruning=pruning, criterion="random", schedule="cosine")
    whole = run(settings, data)
    for cut in range(3):
        rest = run(settings, data, after=stored(whole[cut].network, reinit))
        for straight, continued in zip(whole[cut + 1 :], rest, strict=True):
            assert straight.metrics == continued.metrics
            assert straight.evaluations == continued.evaluations
            assert same(straight.network.state, continued.network.state)
            assert same(straight.network.masks, continued.network.masks)


@pytest.mark.parametrize("reinit", ["keep", "random", "rewind", "shuffle"])
def test_a_lightcnn_continues_from_its_checkpoint_bit_for_bit(reinit, tmp_path):
    """Whatever the memory format of a convolution's weights, and with crops and mirror images."""
    pixels = torch.randint(256, (40, 20, 20), generator=torch.Generator().manual_seed(0))
    images, labels = pixels.byte(), torch.arange(40) % 2
    raw = Images("noise", 255, (images[:30], labels[:30]), (images[30:], labels[30:]), crop=16)
    data = split_images("noise", raw, 0.2, 0, 0)
    asked = {"model": "lightcnn_9", "epochs": 2, "retrain_epochs": 1, "rounds": 2}
    asked |= {"criterion": "random" if reinit == "random" else "magnitude"}
    settings = config_from(asked | {"reinit": reinit, "device": "cpu"}).resolved("faces")
    whole = run(settings, data)
    kept = whole[1].network
    save_checkpoint(tmp_path / "a", kept.state, kept.masks, {})
    loaded = load_checkpoint(tmp_path / "a")
    (rest,) = run(settings, data, after=replace(kept, state=loaded.state, masks=loaded.masks))
    assert rest.metrics == whole[2].metrics
    assert same(rest.network.state, whole[2].network.state)
    assert whole[2].metrics["sparsity"] == pytest.approx(0.36, abs=1e-5)


def test_the_seed_decides_everything(data):
    one, same_seed, other = (run(config(seed=seed), data) for seed in (3, 3, 4))
    assert [r.metrics for r in one] == [r.metrics for r in same_seed]
    assert same(one[-1].network.state, same_seed[-1].network.state)
    assert not same(one[0].network.initial, other[0].network.initial)


def test_nothing_is_chosen_by_the_test_data(data):
    noise = replace(data.test, images=16 - data.test.images, labels=data.test.labels.flip(0))
    honest, blind = run(config(), data), run(config(), replace(data, test=noise))
    for a, b in zip(honest, blind, strict=True):
        assert same(a.network.state, b.network.state)
        assert same(a.network.masks, b.network.masks)
        differing = {name for name in a.metrics if repr(a.metrics[name]) != repr(b.metrics[name])}
        assert "test_loss" in differing
        assert differing <= {"test_loss", "test_accuracy", "test_error", "early_stop_test_accuracy"}


def test_the_target_is_reached_exactly(data):
    results = run(config(rounds=0, target_sparsity=0.75, prune_rate=0.5), data)
    assert [r.metrics["remaining_weights"] for r in results] == [2720, 1360, 680]
    uneven = run(config(rounds=0, target_sparsity=0.6, output_prune_rate=0.1), data)
    assert uneven[-1].metrics["remaining_weights"] == 2720 - round(0.6 * 2720)
    assert (
        len(uneven)
        == len(plan_rounds(config(target_sparsity=0.6, rounds=0, output_prune_rate=0.1), data)) + 1
    )


def test_the_output_layer_can_be_spared(data):
    results = run(config(output_prune_rate=0), data)
    assert results[-1].metrics["layer_sparsity/fc3"] == 0
    assert results[-1].metrics["layer_sparsity/fc1"] == pytest.approx(1 - 0.8**3, abs=1e-3)


def test_divergence_names_the_round_and_the_knob(data):
    with pytest.raises(DivergedError, match=r"of round 0: lower lr, got 1e\+30"):
        run(config(lr=1e30), data)
    with pytest.raises(DivergedError, match=r"of round 1: lower retrain_lr, got 1e\+30"):
        run(config(retrain_lr=1e30), data)


def test_one_shot_prunes_the_dense_network_in_every_round(data):
    dense, *later = run(config(pruning="one_shot"), data)
    for result in later:
        for name, mask in result.network.masks.items():
            sizes = dense.network.state[name].abs()
            assert sizes[~mask].max() <= sizes[mask].min()


def test_inverted_prunes_the_largest_of_each_layer(data):
    dense, pruned = run(config(rounds=1, control="inverted"), data)
    for name, mask in pruned.network.masks.items():
        sizes = dense.network.state[name].abs()
        assert sizes[~mask].min() >= sizes[mask].max()


def test_a_branch_of_a_dense_network_is_as_if_it_had_trained_it_itself(data):
    base = run(config(reinit="keep"), data)
    alone = run(config(reinit="random"), data)
    branched = run(config(reinit="random"), data, base=as_base(base))
    for a, b in zip(alone, branched, strict=True):
        assert a.metrics == b.metrics
        assert same(a.network.state, b.network.state)


SHARED = {"masks": "shared", "branch_of": "0" * 32}


@pytest.mark.parametrize("reinit", REINITS)
def test_shared_masks_are_those_of_the_trunk_in_every_round(reinit, data):
    base = run(config(reinit="lottery"), data)
    results = run(config(reinit=reinit, **SHARED), data, base=as_base(base))
    for theirs, mine in zip(base, results, strict=True):
        assert same(theirs.network.masks, mine.network.masks)
    assert same(results[0].network.state, base[0].network.state)


def test_sharing_the_masks_of_the_same_method_changes_nothing(data):
    base = run(config(reinit="lottery"), data)
    results = run(config(reinit="lottery", **SHARED), data, base=as_base(base))
    assert [a.metrics for a in base] == [b.metrics for b in results]


def test_keep_on_shared_masks_continues_from_the_trunks_values(data):
    base = run(config(reinit="lottery"), data)
    settings = config(reinit="keep", retrain_lr=1e-300, **SHARED)
    _, *later = run(settings, data, base=as_base(base))
    for before, result in zip(base, later, strict=False):
        start = apply_masks(before.network.state, result.network.masks)
        assert same(result.network.state, start)


@pytest.mark.parametrize("control", ["shuffled_mask", "random_mask"])
def test_controls_of_shared_masks_keep_the_layers_counts_and_stay_nested(control, data):
    base = run(config(reinit="lottery", scope="global"), data)
    settings = config(reinit="lottery", scope="global", control=control, **SHARED)
    results = run(settings, data, base=as_base(base))
    for theirs, mine in zip(base[1:], results[1:], strict=True):
        for name, mask in mine.network.masks.items():
            assert mask.sum() == theirs.network.masks[name].sum()
            assert not torch.equal(mask, theirs.network.masks[name])
    for before, after in pairwise(results):
        for name, mask in after.network.masks.items():
            assert not (mask & ~before.network.masks[name]).any()


def test_evaluations_have_the_test_accuracy_where_an_epoch_ends(data):
    result = run(config(rounds=1, eval_every=2), data)[1]
    assert result.evaluations[-1].test_accuracy == result.metrics["test_accuracy"]
    inner = [
        evaluation.test_accuracy for evaluation in result.evaluations if not evaluation.ends_epoch
    ]
    assert inner
    assert all(value != value for value in inner)


def test_every_metric_has_a_unit_that_is_explained():
    assert {metric.unit for metric in METRICS.values()} == UNITS.keys()
