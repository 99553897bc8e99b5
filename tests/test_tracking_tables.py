import pandas as pd
import pytest

from experiments.config.experiment import config_from
from experiments.tracking.tables import History, epoch_rows, place_of
from experiments.training.loop import Evaluation


def evaluations(epochs):
    return tuple(Evaluation(e, 10 * e, True, 1.0 / e, 2.0 / e, 0.5) for e in range(1, epochs + 1))


def test_epochs_are_counted_through_all_rounds_and_back():
    config = config_from({"epochs": 3, "retrain_epochs": 2}).resolved("digits")
    rows = [
        row
        for number, n in enumerate((3, 2, 2))
        for row in epoch_rows(config, number, evaluations(n))
    ]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6, 7]
    assert [place_of(config, row["step"]) for row in rows] == [
        (row["round"], row["epoch"]) for row in rows
    ]
    assert [row["round"] for row in rows] == [0, 0, 0, 1, 1, 2, 2]


def test_evaluations_within_an_epoch_are_not_rows():
    config = config_from({"epochs": 1}).resolved("digits")
    inside = Evaluation(1, 5, False, 1.0, 1.0, 0.5)
    assert len(epoch_rows(config, 0, (inside, *evaluations(1)))) == 1


def test_pandas_reads_the_tables_back_exactly(tmp_path):
    value = 0.1 + 0.2
    history = History(
        rounds=[{"round": 0, "test_accuracy": value, "remaining_weights": 7.0}],
        epochs=[{"round": 0, "epoch": 1, "step": 1, "train_loss": 1 / 3}],
    )
    rounds, epochs = history.frames()
    rounds.to_csv(tmp_path / "rounds.csv", index=False)
    back = pd.read_csv(tmp_path / "rounds.csv")
    pd.testing.assert_frame_equal(back, rounds, check_exact=True)
    assert rounds["remaining_weights"].dtype == int
    assert epochs["train_loss"].item() == pytest.approx(1 / 3)
