"""The command prepare_faces: photographs in, outcomes in MLflow, and a network trained on them."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest
import torch

from datasets.photographs.manifest import read_manifest
from experiments.__main__ import run_command
from experiments.prepare_faces import metric_name
from tests.conftest import ROOT, TIMEOUT, sent_when, wait_until
from tests.portraits import flower, folder
from tests.test_project import path, run_project, runs
from tests.test_tracking_resume import anywhere

assert anywhere  # fixtures
assert path

TINY = {"epochs": 1, "retrain_epochs": 1, "rounds": 1, "device": "cpu"}


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Two people and a picture without a face."""
    root = folder(tmp_path_factory.mktemp("source") / "Ada's photographs", ada=5, grace=5)
    flower().save(root / "ada" / "flower.png")
    return root


def flags(**settings):
    return [f"--{name}={value}" for name, value in settings.items()]


def test_a_project_prepares_photographs_and_logs_the_outcomes(anywhere, photographs, path, capfd):
    out = anywhere / "my faces"
    run_project("prepare_faces", source=photographs, out=out)
    (run,) = runs()
    assert run.info.status == "FINISHED"
    assert run.data.params["which_face"] == "largest"
    assert run.data.metrics == {
        "outcome/kept": 10,
        "outcome/no_face": 1,
        "class/ada/kept": 5,
        "class/ada/no_face": 1,
        "class/grace/kept": 5,
        "class/grace/no_face": 0,
    }
    logged = Path(mlflow.artifacts.download_artifacts(run_id=run.info.run_id, artifact_path=""))
    assert {str(path.relative_to(logged)) for path in logged.rglob("*.*")} == {
        "manifest.csv",
        "counts.csv",
        "contact_sheets/ada.1.jpg",
        "contact_sheets/grace.1.jpg",
    }
    output = capfd.readouterr().out
    assert (
        "               no\nclass  kept  face\nada       5     1\ngrace     5     0\n\n" in output
    )
    assert "11 photographs of 2 classes: 10 kept, 1 no_face" in output
    assert "WARNING: 2 test images: each is 50 percentage points of test accuracy" in output
    assert (
        f"-m experiments run --dataset=faces '--data_root={out}'\n" in output.partition("Next: ")[2]
    )


def test_an_interrupted_command_continues(anywhere, photographs, capsys):
    argv = flags(source=photographs, out=anywhere / "faces")
    with (
        pytest.raises(SystemExit) as stop,
        sent_when(signal.SIGTERM, (anywhere / "faces/options.json").exists),
    ):
        run_command("prepare_faces", argv)
    assert stop.value.code == 128 + signal.SIGTERM
    error = capsys.readouterr().err.splitlines()[-1]
    assert error == "stopped; the same command continues from here"
    (run,) = runs()
    assert run.info.status == "KILLED"
    run_command("prepare_faces", argv)
    assert set(read_manifest(anywhere / "faces/manifest.csv")["outcome"]) == {"kept", "no_face"}


def test_a_killed_command_leaves_no_run_running(anywhere, photographs):
    argv = flags(source=photographs, out=anywhere / "faces")
    process = subprocess.Popen(
        [sys.executable, "-m", "experiments", "prepare_faces", *argv],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    wait_until((anywhere / "faces/options.json").exists)
    process.kill()
    process.wait(timeout=TIMEOUT)
    (killed,) = runs()
    assert killed.info.status == "RUNNING"
    run_command("prepare_faces", argv)
    assert sorted(run.info.status for run in runs()) == ["FINISHED", "KILLED"]
    assert mlflow.get_run(killed.info.run_id).data.tags["error"] == "its process died"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": "nowhere"}, "nowhere is not a folder of class folders of photographs"),
        (
            {"which_face": "best"},
            "which_face must be 'largest', 'most_confident' or 'all', got best",
        ),
        ({"margin": 0.1}, "margin requires align=false, got 0.1 with align=true"),
        ({"valid_share": 0.6, "test_share": 0.4}, "must sum to less than 1"),
        ({"min_confidence": "nan"}, "min_confidence must be a finite number, got nan"),
    ],
)
def test_invalid_parameters_are_one_line(store, photographs, capsys, changes, message):
    with pytest.raises(SystemExit) as stop:
        run_command(
            "prepare_faces", flags(**{"source": photographs, "out": store / "faces"} | changes)
        )
    assert stop.value.code == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: ")
    assert message in line


def test_a_class_that_looks_like_a_formula_is_text_in_the_counts(anywhere, photographs):
    source = anywhere / "source"
    shutil.copytree(photographs, source)
    (source / "ada").rename(source / "=1+1")
    run_command("prepare_faces", flags(source=source, out=anywhere / "faces"))
    (run,) = runs()
    text = mlflow.artifacts.load_text(f"{run.info.artifact_uri}/counts.csv")
    assert [line.partition(",")[0] for line in text.splitlines()[1:]] == ["'=1+1", "grace"]


def test_class_names_become_valid_metric_names():
    assert metric_name("Grace Hopper") == "Grace Hopper"
    names = {metric_name(name) for name in ("a/b", "a:b", "..", "日本", "", "x" * 300, "x" * 301)}
    assert len(names) == 7
    for name in names:
        mlflow.utils.validation._validate_metric_name(f"class/{name}/kept")


def test_a_lightcnn_trains_on_a_raw_folder(anywhere, photographs, monkeypatch, capsys):
    """The photographs are prepared into a cache; everything else is as for any network."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(anywhere / "cache"))
    settings = TINY | {"dataset": "faces", "data_root": photographs, "batch_size": 4}
    run_command("run", flags(**settings))
    (run,) = runs()
    assert run.info.status == "FINISHED"
    assert run.data.params["resolved_model"] == "lightcnn_9"
    assert run.data.metrics["final/sparsity"] == pytest.approx(0.2, abs=1e-6)
    output = capsys.readouterr()
    assert "preparing the photographs in" in output.err
    assert output.out.count("WARNING: 2 test images: each is 50 percentage points") == 1
    network = mlflow.pytorch.load_model(
        mlflow.search_logged_models(output_format="list")[0].model_uri
    )
    assert network(torch.rand(2, 1, 144, 144)).shape == (2, 2)
