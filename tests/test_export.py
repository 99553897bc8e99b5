"""The command export: every file is checked to be the network that it says it is."""

import os
from dataclasses import replace
from pathlib import Path

import mlflow
import onnx
import pandas as pd
import pytest
import torch

import weight_loss
from experiments.__main__ import run_command
from experiments.config.experiment import config_from
from experiments.config.export import ExportConfig
from experiments.config.parameters import validated
from experiments.deployment.clusters import train_shared
from experiments.deployment.formats import FORMATS, Request, write_format
from experiments.deployment.forms import write_sparse
from experiments.deployment.model import put_whole
from experiments.deployment.onnx_files import OnnxModel
from experiments.export import export
from experiments.rounds.network import data_of, evaluate, logits_of
from experiments.run import run_experiment
from experiments.tracking.networks import best_round, load_network
from models import WIDTHS
from models.compact import remove_dead
from pruning.masks import apply_masks
from pruning.packed import load_packed
from tests.conftest import QUICK, wait_until, working_in
from tests.test_project import path, run_project, runs

assert path  # a fixture
FILES = "compact,packed,onnx,int8"


@pytest.fixture(scope="module")
def digits_run(tmp_path_factory, empty_store):
    """The id of a run on digits, whose last network is sparse; and its test images."""
    with working_in(tmp_path_factory.mktemp("digits"), empty_store):
        config = QUICK | {"epochs": 15, "retrain_epochs": 15, "prune_rate": 0.8, "train_limit": 0}
        run_id = run_experiment(config_from(config))
        yield run_id, data_of(load_network(run_id))


def asked(run, **parameters):
    return validated(ExportConfig, {"run": run, "formats": FILES} | parameters)


def test_every_format_has_the_outputs_of_the_network(digits_run, tmp_path, capsys):
    run_id, data = digits_run
    folder = export(asked(run_id, round="last", out=str(tmp_path / "out")))
    table = pd.read_csv(folder / "export.csv", index_col="format")
    assert list(table.index) == ["checkpoint", "compact", "packed", "onnx", "int8"]
    network = load_network(run_id)
    score = evaluate(network, data.test)
    for name, row in table.iterrows():
        assert row["bytes"] == (folder / row["file"]).stat().st_size
        if name != "int8":
            assert row["test_accuracy"] == score.accuracy
            assert row["valid_accuracy"] == pytest.approx(network.metrics["valid_accuracy"])
            assert row["changed"] == 0
            assert row["largest_difference"] < 1e-4
    assert abs(table.loc["int8", "test_accuracy"] - score.accuracy) < 0.02
    assert table.loc["int8", "largest_difference"] > 1e-3  # it is another network
    assert table.loc["packed", "bytes"] < table.loc["checkpoint", "bytes"]
    dense = load_network(run_id, 0).save(tmp_path / "dense.safetensors")
    assert table.loc["packed", "bytes"] < table.loc["compact", "bytes"] < dense
    for name in ("checkpoint.safetensors", "compact.safetensors", "packed.wlp"):
        again = load_network(folder / name)
        assert torch.allclose(
            logits_of(again.module, data.test), logits_of(network.module, data.test), atol=1e-4
        )
        assert again.round == network.round
    onnx.checker.check_model(folder / "model.onnx", full_check=True)
    int8 = onnx.load(folder / "model.int8.onnx")
    kinds = {tensor.data_type for tensor in int8.graph.initializer}
    assert onnx.TensorProto.INT8 in kinds
    one = OnnxModel(folder / "model.onnx", threads=1)
    assert one(torch.rand(1, 1, 8, 8)).shape == (1, 10)  # any number of images
    output = capsys.readouterr().out
    assert "last round: 2, 95.99% pruned" in output
    assert f"Files and table: {folder}" in output


def test_every_form_divides_pixels_by_the_norm_of_the_whole_image(tmp_path):
    """Also those that read some of the pixels only; a test image is black."""
    data = weight_loss.load_data(dataset="digits", pixels="l2")
    data.test.images[5] = 0
    parameters = QUICK | {"pixels": "l2", "epochs": 15, "retrain_epochs": 15, "train_limit": 0}
    *_, network = weight_loss.prune_rounds(**parameters | {"rounds": 1})
    assert network.spec.l2
    assert evaluate(network, data.valid).accuracy == network.metrics["valid_accuracy"] > 0.8
    masks = network.masks | {"fc1.weight": network.masks["fc1.weight"] & (torch.arange(64) % 2 > 0)}
    state = apply_masks(network.module.network.state_dict(), masks)
    network = replace(network, module=network.spec.build(state), masks=masks)
    norms = data.test.images.float().flatten(1).norm(dim=1).clamp(min=1).view(-1, 1, 1, 1)
    with torch.no_grad():
        expected = network.module.network(data.test.images / norms)
    request = Request(asked("0" * 32), network, data)
    for name in FORMATS:
        written = write_format(name, request, tmp_path, expected)
        if name == "int8":
            score = evaluate(network, data.test).accuracy
            assert abs(written.test_accuracy - score) < 0.02
        else:
            assert (written.changed, written.largest_difference < 1e-4) == (0, True)
    small = load_network(tmp_path / "compact.safetensors")
    assert small.spec.inputs == tuple(range(1, 64, 2))
    assert small.spec.l2
    found = logits_of(write_sparse(request, tmp_path / "x.safetensors"), data.test)
    assert torch.allclose(found, expected, atol=1e-4)
    found = logits_of(load_network(tmp_path / "x.safetensors").module, data.test)
    assert torch.allclose(found, expected, atol=1e-4)


def test_files_are_logged_to_the_run(digits_run):
    run_id, _ = digits_run
    folder = export(asked(run_id, round="1", formats="compact"))
    assert folder == Path("exports", f"{run_id}-round_01")
    logged = mlflow.MlflowClient().list_artifacts(run_id, "exports/round_01")
    names = {Path(file.path).name for file in logged}
    assert names == {path.name for path in folder.iterdir()}
    assert names == {"checkpoint.safetensors", "compact.safetensors", "export.csv"}


def test_the_compact_file_is_read_by_any_program_for_safetensors(digits_run, tmp_path):
    from safetensors.torch import load_file

    run_id, _ = digits_run
    folder = export(asked(run_id, round="last", out=str(tmp_path), formats="compact"))
    tensors = load_file(folder / "compact.safetensors")
    network = load_network(folder / "compact.safetensors")
    assert {name: value.shape for name, value in tensors.items()} == {
        name: value.shape for name, value in network.module.network.state_dict().items()
    }
    assert network.spec.compact
    assert all(network.masks[name].equal(tensors[name] != 0) for name in network.masks)


@pytest.mark.parametrize("count", [2, 4])
def test_shared_values_are_few_and_improve_with_training(digits_run, tmp_path, count):
    run_id, data = digits_run
    folders = [
        export(
            asked(
                run_id,
                round="last",
                out=str(tmp_path / str(epochs)),
                formats="packed",
                values="shared",
                shared_values=count,
                shared_epochs=epochs,
            )
        )
        for epochs in (0, 10)
    ]
    network = load_network(run_id)
    losses = []
    for folder in folders:
        read = load_packed(folder / "packed.wlp")
        for name, value in read.state.items():
            survivors = value[read.masks[name]] if name in read.masks else value
            assert len(survivors.unique()) <= count + 1  # biases may also be zero
        assert all(not (mask & ~network.masks[name]).any() for name, mask in read.masks.items())
        losses.append(evaluate(load_network(folder / "packed.wlp"), data.train).loss)
    assert losses[1] < losses[0]
    tables = [pd.read_csv(folder / "export.csv", index_col="format") for folder in folders]
    accuracies = [table.loc["packed", "valid_accuracy"] for table in tables]
    assert accuracies[1] >= accuracies[0]  # the best on validation images is kept


def test_training_shared_values_looks_at_no_test_image(digits_run):
    run_id, data = digits_run
    network = load_network(run_id)
    state, masks = remove_dead(
        network.spec.architecture, network.module.network.state_dict(), network.masks
    )
    without = train_shared(network.spec, state, masks, data.without_test(), 4, 1)
    with_test = train_shared(network.spec, state, masks, data, 4, 1)
    assert all(value.equal(with_test[name]) for name, value in without.items())


@pytest.mark.parametrize("change", [0.01, float("nan")])
def test_a_file_whose_outputs_differ_is_an_error(digits_run, tmp_path, change):
    run_id, data = digits_run
    request = Request(asked(run_id), load_network(run_id), data)
    logits = logits_of(request.network.module, data.test)
    assert write_format("packed", request, tmp_path, logits).changed == 0
    with pytest.raises(RuntimeError, match=rf"differs from the network by {change}"):
        write_format("packed", request, tmp_path, logits + change)


def test_a_network_without_finite_answers_is_one_line(digits_run, tmp_path, capsys):
    run_id, _ = digits_run
    network = load_network(run_id)
    with torch.no_grad():
        network.module.network.get_parameter("fc1.bias").fill_(torch.nan)
    network.save(tmp_path / "x.safetensors")
    words = [f"--run={tmp_path / 'x.safetensors'}", "--round=2", f"--out={tmp_path / 'out'}"]
    with pytest.raises(SystemExit) as stop:
        run_command("export", words)
    assert stop.value.code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error == "error: run: the answers of its network are not finite numbers"


def test_the_best_round_is_chosen_by_validation_accuracy(digits_run):
    run_id, _ = digits_run
    rows = {n: load_network(run_id, n).metrics for n in range(3)}
    by_accuracy = sorted(rows, key=lambda n: (rows[n]["valid_accuracy"], rows[n]["sparsity"]))
    assert best_round(run_id, 0.0) == by_accuracy[-1]
    sparse = [n for n in by_accuracy if n > 0]
    assert best_round(run_id, 0.8) == sparse[-1]
    assert best_round(run_id, 0.96) == 2
    folder = mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path="checkpoints")
    assert best_round(folder, 0.8) == best_round(run_id, 0.8)
    assert best_round(f"{folder}/round_01.safetensors", 0.0) == 1
    with pytest.raises(ValueError, match=r"^sparsity must be at most 0\.9599, that of the spar"):
        best_round(run_id, 0.97)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"run": "0" * 32}, "has no run 0"),
        ({"run": "nowhere"}, "run must be the id of a run, a checkpoint or a folder"),
        ({"run": "."}, ". has no complete rounds; run must be one experiment"),
        ({"round": "9"}, "round must be last or one of 0 to 2, got 9"),
        ({"round": "first"}, "round must be best, last or the number of a round, got first"),
        ({"formats": "compct"}, "(did you mean compact?)"),
        ({"formats": "onnx,onnx"}, "formats must not contain a name twice"),
        ({"values": "float8"}, "values must be one of float32, float16, shared, got float8"),
        ({"shared_values": "0"}, "shared_values must be greater than or equal to 1, got 0"),
        ({"sparsity": "0.99"}, "sparsity must be at most 0.9599"),
        ({"data_root": "/nowhere", "round": "1"}, ""),
    ],
)
def test_errors_are_one_line(digits_run, tmp_path, capsys, changes, message):
    words = {"run": digits_run[0], "out": str(tmp_path / "x"), "formats": "compact"} | changes
    argv = [word for name, value in words.items() for word in (f"--{name}", value)]
    if not message:  # digits are installed, not read from a folder
        run_command("export", argv)
        return
    with pytest.raises(SystemExit) as stop:
        run_command("export", argv)
    assert stop.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert message in lines[0]
    assert not (tmp_path / "x").exists()


def test_an_exported_network_is_not_exported_again(digits_run, tmp_path):
    folder = export(asked(digits_run[0], round="2", out=str(tmp_path), formats="compact,packed"))
    for name in ("compact.safetensors", "packed.wlp"):
        for number in ("last", "best"):
            with pytest.raises(ValueError, match=r"is an exported network: name its run or its"):
                export(asked(str(folder / name), round=number))


def test_only_what_an_export_made_is_replaced_or_logged(digits_run, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model/thesis.txt").write_text("")
    with pytest.raises(ValueError, match="model exists and is not a model: use another out"):
        export(asked(digits_run[0], round="0", out=str(tmp_path), formats="model"))
    assert (tmp_path / "model/thesis.txt").exists()
    export(asked(digits_run[0], round="0", out=str(tmp_path), formats="packed"))
    logged = mlflow.MlflowClient().list_artifacts(digits_run[0], "exports/round_00")
    assert sorted(Path(file.path).name for file in logged) == [
        *("checkpoint.safetensors", "export.csv", "packed.wlp")
    ]


@pytest.mark.parametrize("name", ["compact", "packed", "onnx", "int8"])
def test_a_full_disk_is_named_and_leaves_no_part_of_a_file(digits_run, tmp_path, capsys, name):
    file = tmp_path / FORMATS[name].file
    file.with_name(f".{file.name}.{os.getpid()}").symlink_to("/dev/full")
    words = [f"--run={digits_run[0]}", f"--formats={name}", f"--out={tmp_path}"]
    with pytest.raises(SystemExit) as stop:
        run_command("export", words)
    assert stop.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"error: the disk is full, nothing can be written to {file}: "
        "free some space, then try again"
    )
    assert [each.name for each in tmp_path.iterdir()] == ["checkpoint.safetensors"]


def test_a_model_that_cannot_be_copied_replaces_none(tmp_path):
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "MLmodel").write_text(name)
    (tmp_path / "new/network").symlink_to(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError) as failed:
        put_whole(tmp_path / "new", tmp_path / "old")
    assert failed.value.filename == str(tmp_path / "old")  # not the hidden folder beside it
    assert (tmp_path / "old/MLmodel").read_text() == "old"
    assert sorted(each.name for each in tmp_path.iterdir()) == ["new", "old"]
    (tmp_path / "new/network").unlink()
    left = tmp_path / f".old.{os.getpid()}"  # by a killed process that had the same number
    left.mkdir()
    (left / "half").touch()
    put_whole(tmp_path / "new", tmp_path / "old")
    assert [each.name for each in (tmp_path / "old").iterdir()] == ["MLmodel"]
    assert (tmp_path / "old/MLmodel").read_text() == "new"
    assert sorted(each.name for each in tmp_path.iterdir()) == ["new", "old"]


def test_a_model_that_does_not_state_its_units_is_exported_as_it_is(
    digits_run, tmp_path, monkeypatch
):
    monkeypatch.delitem(WIDTHS, "lenet")
    run_id, _ = digits_run
    folder = export(asked(run_id, round="2", out=str(tmp_path / "x"), formats="packed,onnx"))
    table = pd.read_csv(folder / "export.csv", index_col="format")
    assert (table["changed"] == 0).all()
    assert (
        load_packed(folder / "packed.wlp")
        .masks["fc1.weight"]
        .equal(load_network(run_id, 2).masks["fc1.weight"])
    )
    with pytest.raises(ValueError, match="lenet_30_20 does not state its units: it has no compact"):
        export(asked(run_id, round="2", out=str(tmp_path / "y"), formats="compact"))


def test_mlflow_run_exports_and_leaves_no_run_of_its_own(digits_run, path):
    run_id, _ = digits_run
    before = {run.info.run_id for run in runs()}
    run_project(
        entry_point="export", run=run_id, out=str(Path("by_mlflow").resolve()), formats="compact"
    )
    assert Path("by_mlflow/compact.safetensors").is_file()
    wait_until(lambda: {run.info.run_id for run in runs()} == before)
