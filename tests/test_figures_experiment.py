import numpy as np
import pandas as pd
import torch

from experiments.figures import experiment

ROUNDS = pd.DataFrame(
    {
        "round": [0, 1, 2],
        "sparsity": [0.0, 0.2, 0.36],
        "test_accuracy": [0.98, 0.97, 0.96],
        "early_stop_test_accuracy": [0.97, 0.97, 0.97],
        "valid_accuracy": [0.99, 0.98, 0.97],
        "layer_sparsity/fc1": [0.0, 0.2, 0.4],
        "layer_sparsity/fc2": [0.0, 0.2, 0.3],
    }
)
EPOCHS = pd.DataFrame(
    {"round": [0, 0, 1, 1, 2, 2], "epoch": [1, 2] * 3, "valid_accuracy": [0.9, 0.95] * 3}
)


def test_pixel_use_is_the_share_of_surviving_weights_of_each_pixel():
    mask = torch.tensor([[True, False, True, True], [False, False, True, True]])
    share = experiment.pixel_use({"fc1.weight": mask, "fc2.weight": mask}, (1, 2, 2))
    assert share.tolist() == [[0.5, 0.0], [1.0, 1.0]]


def test_pixel_use_averages_channels_and_skips_convolutions():
    mask = torch.tensor([[True, False, False, False, True, True, False, False]])
    share = experiment.pixel_use({"fc1.weight": mask}, (2, 2, 2))
    assert share.tolist() == [[1.0, 0.5], [0.0, 0.0]]
    assert (
        experiment.pixel_use({"conv": torch.ones(2, 1, 3, 3, dtype=torch.bool)}, (1, 8, 8)) is None
    )


def test_layers_are_found_by_their_columns():
    assert experiment.layer_columns(ROUNDS) == {
        "fc1": "layer_sparsity/fc1",
        "fc2": "layer_sparsity/fc2",
    }


def test_accuracy_is_drawn_against_remaining_weights_dense_on_the_left():
    axes = experiment.draw_accuracy(ROUNDS, "title").axes[0]
    test = axes.lines[0]
    assert np.allclose(test.get_xdata(), [100, 80, 64])
    assert np.allclose(test.get_ydata(), [98, 97, 96])
    assert axes.get_xlim()[0] > axes.get_xlim()[1]
    assert axes.get_xscale() == "log"


def test_every_round_has_its_line():
    axes = experiment.draw_epochs(ROUNDS, EPOCHS, "title").axes[0]
    assert [line.get_label() for line in axes.lines] == ["0: 100%", "1: 80%", "2: 64%"]
    assert axes.lines[1].get_ydata().tolist() == [90, 95]


def test_every_layer_has_its_line():
    axes = experiment.draw_layers(ROUNDS, "title").axes[0]
    assert [line.get_label() for line in axes.lines][:2] == ["fc1", "fc2"]
    assert np.allclose(axes.lines[0].get_ydata(), [0, 20, 40])


def test_pixels_are_drawn_as_percent():
    axes = experiment.draw_pixels(np.array([[0.5, 0.0], [1.0, 1.0]]), "title").axes[0]
    assert axes.images[0].get_array().tolist() == [[50, 0], [100, 100]]


def test_only_some_of_many_rounds_are_labelled(tmp_path):
    assert experiment.labelled_rounds(3) == [0, 1, 2]
    many = experiment.labelled_rounds(44)
    assert len(many) == experiment.MOST_NAMED
    assert (many[0], many[-1]) == (0, 43)
