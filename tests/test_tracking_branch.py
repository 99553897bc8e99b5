"""Branches of stored runs: real runs in a real MLflow."""

import shutil
from pathlib import Path

import mlflow
import pytest

from experiments.config.experiment import config_from
from experiments.run import run_experiment
from experiments.tracking.fingerprint import FINGERPRINT, fingerprint
from tests.conftest import QUICK


def do(**changes):
    return mlflow.get_run(run_experiment(config_from(QUICK | changes)))


def checkpoints(run):
    folder = mlflow.artifacts.download_artifacts(
        run_id=run.info.run_id, artifact_path="checkpoints"
    )
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


@pytest.fixture
def base(store):
    return do(reinit="lottery")


def test_a_branch_leaves_the_same_bytes_as_a_run_of_its_own(base):
    alone = do(reinit="random")
    branch = do(reinit="random", branch_of=base.info.run_id)
    assert checkpoints(alone) == checkpoints(branch)
    for name in ("test_accuracy", "valid_loss", "epoch/test_accuracy", "train_seconds"):
        client = mlflow.MlflowClient()
        first, second = (client.get_metric_history(run.info.run_id, name) for run in (base, branch))
        assert first[0].value == second[0].value
        assert len(first) == len(second)
    assert alone.data.tags[FINGERPRINT] == branch.data.tags[FINGERPRINT]
    assert alone.data.tags[FINGERPRINT] != base.data.tags[FINGERPRINT]


def test_shared_masks_are_taken_from_the_stored_run(base):
    branch = do(reinit="random", branch_of=base.info.run_id, masks="shared")
    theirs, mine = (client_rounds(run) for run in (base, branch))
    assert theirs == mine
    own = do(reinit="random")
    assert own.data.tags[FINGERPRINT] != branch.data.tags[FINGERPRINT]
    assert checkpoints(own)["round_02.safetensors"] != checkpoints(branch)["round_02.safetensors"]


def client_rounds(run):
    history = mlflow.MlflowClient().get_metric_history(run.info.run_id, "remaining_weights")
    return [point.value for point in history]


MISMATCHES = [
    ({"branch_of": "0" * 32}, "branch_of: .* has no run 0000"),
    ({"seed": 1}, r"does not go with what is asked for: seed \(here 1, there 0\), dataset_digest"),
    ({"epochs": 3}, r"epochs \(here 3, there 2\)"),
    ({"lr": 0.02, "masks": "shared"}, r"lr \(here 0.02, there 0.01\)"),
    ({"prune_rate": 0.3, "masks": "shared"}, r"prune_rate \(here 0.3, there 0.2\)"),
    ({"rounds": 3, "masks": "shared"}, r"rounds \(here 3, there 2\)"),
]


@pytest.mark.parametrize(("changes", "message"), MISMATCHES)
def test_what_does_not_go_with_the_trunk_is_refused(changes, message, base):
    asked = {"branch_of": base.info.run_id, "reinit": "random"} | changes
    with pytest.raises(ValueError, match=message):
        do(**asked)


def test_own_masks_may_be_pruned_otherwise_than_the_trunks(base):
    branch = do(branch_of=base.info.run_id, prune_rate=0.5, rounds=1, retrain_epochs=1)
    assert branch.data.metrics["sparsity"] == pytest.approx(0.5, abs=1e-3)


def test_a_trunk_without_its_checkpoint_is_refused(base):
    folder = Path(base.info.artifact_uri.removeprefix("file://"), "checkpoints")
    shutil.rmtree(folder)
    with pytest.raises(ValueError, match=r"branch_of: checkpoints/round_00.* missing or damaged"):
        do(reinit="random", branch_of=base.info.run_id)


def test_the_fingerprint_follows_what_decides_the_result():
    def of(digest="d", threads=1, **changes):
        return fingerprint(config_from(QUICK | changes).resolved("digits"), digest, threads)

    assert of() == of(data_root="elsewhere") == of(branch_of="1" * 32)
    assert of() == of(output_prune_rate=0.2)  # what "auto" is
    different = [
        of(),
        of("other data"),
        of(threads=2),
        of(seed=1),
        of(reinit="keep"),
        of(control="inverted"),
        of(pruning="one_shot"),
        of(masks="shared", branch_of="1" * 32),
        of(masks="shared", branch_of="2" * 32),
        of(retrain_lr=0.5),
    ]
    assert len(set(different)) == len(different)
