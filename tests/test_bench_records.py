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

ASKED = ["--sparsities", "0.7,0.75,0.95", "--shared_values", "2,8", "--out", "out"]
ROWS = Path("out/records.csv")


@pytest.fixture(scope="module")
def packed(tmp_path_factory, empty_store):
    """The ids of two runs, of which the bench wrote a table."""
    with working_in(tmp_path_factory.mktemp("records"), empty_store):
        settings = QUICK | {"epochs": 15, "retrain_epochs": 15, "prune_rate": 0.8}
        ids = [run_experiment(config_from(settings | {"seed": seed})) for seed in (0, 1)]
        records.main(["--runs", ",".join(ids), *ASKED])
        yield ids


def test_a_row_is_what_export_makes_of_a_network(packed):
    rows = pd.read_csv(ROWS)
    rounds = {run: {best_round(run, least) for least in (0.7, 0.75, 0.95)} for run in packed}
    assert len(rows) == 2 * sum(map(len, rounds.values()))  # none is packed twice
    run, number = packed[1], best_round(packed[1], 0.7)
    asked = {"run": run, "sparsity": 0.7, "values": "shared", "shared_values": 8}
    folder = export(validated(ExportConfig, asked | {"formats": "packed"}))
    (made,) = pd.read_csv(folder / "export.csv").query("format == 'packed'").to_dict("records")
    chosen = (rows["run"] == run) & (rows["round"] == number) & (rows["shared_values"] == 8)
    (found,) = rows[chosen].to_dict("records")
    assert found["bytes"] == (folder / "packed.wlp").stat().st_size
    assert found["test_error"] == pytest.approx(100 * (1 - made["test_accuracy"]), abs=1e-3)
    assert found["valid_error"] == pytest.approx(100 * (1 - made["valid_accuracy"]), abs=1e-3)


def test_the_same_command_packs_nothing_twice_and_shows_what_was_asked(packed, capsys, monkeypatch):
    monkeypatch.setattr(records, "pack", lambda config: pytest.fail(f"{config} was packed again"))
    before = ROWS.read_bytes()
    capsys.readouterr()
    records.main(["--runs", packed[0], *ASKED])
    assert ROWS.read_bytes() == before
    said = capsys.readouterr().out
    rows = pd.read_csv(ROWS)
    chosen = (rows["run"] == packed[0]) & (rows["round"] == best_round(packed[0], 0.95))
    (size,) = rows[chosen & (rows["shared_values"] == 2)]["bytes"]
    assert f"{size:,} ({size:,} to {size:,})" in said
    assert Path("out/records.png").stat().st_size > 10_000


@pytest.mark.parametrize("damage", ["", "run,round", "cut", "text"])
def test_a_damaged_table_is_an_error(packed, capsys, damage):
    whole = ROWS.read_text()
    changed = {"cut": whole.rstrip()[:-9], "text": whole.replace("2,", "two,")}
    try:
        ROWS.write_text(changed.get(damage, damage))
        with pytest.raises(ValueError, match=r"^out/records\.csv is damaged: delete it, or use an"):
            records.main(["--runs", ",".join(packed), *ASKED])
    finally:
        ROWS.write_text(whole)


def test_published_figures_are_beside_those_of_their_network_only():
    row = {"run": "a", "sparsity": 0.9, "shared_values": 4, "left": 10.0, "bytes": 9000}
    table = pd.DataFrame([row | {"valid_error": 2.0, "test_error": 2.1}])
    drawn = {
        title: [text.get_text() for text in records.draw_records(table, title).axes[0].texts]
        for title in (records.LENET, "lenet_30_20 on digits")
    }
    assert drawn[records.LENET] == list(records.PUBLISHED)
    assert not drawn["lenet_30_20 on digits"]


def test_the_front_is_chosen_by_validation_error():
    means = pd.DataFrame(
        {"bytes": [10, 20, 30, 40], "valid_error": [3.0, 2.0, 2.5, 1.0], "test_error": [3, 3, 1, 2]}
    )
    assert records.front_of(means)["bytes"].tolist() == [10, 20, 40]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"runs": "nowhere"}, "run must be the id of a run, a checkpoint or a folder"),
        ({"sparsities": "0.7,half"}, "sparsity must be a valid number"),
        ({"sparsities": "0.7,0.99"}, "sparsity must be at most 0.95"),
        ({"shared_values": "8,0"}, "shared_values must be greater than or equal to 1, got 0"),
        ({"shared_values": "4.7"}, "shared_values must be a valid integer"),
        ({"out": "file"}, "file"),
    ],
)
def test_errors_are_one_line_before_anything_is_packed(
    packed, capsys, monkeypatch, changes, message
):
    monkeypatch.setattr(records, "pack", lambda config: pytest.fail("something was packed"))
    Path("file").write_text("")
    words = {"runs": packed[0], "sparsities": "0.7", "shared_values": "8", "out": "new"} | changes
    with pytest.raises(SystemExit) as stop:
        run_command("bench_records", [f"--{name}={text}" for name, text in words.items()])
    assert stop.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert message in lines[0]
