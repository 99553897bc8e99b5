"""A served model: what it answers, and what it rejects."""

import base64
import json
import os
import signal
import subprocess
import sys
import urllib.request
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from urllib.error import HTTPError, URLError

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from mlflow.exceptions import MlflowException

from experiments.config.experiment import config_from
from experiments.config.export import ExportConfig
from experiments.config.faces import FacesConfig
from experiments.config.parameters import validated
from experiments.deployment import serve
from experiments.deployment.serve import Served
from experiments.export import export
from experiments.prepare_faces import prepare_photographs
from experiments.rounds.network import data_of, evaluate
from experiments.run import run_experiment
from experiments.tracking.networks import load_network
from tests.conftest import QUICK, TIMEOUT, wait_until, working_in
from tests.portraits import bearded, flower, portrait, scene
from tests.postgres import free_port

PEOPLE = (("ada", bearded), ("grace", portrait))
NEW = ((70, "ada", bearded), (71, "grace", portrait), (72, "ada", bearded), (73, "grace", portrait))
DIGITS = QUICK | {"epochs": 15, "retrain_epochs": 15, "train_limit": 0}


@pytest.fixture(scope="module")
def digits(tmp_path_factory, empty_store):
    """The id of a run on digits, and the folder of its export."""
    with working_in(tmp_path_factory.mktemp("digits"), empty_store):
        run_id = run_experiment(config_from(DIGITS))
        yield run_id, exported(run_id, register_as="digits").resolve()


@pytest.fixture(scope="module")
def faces(digits):
    """The id of a run on faces, of which Ada's have a beard, and the folder of its export."""
    for seed in range(10):
        name, person = PEOPLE[seed % 2]
        path = Path("photographs", name, f"{seed}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        scene(seed, person=person).save(path)
    prepare_photographs(FacesConfig(source="photographs", out="faces", device="cpu"))
    config = {"dataset": "faces", "data_root": "faces", "epochs": 20, "retrain_epochs": 5}
    config |= {"rounds": 1, "device": "cpu", "batch_size": 4, "granularity": "unit"}
    config |= {"reinit": "keep"}
    run_id = run_experiment(config_from(config))
    return run_id, exported(run_id, served="int8").resolve()


def exported(run_id, **parameters):
    asked = {"run": run_id, "round": "last", "formats": "model"} | parameters
    return export(validated(ExportConfig, asked))


def model_of(export_folder):
    """The served model, without a server."""
    served = Served()
    (network,) = (export_folder / "model/artifacts").glob("*.onnx")
    served.open(network, export_folder / "model/artifacts/about.json")
    return served


def in_base64(image, kind="PNG"):
    content = BytesIO()
    image.save(content, kind)
    return base64.b64encode(content.getvalue()).decode()


def test_a_model_of_digits_answers_as_the_network_does(digits):
    run_id, export_folder = digits
    network = load_network(run_id)
    test = data_of(network).test
    pixels = (test.images.float() / test.view.white).numpy()
    answers = model_of(export_folder).predict(None, pixels)
    expected = evaluate(network, test).predicted
    assert [int(answer["name"]) for answer in answers] == expected.tolist()
    with torch.no_grad():
        shares = network.module(torch.from_numpy(pixels[:1])).softmax(1)[0]
    assert answers[0]["probability"] == pytest.approx(float(shares.max()), abs=1e-5)
    assert sum(answers[0]["probabilities"].values()) == pytest.approx(1)
    assert next(iter(answers[0]["probabilities"])) == answers[0]["name"]


def test_the_model_says_what_it_takes_and_what_it_needs(digits, faces):
    models = [mlflow.models.Model.load(folder / "model") for _, folder in (digits, faces)]
    (image,) = models[0].get_input_schema().inputs
    assert (image.shape, str(image.type)) == ((-1, 1, 8, 8), "float32")
    assert models[1].get_input_schema().input_names() == ["photograph"]
    for model, (_, export_folder), package in zip(
        models, (digits, faces), ("onnxruntime", "torch"), strict=True
    ):
        assert model.saved_input_example_info
        needed = (export_folder / "model/requirements.txt").read_text()
        assert f"{package}==" in needed
        assert "==none" not in needed


def test_a_model_of_faces_names_photographs_and_says_where_there_is_none(faces):
    run_id, export_folder = faces
    pictures = [in_base64(scene(seed, person=person), "JPEG") for seed, _, person in NEW]
    pictures += [in_base64(flower()), base64.b64encode(b"no picture").decode(), ""]
    answers = model_of(export_folder).predict(None, pd.DataFrame({"photograph": pictures}))
    assert [answer["photograph"] for answer in answers] == list(range(7))
    outcomes = [answer["outcome"] for answer in answers]
    assert outcomes == ["kept"] * 4 + ["no_face", "unreadable", "unreadable"]
    assert [answer["reason"] for answer in answers[5:]] == [
        "unknown image format",
        "the file is empty",
    ]
    assert [answer["name"] for answer in answers[:4]] == [name for _, name, _ in NEW]
    for answer in answers[:4]:
        assert sum(answer["probabilities"].values()) == pytest.approx(1)
    for answer in answers[4:]:
        assert answer["name"] is None
    json.dumps(answers, allow_nan=False)
    assert load_network(run_id).class_names == ("ada", "grace")


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.zeros((0, 1, 8, 8)), "the request has no images"),
        (np.full((1, 1, 8, 8), np.nan), "pixels must be in [0, 1], got values from nan to nan"),
        (np.full((1, 1, 8, 8), np.inf), "pixels must be in [0, 1], got values from inf to inf"),
        (np.full((1, 1, 8, 8), 16), "pixels must be in [0, 1], got values from 16 to 16"),
        (np.full((1, 1, 8, 8), -0.1), "pixels must be in [0, 1], got values from -0.1 to -0.1"),
        (np.zeros((10_001, 1, 8, 8)), "a request may have 10000 images, got 10001"),
    ],
)
def test_pixels_that_no_image_has_are_rejected(digits, pixels, message):
    with pytest.raises(MlflowException) as error:
        model_of(digits[1]).predict(None, pixels)
    assert error.value.get_http_status_code() == 400
    assert error.value.message == message


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([], "a request must have 1 to 64 photographs, got 0"),
        ([""] * 65, "a request must have 1 to 64 photographs, got 65"),
        (["é"], "photograph 0 is not base64"),
        (["", "a"], "photograph 1 is not base64"),
        (["A" * 400], "photograph 0 has more than 200 bytes"),
    ],
)
def test_photographs_that_cannot_be_decoded_are_rejected(faces, texts, message, monkeypatch):
    monkeypatch.setattr(serve, "MOST_BYTES", 200)
    with pytest.raises(MlflowException) as error:
        model_of(faces[1]).predict(None, pd.DataFrame({"photograph": texts}))
    assert error.value.get_http_status_code() == 400
    assert error.value.message == message


def test_the_champion_moves_to_a_better_network_of_its_size_only(digits, capsys):
    """The first version is that of the fixture, in float32; int8 is smaller, the dense is not."""
    run_id, _ = digits
    client = mlflow.MlflowClient()

    def champion():
        return int(client.get_model_version_by_alias("digits", "champion").version)

    assert champion() == 1
    exported(run_id, register_as="digits", out="again")  # the same: neither better nor smaller
    assert champion() == 1
    assert (
        "registered as version 2 of digits; its champion stays version 1" in capsys.readouterr().out
    )
    small = exported(run_id, register_as="digits", out="int8", served="int8")
    table = pd.read_csv(small / "export.csv", index_col="format")
    version = client.get_model_version("digits", "3")
    assert int(version.tags["network_bytes"]) == table.loc["int8", "bytes"]
    first = client.get_model_version("digits", "1")
    better = float(version.tags["valid_accuracy"]) >= float(first.tags["valid_accuracy"])
    assert champion() == (3 if better else 1)
    model = mlflow.pyfunc.load_model("models:/digits/1")
    assert model.predict(np.zeros((1, 1, 8, 8), np.float32))[0]["name"] in "0123456789"


def test_a_model_can_be_registered_only_for_a_run(digits, tmp_path):
    folder = mlflow.artifacts.download_artifacts(
        run_id=digits[0], artifact_path="checkpoints", dst_path=str(tmp_path)
    )
    with pytest.raises(ValueError, match=r"^register_as needs the id of a run, got run="):
        exported(folder, register_as="digits", out=str(tmp_path / "out"))
    with pytest.raises(ValueError, match=r"^register_as needs model in formats, got onnx"):
        exported(digits[0], register_as="digits", formats="onnx")


@contextmanager
def served_at(model, place):
    """The address of `mlflow models serve` in a process of its own, which has not our path."""
    port = free_port()
    program = Path(sys.executable).with_name("mlflow")
    words = ["models", "serve", "-m", str(model), "--env-manager=local", f"--port={port}"]
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with (place / "log").open("w") as log:
        server = subprocess.Popen(
            [program, *words], cwd=place, env=env, stdout=log, stderr=log, start_new_session=True
        )
    try:
        wait_until(lambda: server.poll() is not None or is_up(f"http://127.0.0.1:{port}/ping"))
        assert server.poll() is None, (place / "log").read_text()
        yield f"http://127.0.0.1:{port}/invocations"
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def is_up(address):
    try:
        with urllib.request.urlopen(address, timeout=5):
            return True
    except (URLError, OSError):
        return False


def post(address, body, kind="application/json"):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(address, content, {"Content-Type": kind})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
            return answer.status, json.load(answer)
    except HTTPError as error:
        with error:
            return error.code, error.read().decode()


@pytest.mark.servers
def test_a_server_of_digits_answers_right_and_rejects_the_rest(digits, tmp_path):
    run_id, export_folder = digits
    network = load_network(run_id)
    test = data_of(network).test
    pixels = (test.images[:20].float() / test.view.white).numpy()
    with served_at(export_folder / "model", tmp_path) as address:
        status, answer = post(address, {"inputs": pixels.tolist()})
        assert status == 200
        names = [int(each["name"]) for each in answer["predictions"]]
        assert names == evaluate(network, test).predicted[:20].tolist()
        assert np.mean(np.array(names) == test.labels[:20].numpy()) > 0.8
        wrong = {
            b"": "valid JSON",
            b"{": "valid JSON",
            b"\xff\xfe": "Invalid input",
            b"[1]": "Received a list",
            b'{"inputs": null}': "Failed to parse input data",
            b'{"inputs": []}': "Failed to enforce schema",
            b'{"inputs": "abc"}': "Failed to convert data",
            b'{"inputs": [[1], [1, 2]]}': "inhomogeneous shape",
            b'{"inputs": ' + b"[" * 500 + b"]" * 500 + b"}": "Ensure that the input",
            b'{"inputs": ' + b"[" * 100_000: "the JSON is nested too deeply",
            json.dumps({"inputs": pixels[:, 0].tolist()}).encode(): "does not match expected shape",
            json.dumps({"inputs": (pixels * np.nan).tolist()}).encode(): "got values from nan",
            json.dumps({"inputs": (pixels * 255).tolist()}).encode(): "pixels must be in [0, 1]",
            json.dumps({"inputs": [[[[0] * 8] * 8]] * 10_001}).encode(): "may have 10000 images",
        }
        for body, message in wrong.items():
            status, answer = post(address, body)
            assert (status, message in answer) == (400, True), (body[:80], answer)
        assert post(address, b"x", "text/plain")[0] == 415
        assert post(address, {"inputs": pixels.tolist()})[0] == 200  # it is still there


@pytest.mark.servers
def test_a_server_of_faces_names_photographs_right(faces, tmp_path):
    _, export_folder = faces
    texts = [in_base64(scene(seed, person=person)) for seed, _, person in NEW]
    texts.append(in_base64(flower()))
    with served_at(export_folder / "model", tmp_path) as address:
        for body in (
            {"dataframe_split": {"columns": ["photograph"], "data": [[text] for text in texts]}},
            {"dataframe_records": [{"photograph": text} for text in texts]},
            {"inputs": {"photograph": texts}},
        ):
            status, answer = post(address, body)
            assert status == 200, answer
            *found, last = answer["predictions"]
            assert [each["name"] for each in found] == [name for _, name, _ in NEW]
            assert [each["photograph"] for each in found] == [0, 1, 2, 3]
            assert (last["outcome"], last["name"], last["photograph"]) == ("no_face", None, 4)
        for data, message in {
            (): "must have 1 to 64 photographs, got 0",
            ("*",): "photograph 0 is not base64",
            (5,): "photograph 0 is not text",
            (None,): "photograph",
            ("A" * 27_000_000,): "has more than 20000000 bytes",
        }.items():
            rows = [[each] for each in data]
            body = {"dataframe_split": {"columns": ["photograph"], "data": rows}}
            status, answer = post(address, body)
            assert (status, message in answer) == (400, True), (data, answer[:300])
        status, answer = post(address, {"dataframe_split": {"columns": ["photo"], "data": [["a"]]}})
        assert status == 400
        assert "photograph" in answer
