"""The bench of records: rows are those of packed files, chosen by validation accuracy."""

from pathlib import Path

import pandas as pd
import pytest

from experiments.__main__ import run_command
from experiments.bench import records
from experiments.config.experiment import config_from
from experiments.config.export import ExportConfig
from experiments.config.parameters import validated
from experiments.export import export
from experiments.run import run_experiment
from experiments.tracking.networks import best_round
from tests.conftest import QUICK, working_in


@pytest.fixture(scope="module")
def packed(tmp_path_factory, empty_store):
    """The ids of two runs, what the bench wrote of them, and what it said."""
    with working_in(tmp_path_factory.mktemp("records"), empty_store) as _:
        settings = QUICK | {"epochs": 15, "retrain_epochs": 15, "prune_rate": 0.8}
        ids = [run_experiment(config_from(settings | {"seed": seed})) for seed in (0, 1)]
        yield ids, Path.cwd()


ASKED = ["--sparsities", "0.7,0.95", "--shared_values", "2,8", "--out", "out"]


def rows_of(place):
    return pd.read_csv(place / "out/records.csv")


def test_a_row_is_what_export_makes_of_a_network(packed, capsys):
    ids, place = packed
    records.main(["--runs", ",".join(ids), *ASKED])
    rows = rows_of(place)
    assert len(rows) == 8
    row = rows[(rows["run"] == ids[1]) & (rows["sparsity"] == 0.7) & (rows["shared_values"] == 8)]
    (found,) = row.to_dict("records")
    assert found["round"] == best_round(ids[1], 0.7)
    asked = {"run": ids[1], "sparsity": 0.7, "values": "shared", "shared_values": 8}
    folder = export(validated(ExportConfig, asked | {"formats": "packed"}))
    (made,) = pd.read_csv(folder / "export.csv").query("format == 'packed'").to_dict("records")
    assert found["bytes"] == (folder / "packed.wlp").stat().st_size
    assert found["test_error"] == pytest.approx(100 * (1 - made["test_accuracy"]), abs=1e-3)
    assert found["valid_error"] == pytest.approx(100 * (1 - made["valid_accuracy"]), abs=1e-3)
    said = capsys.readouterr().out
    size = rows[(rows["sparsity"] == 0.95) & (rows["shared_values"] == 2)]["bytes"]
    assert f"{size.mean():,.0f} ({size.min():,} to {size.max():,})" in said
    assert (place / "out/records.png").stat().st_size > 10_000


def test_the_same_command_packs_nothing_twice(packed, monkeypatch):
    ids, place = packed
    before = rows_of(place)
    monkeypatch.setattr(records, "pack", lambda asked: pytest.fail(f"{asked} was packed again"))
    records.main(["--runs", ",".join(ids), *ASKED])
    assert rows_of(place).equals(before)


def test_the_front_is_chosen_by_validation_error():
    means = pd.DataFrame(
        {"bytes": [10, 20, 30, 40], "valid_error": [3.0, 2.0, 2.5, 1.0], "test_error": [3, 3, 1, 2]}
    )
    assert records.front_of(means)["bytes"].tolist() == [10, 20, 40]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--runs", "nowhere"], "run must be the id of a run, a checkpoint or a folder"),
        (["--runs", "x", "--sparsities", "half"], "sparsities must be numbers, separated by comm"),
        (["--runs", "x", "--shared_values", "0"], "shared_values must be greater than or equal to"),
    ],
)
def test_errors_are_one_line(packed, capsys, words, message):
    with pytest.raises(SystemExit) as stop:
        run_command("bench_records", [*words, "--out", "wrong"])
    assert stop.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert message in lines[0]
