"""The command measure: sizes, memory and times of a network in several forms."""

from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest

from experiments.__main__ import run_command
from experiments.config.experiment import config_from
from experiments.config.export import MeasureConfig
from experiments.config.parameters import validated
from experiments.deployment.costs import cells_of, draw_costs, metrics_of, no_gain
from experiments.deployment.formats import ALIGNED, smallest
from experiments.deployment.forms import FORMS
from experiments.deployment.timing import Probe, Source, Times, take_times
from experiments.measure import measure
from experiments.rounds.network import data_of, evaluate
from experiments.run import run_experiment
from experiments.tracking.networks import load_network
from models import Architecture
from tests.conftest import QUICK, working_in
from tests.portraits import folder as photographs

MEGABYTE = 1e6


@pytest.fixture(scope="module")
def measured(tmp_path_factory, empty_store):
    """The id of a run on digits, and the folder and table of its measurement."""
    with working_in(tmp_path_factory.mktemp("digits"), empty_store) as _:
        config = QUICK | {"model": "lenet_300_100", "prune_rate": 0.8, "train_limit": 0}
        run_id = run_experiment(config_from(config))
        asked = {"run": run_id, "round": "last", "queries": 20, "seconds": 5, "batches": "1,8"}
        where = measure(validated(MeasureConfig, asked))
        yield run_id, where, pd.read_csv(where / "measurements.csv")


def test_every_form_is_measured_with_every_batch(measured):
    _, _, table = measured
    assert list(dict.fromkeys(table["form"])) == list(FORMS)
    assert sorted(set(table["batch"])) == [1, 8]
    assert set(table["threads"]) == {1}  # that is all that a test has
    assert len(table) == len(FORMS) * 2
    assert (table["queries"] == 20).all()
    assert (table["p50_ms"] <= table["p90_ms"]).all()
    assert (table["p90_ms"] <= table["p99_ms"]).all()
    assert (table[["loading_mb", "inference_mb"]] > 0).all(axis=None)
    assert (table["process_mb"] > 10).all()


def test_accuracy_is_that_of_the_networks(measured):
    run_id, _, table = measured
    rows = table.drop_duplicates("form").set_index("form")
    exact = {0: ["dense", "dense_onnx"], 2: ["masked", "packed", "sparse", "compact", "onnx"]}
    for number, names in exact.items():
        network = load_network(run_id, number)
        accuracy = evaluate(network, data_of(network).test).accuracy
        assert rows.loc[names, "test_accuracy"].tolist() == [accuracy] * len(names)
    for name, other in (("dense_int8", "dense"), ("int8", "onnx")):
        assert abs(rows.loc[name, "test_accuracy"] - rows.loc[other, "test_accuracy"]) < 0.03


def test_sizes_and_multiply_adds_are_those_of_the_forms(measured):
    run_id, _, table = measured
    rows = table.drop_duplicates("form").set_index("form")
    weights = 64 * 300 + 300 * 100 + 100 * 10
    survivors = sum(int(mask.sum()) for mask in load_network(run_id).masks.values())
    for name in ("dense", "dense_onnx", "dense_int8", "masked", "packed"):
        assert rows.loc[name, "multiply_adds"] == weights
    assert rows.loc["sparse", "multiply_adds"] == survivors
    for name, multiple in (("compact", 1), ("onnx", 1), ("int8", ALIGNED)):
        left = sum(mask.numel() for mask in smallest(load_network(run_id), multiple).masks.values())
        assert survivors < left < weights
        assert rows.loc[name, "multiply_adds"] == left
    size = rows["bytes"]
    assert 4 * weights < size["masked"] < 4 * weights + 10_000  # zeros are stored
    assert size["packed"] < size["sparse"] < size["compact"] < size["masked"]
    assert size["dense_int8"] < 0.4 * size["dense_onnx"]


def test_the_tables_and_the_picture_are_in_mlflow(measured):
    run_id, where, table = measured
    client = mlflow.MlflowClient()
    logged = client.list_artifacts(run_id, "measurements/round_02")
    names = {Path(file.path).name for file in logged}
    assert names == {"measurements.csv", "measurements.md", "measurements.png"}
    metrics = client.get_run(run_id).data.metrics
    for name, value in metrics_of(table).items():
        assert metrics[name] == pytest.approx(value)
    packed = table[table["form"] == "packed"].iloc[0]
    assert metrics["measure/packed/bytes"] == packed["bytes"]
    assert metrics["measure/packed/batch_1_threads_1_p50_ms"] == pytest.approx(packed["p50_ms"])
    page = (where / "measurements.md").read_text()
    for name in FORMS:
        assert f"| {name} |" in page
    assert "20 queries of each form, in turns, or 5 s" in page
    assert page.count(" 20 queries ms (p90, p99) |") == len(cells_of(table))
    assert "* masked gains nothing over dense in: file (100%)" in page


def test_the_picture_shows_every_form_in_every_panel(measured):
    _, _, table = measured
    figure = draw_costs(table)
    panels = figure.axes[:-1]
    assert [axis.get_title("left").partition(",")[0] for axis in panels] == [
        *("file", "multiply-adds", "inference memory", "ms", "ms")
    ]
    first = table.drop_duplicates("form")
    drawn = [line.get_xdata()[0] for line in panels[0].get_lines()]
    assert drawn == pytest.approx((first["bytes"] / 1000).tolist())


def row(form, cost, latency):
    return {
        "form": form,
        "threads": 1,
        "batch": 1,
        "p50_ms": latency,
        "bytes": cost,
        "multiply_adds": cost,
        "loading_mb": cost,
        "inference_mb": cost,
    }


def test_where_pruning_does_not_pay_is_said_in_words():
    table = pd.DataFrame([row("dense", 100, 2.0), row("masked", 96, 1.0), row("sparse", 94, 3.0)])
    assert no_gain(table) == [
        "masked gains nothing over dense in: file (96%), multiply-adds (96%), memory of loading "
        "(96%), memory of inference (96%)",
        "sparse gains nothing over dense in: latency at batch 1, 1 thread (150%)",
    ]
    less = pd.DataFrame([row("dense", 100, 2.0), row("sparse", 94, 1.0)])
    assert no_gain(less) == [
        "every form of the pruned network costs less than the dense one, in all ways"
    ]


def test_percentiles_and_throughput():
    times = Times(1, 4, 0.0, 0.0, 0.0, [number / 1000 for number in range(1, 102)])
    assert times.percentile(50) == pytest.approx(51)
    assert times.percentile(90) == pytest.approx(91)
    assert times.throughput == pytest.approx(4 * 101 / sum(range(1, 102)) * 1000)


def sources(measured, *names):
    run_id, _, _ = measured
    made = {}
    for name in names:
        path = Path(f"{name}.safetensors")
        load_network(run_id, 0 if name == "dense" else "last").save(path)
        made[name] = Source("sparse" if name == "sparse" else "torch", path)
    images = Path("images.npy")
    np.save(images, np.zeros((3, 1, 8, 8), np.uint8))
    return made, images


def test_a_time_limit_ends_a_measurement(measured):
    made, images = sources(measured, "dense", "sparse")
    times = take_times(made, images, 16, 1, 5, 10**9, 0.2)
    for each in times.values():
        assert 0.2 <= sum(each.seconds) < 3
        assert 1 < len(each.seconds) < 10**6


def test_memory_is_that_of_the_network(tmp_path):
    """A network of 40 MB takes about as much when it is loaded, and no process a small one's."""
    architecture = Architecture("lenet_10000", (1, 25, 40), 2)
    state = architecture.draw(0)
    spec = {"model": "lenet_10000", "image_shape": [1, 25, 40], "class_names": ["a", "b"]}
    metadata = {"network": spec | {"mean": 0.0, "std": 1.0}, "round": 0}
    from pruning.checkpoint import save_checkpoint

    size = save_checkpoint(tmp_path / "x.safetensors", state, {}, metadata) / MEGABYTE
    np.save(tmp_path / "images.npy", np.zeros((1, 1, 25, 40), np.uint8))
    probe = Probe(Source("torch", tmp_path / "x.safetensors"), tmp_path / "images.npy", 255, 1)
    try:
        memory = probe.begin(1)
        assert size == pytest.approx(40, abs=1)
        assert 0.9 * size < probe.loading < 3 * size
        assert 0.9 * size < memory["inference"] < 3 * size
        assert memory["process"] > memory["inference"] + 50  # the libraries
        assert len(probe.run(1, 7)) == 7
    finally:
        probe.close()


def test_a_process_that_ends_is_an_error(tmp_path):
    np.save(tmp_path / "images.npy", np.zeros((1, 1, 2, 2), np.uint8))
    with pytest.raises(ValueError, match=r"measures .*missing ended with status 1"):
        Probe(Source("torch", tmp_path / "missing"), tmp_path / "images.npy", 255, 1)


def test_a_network_of_convolutions_has_no_sparse_form(tmp_path, empty_store):
    with working_in(tmp_path, empty_store):
        from experiments.config.faces import FacesConfig
        from experiments.prepare_faces import prepare_photographs

        source = str(photographs(Path("photographs"), ada=5, grace=5))
        prepare_photographs(FacesConfig(source=source, out="faces", device="cpu"))
        config = {"dataset": "faces", "data_root": "faces", "epochs": 1, "retrain_epochs": 1}
        config |= {"rounds": 1, "device": "cpu", "batch_size": 4, "granularity": "unit"}
        run_id = run_experiment(config_from(config | {"prune_rate": 0.5}))
        asked = {"run": run_id, "round": "last", "queries": 2, "batches": "1"}
        where = measure(validated(MeasureConfig, asked))
        rows = pd.read_csv(where / "measurements.csv").set_index("form")
        assert list(rows.index) == [name for name in FORMS if name != "sparse"]
        assert rows.loc["compact", "bytes"] < 0.6 * rows.loc["dense", "bytes"]
        assert rows.loc["compact", "multiply_adds"] < 0.8 * rows.loc["dense", "multiply_adds"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"run": "0" * 32}, "has no run 0"),
        ({"batches": "0"}, "batches must be positive whole numbers, separated by commas, got 0"),
        ({"batches": "1,1"}, "batches must not contain a number twice, got 1,1"),
        ({"queries": "0"}, "queries must be greater than 0, got 0"),
        ({"seconds": "0"}, "seconds must be greater than 0, got 0"),
    ],
)
def test_errors_are_one_line(measured, capsys, changes, message):
    words = {"run": measured[0]} | changes
    argv = [word for name, value in words.items() for word in (f"--{name}", value)]
    with pytest.raises(SystemExit) as stop:
        run_command("measure", argv)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
