"""What is measured at the end of a round, beyond what tests/test_rounds_rounds.py needs."""

import math
from dataclasses import replace

import pytest
import torch

from experiments.training.engine import ENGINES
from models import Architecture
from tests.rounds import config, run


@pytest.mark.parametrize("eval_every", [0, 2, 4])  # with 4, some epochs end between the looks
def test_the_catch_up_is_the_first_look_at_or_below_the_dense_networks_lowest_loss(
    eval_every, data
):
    settings = config(eval_every=eval_every, reinit="random", retrain_epochs=6, epochs=2)
    dense, *later = run(settings, data)
    target = dense.metrics["early_stop_valid_loss"]
    on_grid = [each for each in dense.evaluations if each.is_candidate]
    assert target == min(each.valid_loss for each in on_grid)
    assert dense.metrics["catch_up_iteration"] == dense.metrics["early_stop_iteration"]
    for result in later:
        looks = [
            each
            for each in result.evaluations
            if not eval_every or each.iteration % eval_every == 0 or each.iteration == 30
        ]
        first = next(each for each in looks if each.valid_loss <= target)
        assert result.metrics["catch_up_iteration"] == first.iteration > 1
        assert result.network.dense_valid_loss == target


def test_a_network_that_never_catches_up_has_no_iteration(data):
    settings = config(reinit="random", retrain_lr=1e-9)
    dense, *later = run(settings, data)
    assert all(math.isnan(result.metrics["catch_up_iteration"]) for result in later)
    old = replace(dense.network, dense_valid_loss=None)  # as an older version stored it
    for result in run(settings, data, after=old):
        assert "catch_up_iteration" not in result.metrics
        assert result.metrics.keys() < later[0].metrics.keys()


@pytest.mark.parametrize("engine", ENGINES)
def test_a_round_says_which_test_images_its_network_classifies_correctly(engine, data):
    for result in run(config(engine=engine, eval_every=2), data):
        assert (result.correct.dtype, result.correct.shape) == (torch.bool, data.test.labels.shape)
        accuracy = result.metrics["test_accuracy"]
        assert int(result.correct.sum()) / len(data.test) == accuracy < 1
        model = Architecture("lenet_30_20", (1, 8, 8), 10).build()
        model.load_state_dict(result.network.state)
        logits = model(data.test.view.fixed(data.test.images))
        assert torch.equal(result.correct, logits.argmax(1) == data.test.labels)
    assert run(config(rounds=1), data.without_test())[1].correct is None
