"""Networks of stored runs: loaded in one call, they give the results that were logged."""

import shutil
from pathlib import Path

import mlflow
import pandas as pd
import pytest
import torch
from pydantic import TypeAdapter

from datasets.splits import Images
from experiments.config.experiment import config_from
from experiments.rounds.data import load_data
from experiments.rounds.network import data_of, describe_network, evaluate
from experiments.run import run_experiment
from experiments.tracking.log import Run
from experiments.tracking.networks import load_network
from models import Architecture
from models.serving import NetworkSpec
from pruning.checkpoint import load_checkpoint, save_checkpoint
from tests.conftest import QUICK, working_in
from tests.test_project import interrupt
from tests.test_tracking_resume import anywhere, files

assert anywhere  # a fixture


@pytest.fixture(scope="module")
def finished(tmp_path_factory, empty_store):
    """The id of a finished run, and its checkpoints in a folder."""
    with working_in(tmp_path_factory.mktemp("finished"), empty_store):
        run_id = run_experiment(config_from(QUICK))
        path = mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path="checkpoints")
        yield run_id, Path(path)


def test_a_run_a_folder_and_a_file_give_the_same_network(finished):
    run_id, folder = finished
    pixels = torch.rand(3, 1, 8, 8)
    loaded = load_network(run_id)
    others = [
        load_network(folder),
        load_network(folder.parent, 2),
        load_network(str(folder / "round_02.safetensors")),
    ]
    for other in others:
        assert torch.equal(other.module(pixels), loaded.module(pixels))
        assert other.metadata == loaded.metadata
    assert loaded.round == 2
    assert loaded.class_names == tuple("0123456789")
    state = loaded.module.network.state_dict()
    pruned = sum(int((~mask).sum()) for mask in loaded.masks.values())
    assert pruned == (384 + 307) + (120 + 96) + (40 + 32)  # 20% twice, of 1920, 600 and 200
    assert not any(state[name][~mask].count_nonzero() for name, mask in loaded.masks.items())


def test_a_folder_of_saved_networks_is_read_by_their_numbers(finished, tmp_path):
    run_id, folder = finished
    for number in (0, 2):
        network = load_network(run_id, number)
        network.save(tmp_path / f"round_{network.round}.safetensors")
    assert load_network(tmp_path).round == 2
    assert load_network(tmp_path, 0).round == 0
    shutil.copy(folder / "round_00.safetensors", tmp_path)
    with pytest.raises(ValueError, match=r"has round_0\.safetensors and round_00\.safetensors"):
        load_network(tmp_path)
    (tmp_path / "round_00.safetensors").unlink()
    shutil.copytree(folder, tmp_path / "checkpoints")
    shutil.copy(folder / "round_02.safetensors", tmp_path)
    with pytest.raises(ValueError, match="has several files for one round"):
        load_network(tmp_path, 0)


def test_every_round_evaluates_as_it_was_logged(finished):
    run_id, _ = finished
    rounds = pd.read_csv(mlflow.artifacts.download_artifacts(f"runs:/{run_id}/rounds.csv"))
    data = data_of(load_network(run_id))
    for number in range(3):
        network = load_network(run_id, number)
        assert network.metrics["sparsity"] == rounds["sparsity"][number]
        for name in ("valid", "test"):
            score = evaluate(network, getattr(data, name))
            assert score.accuracy == rounds[f"{name}_accuracy"][number]
            assert score.loss == pytest.approx(rounds[f"{name}_loss"][number], rel=1e-5)


def test_the_logged_model_carries_its_class_names(finished):
    run_id, _ = finished
    (logged,) = mlflow.search_logged_models(
        [mlflow.get_run(run_id).info.experiment_id], output_format="list"
    )
    metadata = mlflow.models.get_model_info(logged.model_uri).metadata
    assert metadata == {"class_names": list("0123456789")}


def test_the_initial_network_works_too(finished):
    network = load_network(finished[1] / "initial.safetensors")
    assert evaluate(network, data_of(network).valid).accuracy < 0.5


@pytest.mark.parametrize(
    ("source", "number", "message"),
    [
        ("{run}", 3, "^round must be last or one of 0 to 2, got 3$"),
        ("{folder}/round_01.safetensors", 2, "^round must be 1, that of .*, got 2$"),
        ("{folder}/nothing", "last", "^run must be the id of a run, a checkpoint or a folder"),
        ("0" * 32, "last", "^run: sqlite:.* has no run 0+$"),
        ("{folder}/../..", "last", "has no checkpoints of rounds"),
    ],
)
def test_what_does_not_exist_is_one_clear_line(finished, source, number, message):
    run_id, folder = finished
    with pytest.raises(ValueError, match=message):
        load_network(source.format(run=run_id, folder=folder), number)


def test_data_that_changed_are_rejected(finished):
    network = load_network(finished[0])
    network.metadata["data"]["digest"] = "0"
    with pytest.raises(ValueError, match="are not those that the network was trained on"):
        data_of(network)


def test_a_run_of_a_version_without_descriptions_is_resumed_and_loaded(anywhere, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Run, "finish", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run_experiment(config_from(QUICK | {"rounds": 1}))
    (run,) = mlflow.search_runs(search_all_experiments=True, output_format="list")
    stored = next(anywhere.rglob("round_01.safetensors")).parent
    for path in stored.iterdir():
        new = load_checkpoint(path)
        old = {k: value for k, value in new.metadata.items() if k not in ("network", "data")}
        save_checkpoint(path, new.state, new.masks, old)
    run_experiment(config_from({"resume": run.info.run_id}))
    assert mlflow.get_run(run.info.run_id).info.status == "FINISHED"
    assert len(files(run.info.run_id)) == 4
    with pytest.raises(ValueError, match="written by an older version"):
        load_network(stored)
    data, _ = load_data(config_from(QUICK))
    logged = mlflow.get_run(run.info.run_id).data.metrics["test_accuracy"]
    for network in (load_network(stored, data=data), load_network(run.info.run_id)):
        assert evaluate(network, data.test).accuracy == logged


def test_a_network_of_faces_says_how_to_cut_them(tmp_path):
    """Without the folder that the photographs came from, which differs between machines."""
    from datasets.photographs.options import FaceOptions
    from datasets.splits import split_images

    options = FaceOptions(align=False, margin=0.25)
    text = options.model_dump_json(indent=2).replace("{", '{"source": "somewhere",', 1)
    (tmp_path / "options.json").write_text(text)
    images = torch.arange(12 * 144 * 144).remainder(255).byte().view(12, 144, 144)
    parts = {
        name: (images[start : start + 4], torch.tensor([0, 1, 0, 1]))
        for name, start in (("train", 0), ("valid", 4), ("test", 8))
    }
    raw = Images(str(tmp_path), 255, **parts, crop=128, classes=("ada", "grace"))
    data = split_images("faces", raw, 0.1, 0, 0)
    described = describe_network(config_from({}).resolved("faces"), data)
    assert described["data"]["preparation"] == options.model_dump()
    assert described["data"]["images"] == {"train": 4, "valid": 4, "test": 4}
    assert described["network"]["image_shape"] == (1, 144, 144)
    assert described["network"]["class_names"] == ("ada", "grace")
    assert described["network"]["crop"] == 128
    spec = TypeAdapter(NetworkSpec).validate_python(described["network"])
    state = Architecture(spec.model, (1, 128, 128), 2).draw(0)
    assert spec.build(state)(torch.rand(1, 1, 144, 144)).shape == (1, 2)
