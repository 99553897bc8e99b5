"""Where rounds start: the values, the scores that count from them, and the schedule."""

from dataclasses import replace
from itertools import pairwise

import pytest

from experiments.config.experiment import config_from
from experiments.rounds.rounds import recipe_of
from experiments.training.loop import derive_seed
from models import Architecture
from pruning.masks import apply_masks
from pruning.reinit import REINITS, Memory
from tests.rounds import config, run, same


def frozen_start(reinit, data, **changes):
    """The states from which the rounds start, seen by training at a rate that moves nothing."""
    settings = config(reinit=reinit, retrain_lr=1e-300, **changes)
    return run(settings, data)


def test_lottery_restarts_from_the_very_first_values(data):
    results = frozen_start("lottery", data)
    initial = Architecture("lenet_30_20", (1, 8, 8), 10).draw(derive_seed(0, 0, "initial"))
    assert same(results[0].network.initial, initial)
    assert not same(results[0].network.state, initial)
    for result in results[1:]:
        assert same(result.network.state, apply_masks(initial, result.network.masks))


def test_keep_continues_from_the_trained_values(data):
    dense, *later = frozen_start("keep", data)
    for result in later:
        assert same(result.network.state, apply_masks(dense.network.state, result.network.masks))


def test_random_draws_new_values_in_every_round(data):
    _, first, second, third = frozen_start("random", data)
    both = first.network.masks["fc1.weight"] & second.network.masks["fc1.weight"]
    a, b = (result.network.state["fc1.weight"][both] for result in (first, second))
    assert (a == b).float().mean() < 0.01
    initial = first.network.initial["fc1.weight"][both]
    assert (a == initial).float().mean() < 0.01
    assert third.network.state["fc1.weight"].std() > 0


def test_rewind_returns_to_the_values_after_its_epoch(data):
    short = run(config(epochs=2, rounds=1, schedule="constant"), data)[0]
    results = frozen_start("rewind", data, rewind_epoch=2, schedule="constant")
    assert same(results[0].network.rewound, short.network.state)
    for result in results[1:]:
        assert same(result.network.state, apply_masks(short.network.state, result.network.masks))


def test_one_shot_fine_tunes_the_values_of_the_dense_network(data):
    dense, *later = frozen_start("keep", data, pruning="one_shot")
    for result in later:
        assert same(result.network.state, apply_masks(dense.network.state, result.network.masks))


@pytest.mark.parametrize("epochs", [1, 2, 3, 7])
def test_rewinding_to_the_start_is_the_lottery(epochs, data):
    given = {"schedule": "cosine", "retrain_epochs": epochs}
    lottery = run(config(reinit="lottery", **given), data)
    rewind = run(config(reinit="rewind", rewind_epoch=0, **given), data)
    assert all(same(a.network.state, b.network.state) for a, b in zip(lottery, rewind, strict=True))


@pytest.mark.parametrize("reinit", ["rewind", "lr_rewind"])
def test_rewinding_enters_the_schedule_where_the_weights_left_it_and_ends_at_its_end(reinit):
    """Renda et al. 2020: epochs 3 to 10 of ten, at exactly the rates of the dense network."""
    given = {"reinit": reinit, "epochs": 10, "warmup_epochs": 4, "rewind_epoch": 2, "lr": 1}
    settings = config_from(given | {"device": "cpu"}).resolved("digits")
    dense, rest = recipe_of(settings, 0), recipe_of(settings, 1)
    assert (dense.epochs, rest.epochs) == (10, 8)
    steps = 23  # of an epoch
    for step in range(8 * steps + 1):
        rate = dense.lr((2 * steps + step) / (10 * steps))
        assert rest.lr(step / (8 * steps)) == pytest.approx(rate, rel=1e-12)
    for epochs in (1, 3, 20):  # the same rates, sooner or later
        other = recipe_of(settings.model_copy(update={"retrain_epochs": epochs}), 1)
        assert other.epochs == epochs
        for progress in (0, 0.25, 0.5, 1):
            assert other.lr(progress) == pytest.approx(rest.lr(progress), rel=1e-12)


def stored(network, reinit):
    """As a checkpoint keeps it: without what its round pruned, unless the method needs that."""
    return network if REINITS[reinit].continues else replace(network, before={})


def began_with(reinit, results, number):
    """The values from which a round of these results trained."""
    first, last = results[0].network, results[number].network
    if number == 0:
        return first.initial
    draw = Architecture("lenet_30_20", (1, 8, 8), 10).draw
    pruned = results[number - 1].network.state
    memory = Memory(first.initial, first.rewound, pruned, last.masks, draw)
    return REINITS[reinit].values(memory, derive_seed(0, number, "reinit"))


SINCE_START = {
    "large_init": lambda start, trained: start.abs(),
    "movement": lambda start, trained: (trained - start).abs(),
    "magnitude_increase": lambda start, trained: trained.abs() - start.abs(),
}


@pytest.mark.parametrize("reinit", REINITS)
@pytest.mark.parametrize("criterion", SINCE_START)
def test_scores_count_from_where_the_training_of_the_network_began(reinit, criterion, data):
    """The lowest are pruned in every round, also in one that continues a stored run."""
    settings = config(reinit=reinit, criterion=criterion)
    whole = run(settings, data)
    for number in range(3):
        pruned, start = whole[number].network, began_with(reinit, whole, number)
        (after, *_) = run(settings, data, after=stored(pruned, reinit))
        assert same(after.network.masks, whole[number + 1].network.masks)
        for name, mask in pruned.masks.items():
            scores = SINCE_START[criterion](start[name], pruned.state[name])
            left = after.network.masks[name]
            assert scores[mask & ~left].max() <= scores[left].min()


@pytest.mark.parametrize("reinit", REINITS)
def test_weights_that_training_did_not_move_are_pruned_by_their_index(reinit, data):
    for before, after in pairwise(frozen_start(reinit, data, criterion="movement")[1:]):
        for name, mask in before.network.masks.items():
            kept = after.network.masks[name][mask]
            gone = round(0.2 * len(kept))
            assert kept.tolist() == [False] * gone + [True] * (len(kept) - gone)


def test_one_shot_counts_from_the_first_values_in_every_round(data):
    dense, *later = run(config(reinit="random", criterion="large_init", pruning="one_shot"), data)
    for result in later:
        for name, mask in result.network.masks.items():
            scores = dense.network.initial[name].abs()
            assert scores[~mask].max() <= scores[mask].min()
