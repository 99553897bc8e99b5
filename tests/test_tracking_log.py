import threading
from concurrent.futures import ThreadPoolExecutor
from io import StringIO
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from mlflow.data.numpy_dataset import from_numpy

from datasets import load_splits
from experiments.config.experiment import Config, config_from
from experiments.rounds.data import load_data
from experiments.rounds.metrics import METRICS, Metric
from experiments.rounds.network import evaluate
from experiments.run import run_experiment
from experiments.tracking import log, server, summary
from experiments.tracking.networks import load_network
from experiments.training.engine import ENGINES
from experiments.training.loop import derive_seed
from pruning.checkpoint import load_checkpoint
from tests.conftest import QUICK, working_in

ROUND_METRICS = {
    "train_loss",
    "valid_loss",
    "valid_accuracy",
    "test_loss",
    "test_accuracy",
    "test_error",
    "sparsity",
    "remaining_weights",
    "compression_ratio",
    "theoretical_speedup",
    "early_stop_iteration",
    "early_stop_valid_loss",
    "early_stop_valid_accuracy",
    "early_stop_test_accuracy",
    "catch_up_iteration",
    "sparse_engine",
    "checkpoint_bytes",
    "round_seconds",
    "train_seconds",
    "layer_sparsity/fc1",
    "layer_sparsity/fc2",
    "layer_sparsity/fc3",
}


NAME = (
    "lottery digits lenet_30_20 2 rounds epochs=2 retrain_epochs=2 lr=0.01 train_limit=300 seed 0"
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, empty_store):
    """A finished run."""
    with working_in(tmp_path_factory.mktemp("finished"), empty_store):
        yield mlflow.get_run(run_experiment(config_from(QUICK | {"dataset": "auto"})))


def artifact(run, path):
    return mlflow.artifacts.download_artifacts(run_id=run.info.run_id, artifact_path=path)


def test_a_run_has_params_tags_a_note_and_its_data(finished):
    assert finished.info.status == "FINISHED"
    assert finished.info.run_name == NAME
    params, tags = finished.data.params, finished.data.tags
    assert set(Config.model_fields) - {"branch_of"} <= set(params)
    assert (params["dataset"], params["resolved_dataset"]) == ("auto", "digits")
    assert (params["prune_rate"], params["resolved_output_prune_rate"]) == ("0.2", "0.2")
    assert tags["dataset_why"].startswith("auto: MNIST is not in")
    assert tags["weight_loss.version.torch"] == torch.__version__.partition("+")[0]
    internal = {f"weight_loss.{name}" for name in ("git_commit", "git_dirty", "threads", "lock")}
    assert {"reinit", "model"} | internal <= set(tags)
    shown = [name for name in tags if not name.startswith("mlflow.")]
    assert set(shown[:12]).isdisjoint(name for name in shown if name.startswith("weight_loss."))
    note = tags["mlflow.note.content"]
    assert "**35.99% pruned**" in note
    assert "MNIST is not in" in note
    assert f"{finished.data.metrics['test_accuracy']:.4f}" in note
    inputs = {entry.tags[0].value: entry.dataset for entry in finished.inputs.dataset_inputs}
    assert set(inputs) == {"train", "valid", "test"}
    assert inputs["test"].name == "digits-test"


def test_a_run_is_named_after_the_seeds_that_are_not_the_seed():
    config = config_from(QUICK | {"seed": 3, "draw_seed": 4, "init_seed": 3}).resolved("digits")
    assert summary.run_name(config) == NAME.replace("seed 0", "draw_seed=4 seed 3")
    published = config_from(QUICK | {"pretrained": "x"}).resolved("digits")
    assert "pixels" not in summary.run_name(published)


def test_every_round_and_epoch_is_logged_once(finished):
    client = mlflow.MlflowClient()
    for name in ROUND_METRICS:
        history = client.get_metric_history(finished.info.run_id, name)
        assert [point.step for point in history] == [0, 1, 2], name
    for name in ("train_loss", "valid_loss", "valid_accuracy"):
        history = client.get_metric_history(finished.info.run_id, f"epoch/{name}")
        assert [point.step for point in history] == [1, 2, 3, 4, 5, 6], name
    metrics = finished.data.metrics
    assert metrics["sparsity"] == pytest.approx(0.36, abs=1e-3)
    assert metrics["final/test_accuracy"] == metrics["test_accuracy"]
    assert metrics["sparse_engine"] == 1  # the network is small


def test_tables_hold_the_metrics(finished):
    rounds = pd.read_csv(artifact(finished, "rounds.csv"))
    epochs = pd.read_csv(artifact(finished, "epochs.csv"))
    assert rounds["round"].tolist() == [0, 1, 2]
    assert set(rounds) == ROUND_METRICS | {"round"}
    for name in ROUND_METRICS:
        assert rounds[name].iloc[-1] == finished.data.metrics[name]
    assert epochs["step"].tolist() == [1, 2, 3, 4, 5, 6]
    assert epochs["round"].tolist() == [0, 0, 1, 1, 2, 2]
    assert epochs["valid_loss"].iloc[-1] == finished.data.metrics["epoch/valid_loss"]


def test_checkpoints_hold_masked_networks(finished):
    folder = artifact(finished, "checkpoints")
    rounds = pd.read_csv(artifact(finished, "rounds.csv"))
    initial = load_checkpoint(f"{folder}/initial.safetensors")
    assert initial.metadata["what"] == "initial"
    for number in range(3):
        back = load_checkpoint(f"{folder}/round_{number:02d}.safetensors")
        survivors = sum(int(mask.sum()) for mask in back.masks.values())
        assert survivors == rounds["remaining_weights"][number]
        assert back.metadata["round"] == number
        assert back.metadata["config"]["reinit"] == "lottery"
        assert back.metadata["metrics"]["test_accuracy"] == rounds["test_accuracy"][number]
        for name, mask in back.masks.items():
            assert not back.state[name][~mask].any()


def test_files_hold_which_test_images_each_network_classifies_correctly(finished):
    rounds = pd.read_csv(artifact(finished, "rounds.csv"))
    data, _ = load_splits("digits", "", derive_seed(0, "split"), QUICK["train_limit"])
    for number in range(3):
        content = Path(artifact(finished, f"correct/round_{number:02d}.bits")).read_bytes()
        correct = np.unpackbits(np.frombuffer(content, np.uint8))[: len(data.test)]
        assert len(content) == 33
        assert correct.sum() / 257 == rounds["test_accuracy"][number]
    network = load_network(finished.info.run_id)
    assert np.array_equal(evaluate(network, data.test).correct.numpy(), correct)


def test_plots_are_pictures(finished):
    names = {"accuracy_vs_sparsity", "accuracy_per_epoch", "layer_sparsity", "first_layer_pixels"}
    client = mlflow.MlflowClient()
    plots = client.list_artifacts(finished.info.run_id, "plots")
    assert {plot.path for plot in plots} == {f"plots/{name}.png" for name in names}
    for plot in plots:
        content = Path(artifact(finished, plot.path)).read_bytes()
        assert content.startswith(b"\x89PNG\r\n\x1a\n")


def test_the_logged_model_is_the_last_network(finished):
    (logged,) = mlflow.search_logged_models(
        experiment_ids=[finished.info.experiment_id], output_format="list"
    )
    assert logged.source_run_id == finished.info.run_id
    assert {metric.key: metric.value for metric in logged.metrics} == {
        name: finished.data.metrics[name] for name in ROUND_METRICS
    }
    assert {metric.step for metric in logged.metrics} == {2}
    images = {metric.key: metric.dataset_name for metric in logged.metrics if metric.dataset_name}
    assert images == {
        "train_loss": "digits-train",
        "valid_loss": "digits-valid",
        "valid_accuracy": "digits-valid",
        "early_stop_valid_loss": "digits-valid",
        "early_stop_valid_accuracy": "digits-valid",
        "test_loss": "digits-test",
        "test_accuracy": "digits-test",
        "test_error": "digits-test",
        "early_stop_test_accuracy": "digits-test",
    }
    assert (logged.params["reinit"], logged.params["dataset"]) == ("lottery", "digits")
    assert (logged.params["round"], logged.params["lr"]) == ("2", "0.01")
    (output,) = finished.outputs.model_outputs
    assert (output.model_id, output.step) == (logged.model_id, 2)
    model = mlflow.pyfunc.load_model(logged.model_uri)
    pixels = model.input_example
    assert pixels.shape == (2, 1, 8, 8)
    assert (pixels.min(), pixels.max()) == (0.0, 1.0)
    last = load_checkpoint(f"{artifact(finished, 'checkpoints')}/round_02.safetensors").state
    data, _ = load_splits("digits", "", derive_seed(0, "split"), QUICK["train_limit"])
    values = (torch.from_numpy(pixels).flatten(1) - data.test.view.mean) / data.test.view.std
    for layer in ("fc1", "fc2"):
        values = (values @ last[f"{layer}.weight"].T + last[f"{layer}.bias"]).relu()
    logits = values @ last["fc3.weight"].T + last["fc3.bias"]
    assert np.allclose(model.predict(pixels), logits.numpy(), atol=1e-4)
    for value in (np.nan, np.inf):  # a server would answer NaN, which is not JSON
        pixels[1, 0, 3, 3] = value
        with pytest.raises(RuntimeError, match="pixels must be finite"):
            model.predict(pixels)


@pytest.mark.parametrize("engine", ENGINES)
def test_the_logged_model_divides_by_the_norm_as_the_engine_does(store, engine):
    """`test_loss` is what the engine measured; the model gets pixels in [0, 1]."""
    run = mlflow.get_run(run_experiment(config_from(QUICK | {"pixels": "l2", "engine": engine})))
    (logged,) = mlflow.search_logged_models(output_format="list")
    test = load_data(config_from(QUICK))[0].test
    logits = torch.from_numpy(
        mlflow.pyfunc.load_model(logged.model_uri).predict((test.images / 16).numpy())
    )
    loss = float(torch.nn.functional.cross_entropy(logits, test.labels))
    assert run.data.metrics["test_loss"] == pytest.approx(loss, rel=1e-5)
    assert "pixels=l2" in run.info.run_name


@pytest.mark.parametrize("engine", ENGINES)
def test_two_runs_of_one_seed_leave_the_same_bytes(store, engine):
    config = config_from(QUICK | {"engine": engine})
    runs = [mlflow.get_run(run_experiment(config)) for _ in range(2)]
    one, two = ({p.name: p.read_bytes() for p in files(run)} for run in runs)
    assert one == two
    assert len(one) == 5  # three rounds, initial, rewound
    timing = {"round_seconds", "train_seconds"}
    assert {k: v for k, v in runs[0].data.metrics.items() if k not in timing} == {
        k: v for k, v in runs[1].data.metrics.items() if k not in timing
    }


def files(run):
    return sorted(Path(artifact(run, "checkpoints")).iterdir())


def test_a_new_metric_of_images_may_have_any_label(store, monkeypatch):
    balanced = Metric("balanced accuracy", "accuracy", lambda m: 0.5, split="valid")
    monkeypatch.setitem(METRICS, "balanced_accuracy", balanced)
    run_experiment(config_from(QUICK | {"rounds": 1}))
    (logged,) = mlflow.search_logged_models(output_format="list")
    (found,) = (metric for metric in logged.metrics if metric.key == "balanced_accuracy")
    assert (found.value, found.dataset_name) == (0.5, "digits-valid")


def test_a_metric_of_what_did_not_happen_is_nan_in_mlflow_and_an_empty_cell(store):
    """The model lacks it: MLflow would store 0."""
    slow = {"reinit": "random", "retrain_lr": 1e-9, "rounds": 1}
    run = mlflow.get_run(run_experiment(config_from(QUICK | slow)))
    client, name = mlflow.MlflowClient(), "catch_up_iteration"
    dense, after = (point.value for point in client.get_metric_history(run.info.run_id, name))
    assert dense == 10
    assert np.isnan(after)
    (logged,) = mlflow.search_logged_models(output_format="list")
    assert name not in {metric.key for metric in logged.metrics}
    assert name not in load_network(run.info.run_id).metrics
    text = Path(artifact(run, "rounds.csv")).read_text()
    assert pd.read_csv(StringIO(text))[name].isna().tolist() == [False, True]
    client.set_terminated(run.info.run_id, "FAILED")
    run_experiment(config_from({"resume": run.info.run_id}))
    assert Path(artifact(run, "rounds.csv")).read_text() == text


def test_mlflow_logs_system_metrics_if_asked(store, monkeypatch):
    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "true")
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.1")
    metrics = mlflow.get_run(run_experiment(config_from(QUICK))).data.metrics
    assert 0 < metrics["system/system_memory_usage_percentage"] <= 100
    assert 0 <= metrics["system/cpu_utilization_percentage"] <= 100
    assert metrics["sparsity"] == pytest.approx(0.36, abs=1e-3)


def test_runs_that_begin_together_may_log_the_same_data(store):
    """MLflow looks for a data set and then inserts it: of two at the same time, one fails."""
    mlflow.set_experiment("weight-loss")
    dataset = from_numpy(np.zeros((2, 2)), name="digits-train", digest="1")
    together = threading.Barrier(4)

    def log_data(_):
        with mlflow.start_run() as run:
            together.wait()
            log._log_input(dataset, "train")
        return run.info.run_id

    with ThreadPoolExecutor(4) as pool:
        run_ids = list(pool.map(log_data, range(4)))
    for run_id in run_ids:
        (logged,) = mlflow.get_run(run_id).inputs.dataset_inputs
        assert logged.dataset.name == "digits-train"


def test_the_default_store_works_in_any_folder(tmp_path, monkeypatch):
    """MLflow's address of it is percent-encoded."""
    folder = tmp_path / "für 50% off"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    server.check_tracking()
    assert (folder / "mlflow.db").exists()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///below/it/mlflow.db")  # made by MLflow
    server.check_tracking()
    assert (folder / "below/it/mlflow.db").exists()
