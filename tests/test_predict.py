"""The command predict: names for new pictures, from the network of a run."""

import shutil
import time
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from datasets import load_splits
from datasets.photographs.crops import read_crop
from datasets.photographs.manifest import read_manifest
from experiments.__main__ import run_command
from experiments.config.experiment import config_from
from experiments.config.faces import FacesConfig
from experiments.config.predict import PredictConfig
from experiments.predict import predict
from experiments.prepare_faces import prepare_photographs
from experiments.rounds.network import data_of, evaluate
from experiments.run import run_experiment
from experiments.tracking import orphan
from experiments.tracking.networks import load_network
from pruning.checkpoint import load_checkpoint, save_checkpoint
from tests.conftest import QUICK, TIMEOUT, working_in
from tests.portraits import flower, folder
from tests.test_project import path, run_project, runs

assert path  # a fixture


@pytest.fixture(scope="module")
def digits_run(tmp_path_factory, empty_store):
    """The id of a run on digits, and a folder of twelve test images as pictures."""
    with working_in(tmp_path_factory.mktemp("digits"), empty_store):
        run_id = run_experiment(
            config_from(QUICK | {"epochs": 20, "retrain_epochs": 20, "rounds": 1})
        )
        data, _ = load_splits("digits", "", 0)
        Path("pictures/more").mkdir(parents=True)
        for number, image in enumerate(data.test.images[:12, 0].numpy()):
            where = "pictures/more" if number > 9 else "pictures"
            grey = np.rint(image * (255 / 16)).astype(np.uint8)
            Image.fromarray(grey).save(f"{where}/{number:02d}.png")
        yield run_id, data.test


def test_digits_are_named_as_the_network_classifies_them(digits_run, capsys):
    run_id, _ = digits_run
    table = predict(PredictConfig(run=run_id, images="pictures"))
    network = load_network(run_id)
    expected = evaluate(network, data_of(network).test).predicted[:12]
    assert table["file"].tolist() == [f"{n:02d}.png" for n in range(10)] + [
        "more/10.png",
        "more/11.png",
    ]
    assert table["name"].astype(int).tolist() == expected.tolist()
    assert (table["probability"] >= table["second_probability"]).all()
    assert table["probability"].between(0.1, 1).all()
    written = pd.read_csv(f"predictions/{run_id}/predictions.csv", dtype={"name": str})
    assert written["name"].tolist() == table["name"].tolist()
    assert np.allclose(written["probability"], table["probability"])
    with Image.open(f"predictions/{run_id}/contact_sheet.png") as sheet:
        assert sheet.size == (8 * 160, 34 + 2 * 208)
    output = capsys.readouterr().out
    assert f"Test accuracy of this network: {network.metrics['test_accuracy']:.1%} of 257" in output
    assert "WARNING" not in output


def test_ink_on_paper_is_reported_and_can_be_inverted(digits_run, tmp_path, capsys):
    run_id, _ = digits_run
    (tmp_path / "ink").mkdir()
    for name in ("00.png", "01.png"):
        with Image.open(f"pictures/{name}") as image:
            Image.eval(image, lambda value: 255 - value).save(tmp_path / "ink" / name)
    asked = {"run": run_id, "images": str(tmp_path / "ink"), "out": str(tmp_path / "out")}
    predict(PredictConfig(**asked))
    assert "WARNING: 2 of 2 pictures look dark on light, such as 00.png" in capsys.readouterr().out
    inverted = predict(PredictConfig(**asked, invert=True))
    assert "WARNING" not in capsys.readouterr().out
    asked["images"] = "pictures"
    straight = predict(PredictConfig(**asked))
    pd.testing.assert_frame_equal(inverted, straight.head(2))
    capsys.readouterr()
    predict(PredictConfig(**asked, invert=True))
    output = capsys.readouterr().out
    assert "WARNING: 12 of 12 pictures look dark on light once inverted, such as" in output
    assert "set invert=false" in output


def test_a_run_that_the_user_named_stays(digits_run, tmp_path, monkeypatch):
    run_id, _ = digits_run
    with mlflow.start_run(run_name="mine") as mine:
        pass
    started = []
    monkeypatch.setattr(orphan, "delete_when_closed", started.append)
    for named in (mine.info.run_id, run_id):
        monkeypatch.setenv("MLFLOW_RUN_ID", named)
        before = mlflow.get_run(named).info.run_name
        predict(PredictConfig(run=run_id, images="pictures", out=str(tmp_path / "out")))
        assert mlflow.get_run(named).info.run_name == before
    assert started == []


def test_any_picture_is_resized_and_a_damaged_one_is_listed(digits_run, tmp_path, capsys):
    run_id, _ = digits_run
    (tmp_path / "in").mkdir()
    names = [f"{number:02d}.png" for number in range(10)]
    for name in names:
        with Image.open(f"pictures/{name}") as image:
            large = image.convert("RGB").resize((80, 80), Image.Resampling.NEAREST)
            large.save(tmp_path / "in" / name)
    (tmp_path / "in" / "=broken.png").write_bytes(b"\x89PNG")
    table = predict(PredictConfig(run=run_id, images=str(tmp_path / "in"), out=str(tmp_path)))
    assert table["file"].tolist() == [*names, "=broken.png"]
    assert table["outcome"].tolist() == ["kept"] * 10 + ["unreadable"]
    assert table["reason"].tolist() == [""] * 10 + ["unknown image format"]
    assert pd.isna(table["name"][10])
    assert "\n'=broken.png," in (tmp_path / "predictions.csv").read_text()  # not a formula
    output = capsys.readouterr().out
    assert "unknown image format" not in output  # a reason is in the file and on the contact sheet
    assert "unreadable" in output
    originals = predict(PredictConfig(run=run_id, images="pictures", out=str(tmp_path)))
    assert originals["name"][:10].nunique() > 2
    assert table["name"][:10].tolist() == originals["name"][:10].tolist()


def test_a_checkpoint_and_a_round_can_be_chosen(digits_run, tmp_path):
    run_id, _ = digits_run
    checkpoints = mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path="checkpoints")
    asked = {"images": "pictures", "out": str(tmp_path)}
    one = predict(PredictConfig(run=run_id, round="0", **asked))
    two = predict(PredictConfig(run=f"{checkpoints}/round_00.safetensors", **asked))
    assert one.equals(two)
    assert not one.equals(predict(PredictConfig(run=run_id, **asked)))


@pytest.mark.parametrize(
    ("forge", "message"),
    [
        (lambda metadata, state: metadata.pop("data"), ""),
        (lambda metadata, state: metadata["data"].pop("images"), ""),
        (lambda metadata, state: metadata["metrics"].update(test_accuracy=None), ""),
        (
            lambda metadata, state: metadata["data"].update(preparation={"margin": "a"}),
            "run: its images have the shape 1x8x8, which no picture has",
        ),
        (
            lambda metadata, state: state["fc3.bias"].fill_(torch.nan),
            "run: the answers of its network are not finite numbers",
        ),
        (
            lambda metadata, state: metadata["network"].update(image_shape=[4, 4, 4]),
            "run: its images have the shape 4x4x4, which no picture has",
        ),
        (
            lambda metadata, state: metadata["network"].update(
                model=f"lenet_{10**22}", compact=True
            ),
            "does not fit its model lenet_1000",
        ),
    ],
)
def test_a_forged_checkpoint_gives_predictions_or_one_line(
    digits_run, tmp_path, capsys, forge, message
):
    run_id, _ = digits_run
    path = tmp_path / "forged.safetensors"
    load_network(run_id).save(path)
    found = load_checkpoint(path)
    forge(found.metadata, found.state)
    save_checkpoint(path, found.state, {}, found.metadata)
    words = [f"--run={path}", "--images=pictures", f"--out={tmp_path / 'out'}"]
    if not message:
        run_command("predict", words)
        return
    with pytest.raises(SystemExit) as stop:
        run_command("predict", words)
    assert stop.value.code == 2
    error = capsys.readouterr().err.splitlines()
    assert error[-1].startswith("error: ")
    assert message in error[-1]


def test_checkpoints_of_the_same_name_do_not_share_a_folder(digits_run, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(Path.cwd()))
    checkpoints = mlflow.artifacts.download_artifacts(
        run_id=digits_run[0], artifact_path="checkpoints", dst_path=str(tmp_path)
    )
    sources = ["one/checkpoints", "two/checkpoints", "run.v1", "run.v2"]
    for source in sources:
        shutil.copytree(checkpoints, source)
    sources += [f"{source}/round_01.safetensors" for source in sources]
    folders = set(Path("predictions").glob("*"))
    for source in sources:
        predict(PredictConfig(run=f"~/{source}", images="~/pictures/03.png"))
    made = set(Path("predictions").iterdir()) - folders
    names = sorted(folder.name.partition("-")[0] for folder in made)
    assert names == ["checkpoints"] * 2 + ["round_01"] * 4 + ["run.v1", "run.v2"]
    predict(PredictConfig(run=sources[0], images="pictures"))  # the same path: the same folder
    assert set(Path("predictions").iterdir()) == folders | made


def test_only_contact_sheets_are_replaced(digits_run, tmp_path):
    kept, ours = ("contact_sheet_holiday.png", "contact_sheet.old.png"), "contact_sheet.12.png"
    for name in (*kept, ours):
        (tmp_path / name).write_text("")
    predict(PredictConfig(run=digits_run[0], images="pictures", out=str(tmp_path)))
    found = {path.name for path in tmp_path.iterdir()}
    assert found == {*kept, "contact_sheet.png", "predictions.csv"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"run": "0" * 32}, "has no run 0"),
        ({"run": "0000"}, "run must be the id of a run, a checkpoint or a folder of checkpoints"),
        ({"images": "nowhere"}, "nowhere is not a picture or a folder of pictures"),
        ({"images": "empty"}, "empty has no pictures (.jpg"),
        ({"images": "."}, "out must not be inside images, got predictions/"),
        ({"round": "first"}, "round must be last or the number of a round, got first"),
        ({"round": "7"}, "round must be last or one of 0 to 1, got 7"),
    ],
)
def test_invalid_parameters_are_one_line(digits_run, capsys, changes, message):
    Path("empty").mkdir(exist_ok=True)
    asked = {"run": digits_run[0], "images": "pictures"} | changes
    with pytest.raises(SystemExit) as stop:
        run_command("predict", [f"--{name}={value}" for name, value in asked.items()])
    assert stop.value.code == 2
    line = capsys.readouterr().err
    assert line.startswith("error: ")
    assert message in line
    assert line.count("\n") == 1


def test_a_project_predicts_and_leaves_no_run(digits_run, path, tmp_path):
    run_id, _ = digits_run
    before = {run.info.run_id for run in runs()}
    run_project("predict", run=run_id, images=Path("pictures").absolute(), out=tmp_path / "out")
    assert (tmp_path / "out/predictions.csv").exists()
    give_up = time.monotonic() + TIMEOUT
    while {run.info.run_id for run in runs()} != before and time.monotonic() < give_up:
        time.sleep(0.2)
    assert {run.info.run_id for run in runs()} == before


def test_faces_are_cut_as_their_network_was_trained(store, capsys):
    """The network gets the same pixels from a photograph as from its prepared crop."""
    source = folder(store / "photographs", ada=5, grace=5)
    options = {"align": False, "margin": 0.2, "out": "faces", "source": str(source)}
    prepare_photographs(FacesConfig(**options, device="cpu"))
    run_id = run_experiment(
        config_from(
            {"dataset": "faces", "data_root": "faces", "epochs": 1, "retrain_epochs": 1}
            | {"rounds": 1, "device": "cpu", "batch_size": 4}
        )
    )
    flower().save(source / "grace" / "flower.png")
    capsys.readouterr()
    table = predict(PredictConfig(run=run_id, images=str(source), device="cpu"))
    output = capsys.readouterr().out
    assert table["outcome"].tolist() == ["kept"] * 10 + ["no_face"]
    assert set(table["name"].dropna()) <= {"ada", "grace"}
    assert table["file"].tolist()[-1] == "grace/flower.png"
    assert "WARNING: 2 test images: each is 50 percentage points" in output
    network = load_network(run_id)
    assert network.class_names == ("ada", "grace")
    row = read_manifest(store / "faces/manifest.csv").iloc[0]
    crop = torch.from_numpy(read_crop(store / "faces" / row["crop"]).copy())
    with torch.no_grad():
        share = network.module(crop.view(1, 1, 144, 144).float() / 255).softmax(1).max()
    assert table["probability"][0] == pytest.approx(float(share), abs=1e-5)
    with pytest.raises(ValueError, match="invert is not for networks that recognise faces"):
        predict(PredictConfig(run=run_id, images=str(source), invert=True))
