"""Branches of stored runs: real runs in a real MLflow."""

import shutil
from pathlib import Path

import mlflow
import pytest
from safetensors.torch import load

from experiments.config.experiment import config_from
from experiments.run import run_experiment
from experiments.tracking import branch
from experiments.tracking.fingerprint import FINGERPRINT
from experiments.tracking.resume import find_or_resume, other_versions_note
from experiments.tracking.session import INTERNAL, tracked_run
from tests.conftest import QUICK, working_in


def do(**changes):
    return mlflow.get_run(run_experiment(config_from(QUICK | changes)))


def files(run, kind):
    folder = mlflow.artifacts.download_artifacts(run_id=run.info.run_id, artifact_path=kind)
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


@pytest.fixture(scope="module")
def base(tmp_path_factory, empty_store):
    """A finished run that others branch off; they are in the same store."""
    with working_in(tmp_path_factory.mktemp("base"), empty_store):
        yield do(reinit="lottery")


def test_a_branch_leaves_the_same_bytes_as_a_run_that_trains_everything(base):
    alone = do(reinit="random")
    branched = do(reinit="random", branch_of=base.info.run_id)
    assert files(alone, "checkpoints") == files(branched, "checkpoints")
    assert files(alone, "correct") == files(branched, "correct")
    for name in ("test_accuracy", "valid_loss", "epoch/test_accuracy", "train_seconds"):
        client = mlflow.MlflowClient()
        first, second = (
            client.get_metric_history(run.info.run_id, name) for run in (base, branched)
        )
        assert first[0].value == second[0].value
        assert len(first) == len(second)
    assert alone.data.tags[INTERNAL + FINGERPRINT] == branched.data.tags[INTERNAL + FINGERPRINT]
    assert alone.data.tags[INTERNAL + FINGERPRINT] != base.data.tags[INTERNAL + FINGERPRINT]


@pytest.mark.parametrize("method", [{"reinit": "random"}, {"criterion": "random"}])
def test_several_draws_branch_off_one_dense_network(base, method):
    alone = do(**method, draw_seed=7)
    branched = do(**method, draw_seed=7, branch_of=base.info.run_id)
    assert files(alone, "checkpoints") == files(branched, "checkpoints")
    dense, drawn = (files(run, "checkpoints") for run in (base, branched))
    for name in ("initial", "round_00"):  # the config is not the same
        one, other = (load(content[f"{name}.safetensors"]) for content in (dense, drawn))
        assert all(value.equal(other[key]) for key, value in one.items())
    assert client_rounds(do(**method, branch_of=base.info.run_id)) == client_rounds(branched)


def test_shared_masks_are_taken_from_the_stored_run(base):
    branched = do(reinit="random", branch_of=base.info.run_id, masks="shared")
    theirs, mine = (client_rounds(run) for run in (base, branched))
    assert theirs == mine
    own = do(reinit="random")
    assert own.data.tags[INTERNAL + FINGERPRINT] != branched.data.tags[INTERNAL + FINGERPRINT]
    first, second = (files(run, "checkpoints") for run in (own, branched))
    assert first["round_02.safetensors"] != second["round_02.safetensors"]


def client_rounds(run):
    history = mlflow.MlflowClient().get_metric_history(run.info.run_id, "remaining_weights")
    return [point.value for point in history]


MISMATCHES = [
    ({"branch_of": "0" * 32}, "branch_of: .* has no run 0000"),
    ({"seed": 1}, r"does not match this one: seed \(here 1, there 0\), dataset_digest"),
    ({"init_seed": 1}, r"does not match this one: init_seed \(here 1, there 0\)$"),
    ({"order_seed": 1}, r"does not match this one: order_seed \(here 1, there 0\)$"),
    ({"split_seed": 1}, r"split_seed \(here 1, there 0\), dataset_digest"),
    ({"pixels": "unit"}, r"pixels \(here unit, there standardised\)$"),
    ({"epochs": 3}, r"epochs \(here 3, there 2\)"),
    ({"lr": 0.02, "masks": "shared"}, r"lr \(here 0.02, there 0.01\)"),
    ({"prune_rate": 0.3, "masks": "shared"}, r"prune_rate \(here 0.3, there 0.2\)"),
    ({"rounds": 3, "masks": "shared"}, r"rounds \(here 3, there 2\)"),
]


@pytest.mark.parametrize(("changes", "message"), MISMATCHES)
def test_a_base_run_that_does_not_match_is_refused(changes, message, base):
    settings = {"branch_of": base.info.run_id, "reinit": "random"} | changes
    with pytest.raises(ValueError, match=message):
        do(**settings)


def test_a_branch_with_own_masks_may_be_pruned_differently(base):
    branched = do(branch_of=base.info.run_id, prune_rate=0.5, rounds=1, retrain_epochs=1)
    assert branched.data.metrics["sparsity"] == pytest.approx(0.5, abs=1e-3)


def test_a_base_run_without_its_checkpoint_is_refused(base, tmp_path):
    folder = Path(base.info.artifact_uri.removeprefix("file://"), "checkpoints")
    kept = shutil.move(folder, tmp_path)
    with pytest.raises(ValueError, match=r"branch_of: checkpoints/round_00.* missing or damaged"):
        do(reinit="random", branch_of=base.info.run_id)
    shutil.move(kept, folder)


def test_a_base_run_with_a_damaged_file_of_correct_images_is_refused(base):
    path = Path(base.info.artifact_uri.removeprefix("file://"), "correct/round_00.bits")
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    problem = r"correct/round_00.* missing or damaged \(it has 32 bytes, 257 images need 33\)"
    with pytest.raises(ValueError, match=f"branch_of: {problem}"):
        do(reinit="random", branch_of=base.info.run_id)
    path.write_bytes(content)


def test_a_branch_of_a_run_that_did_not_store_which_images_are_correct_lacks_its_round(
    base, tmp_path
):
    folder = Path(base.info.artifact_uri.removeprefix("file://"), "correct")
    kept = shutil.move(folder, tmp_path)
    branched = do(reinit="random", branch_of=base.info.run_id)
    assert sorted(files(branched, "correct")) == ["round_01.bits", "round_02.bits"]
    shutil.move(kept, folder)


@pytest.fixture
def old(base):
    """The base run, as a version with other digests would have marked it; restored afterwards."""
    client, run_id = mlflow.MlflowClient(), base.info.run_id
    client.set_tag(run_id, INTERNAL + FINGERPRINT, "0" * 32)
    yield base
    client.set_tag(run_id, INTERNAL + FINGERPRINT, base.data.tags[INTERNAL + FINGERPRINT])


def test_the_dense_network_of_another_version_is_refused(old):
    with pytest.raises(ValueError, match="was made by another version of this program"):
        do(reinit="random", branch_of=old.info.run_id)


def test_the_masks_of_another_version_can_be_shared(old):
    branched = do(reinit="random", branch_of=old.info.run_id, masks="shared")
    assert client_rounds(branched) == client_rounds(old)


def test_runs_of_another_version_are_not_found_but_counted(old):
    config = config_from(QUICK | {"reinit": "lottery"})
    digest = old.data.tags["weight_loss.dataset_digest"]
    with tracked_run("search"):
        assert find_or_resume(config, "digits", digest).run is None
        note = other_versions_note("digits", QUICK["model"])
        assert note == (
            "1 earlier run was made by another version of this program and is not reused"
        )
        assert other_versions_note("digits", "lenet_300_100") == ""


def test_a_base_run_with_other_code_is_refused(base, monkeypatch):
    monkeypatch.setattr(branch, "code_digest", lambda config: "3-0")
    with pytest.raises(ValueError, match=r"does not match this one: code \(here 3-0, there 3-"):
        do(reinit="random", branch_of=base.info.run_id)
