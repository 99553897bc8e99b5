"""Seeds: which random stream each of them decides."""

import torch

from experiments.config.experiment import config_from
from experiments.rounds.data import load_data
from tests.rounds import config, run, same
from tests.test_rounds_starts import frozen_start

EACH = {"init_seed": 0, "order_seed": 0, "split_seed": 0, "draw_seed": 0}


def test_each_seed_that_is_given_takes_the_place_of_the_seed(data):
    drawn = {"reinit": "random", "criterion": "random"}
    auto, given = run(config(**drawn), data), run(config(seed=9, **EACH, **drawn), data)
    for a, b in zip(auto, given, strict=True):
        assert same(a.network.state, b.network.state)
        assert same(a.network.masks, b.network.masks)
        assert (a.metrics, a.evaluations) == (b.metrics, b.evaluations)


def test_each_seed_decides_its_own_streams(data):
    drawn = {"reinit": "random", "criterion": "random"}
    plain = run(config(**drawn), data)
    init, order, draw = (
        run(config(**drawn, **{f"{name}_seed": 1}), data) for name in ("init", "order", "draw")
    )
    first = plain[0].network
    assert not same(init[0].network.initial, first.initial)
    assert same(init[1].network.masks, plain[1].network.masks)
    assert same(order[0].network.initial, first.initial)
    assert not same(order[0].network.state, first.state)
    assert same(order[1].network.masks, plain[1].network.masks)
    assert same(draw[0].network.state, first.state)
    assert not same(draw[1].network.masks, plain[1].network.masks)
    for changes in ({"reinit": "random"}, {"reinit": "shuffle"}, {"control": "random_mask"}):
        one, other = (run(config(**changes, draw_seed=seed, rounds=1), data) for seed in (0, 1))
        assert same(one[0].network.state, other[0].network.state)
        assert not same(one[1].network.state, other[1].network.state)


def test_new_values_and_the_order_of_images_are_drawn_apart(data):
    """A rate that moves nothing shows the values from which a round starts."""
    start, reordered, redrawn = (
        frozen_start("random", data, rounds=1, **changes)[1].network.state
        for changes in ({}, {"order_seed": 1}, {"draw_seed": 1})
    )
    masks = run(config(rounds=1, reinit="random"), data)[1].network.masks
    assert not same(start, redrawn)
    assert reordered["fc1.weight"].count_nonzero() == masks["fc1.weight"].sum()
    kept = (start["fc1.weight"] != 0) & (reordered["fc1.weight"] != 0)  # their masks differ
    assert torch.equal(start["fc1.weight"][kept], reordered["fc1.weight"][kept])


def test_the_split_seed_alone_decides_which_images_are_held_out():
    asked = {"dataset": "digits", "seed": 1}
    plain, split, others = (
        load_data(config_from(asked | changes))[0].digest
        for changes in ({}, {"split_seed": 2}, {"init_seed": 2, "order_seed": 2, "draw_seed": 2})
    )
    assert plain == others != split
    assert split == load_data(config_from({"dataset": "digits", "seed": 2}))[0].digest
