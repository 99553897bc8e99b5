import pytest

from experiments.comparison.rewinding import by_epoch, draw_rewinding
from tests.test_comparison_findings import rounds_of

ACCURACIES = {"rewind epoch 5": (0.93, 0.95), "rewind epoch 0": (0.9, 0.92), "lottery": (0.9, 0.91)}


@pytest.fixture(scope="module")
def rounds():
    table = rounds_of(ACCURACIES)
    return table.assign(test_barrier=0.01 * table["round"], train_barrier=0.02)


def test_methods_that_rewind_are_put_in_order_of_the_epoch(rounds):
    table = by_epoch(rounds, 1)
    assert table[["base", "epoch"]].to_numpy().tolist() == [["rewind", 0.0], ["rewind", 5.0]]
    assert table["test_accuracy_mean"].tolist() == pytest.approx([0.91, 0.94])


def test_one_epoch_is_nothing_to_compare(rounds):
    alone = rounds[rounds["method"] != "rewind epoch 0"]
    assert by_epoch(alone, 1).empty
    assert draw_rewinding(alone, 1) is None


def test_the_figure_has_accuracy_and_the_barrier_if_it_was_measured(rounds):
    first = draw_rewinding(rounds, 1).axes[0].containers[0]
    assert first.lines[0].get_xydata().tolist() == [
        pytest.approx([0, 91]),
        pytest.approx([5, 94]),
    ]
    assert len(draw_rewinding(rounds, 1).axes) == 2
    assert len(draw_rewinding(rounds.drop(columns=["test_barrier", "train_barrier"]), 1).axes) == 1
