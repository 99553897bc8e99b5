"""The package weight_loss: its rounds are those of a run."""

import mlflow
import pytest
import torch

import weight_loss
from pruning.checkpoint import load_checkpoint
from tests.conftest import QUICK


def test_rounds_without_mlflow_are_those_of_a_run(store):
    run_id = weight_loss.run_experiment(**QUICK)
    made = list(weight_loss.prune_rounds(**QUICK))
    assert [network.round for network in made] == [0, 1, 2]
    pixels = torch.rand(4, 1, 8, 8)
    for network in made:
        stored = weight_loss.load_network(run_id, network.round)
        assert torch.equal(stored.module(pixels), network.module(pixels))
        assert stored.metrics == network.metrics
        assert stored.masks.keys() == network.masks.keys()
        assert all(torch.equal(stored.masks[name], network.masks[name]) for name in stored.masks)
    made[1].save("saved.safetensors")
    path = mlflow.artifacts.download_artifacts(f"runs:/{run_id}/checkpoints/round_01.safetensors")
    saved, logged = load_checkpoint("saved.safetensors"), load_checkpoint(path)
    assert saved.metadata == {k: v for k, v in logged.metadata.items() if k != "what"}
    assert all(torch.equal(saved.state[name], logged.state[name]) for name in logged.state)


def test_an_active_run_of_the_user_is_left_alone(store):
    with mlflow.start_run() as mine:
        with pytest.raises(ValueError, match=rf"run {mine.info.run_id} is active: end it first"):
            weight_loss.run_experiment(**QUICK)
        assert mlflow.active_run().info.run_id == mine.info.run_id
    after = mlflow.get_run(mine.info.run_id)
    assert after.info.status == "FINISHED"
    assert "error" not in after.data.tags


def test_later_rounds_do_not_change_a_network():
    rounds = weight_loss.prune_rounds(**QUICK)
    first = next(rounds)
    before = {name: value.clone() for name, value in first.module.state_dict().items()}
    next(rounds)
    assert all(torch.equal(first.module.state_dict()[name], before[name]) for name in before)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"epochs": 0}, "epochs must be greater than 0, got 0"),
        (
            {"epoch": 1},
            r"there is no parameter epoch \(did you mean epochs\?\); the parameters are reinit, ",
        ),
        ({"branch_of": "0" * 32}, "prune_rounds reads no run, got {'branch_of': '000"),
    ],
)
def test_invalid_parameters_are_one_line(parameters, message):
    with pytest.raises(ValueError, match="^" + message) as caught:
        next(weight_loss.prune_rounds(**parameters))
    assert "\n" not in str(caught.value)
