import re
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.colors import to_rgb

from experiments.comparison import figures
from experiments.figures import experiment, style
from experiments.figures.intervals import accuracy_limits
from experiments.figures.page import to_svg
from pruning.reinit import REINITS
from tests.test_comparison_findings import comparison_of

METHODS = ("random", "lottery")


def arms(methods=METHODS, seeds=2, rounds=3, fc1=None):
    """Accuracy 0.98 dense (0.99 for seed 1), 0.001 a round lower; random is a point worse."""
    table = [
        {
            "method": method,
            "reinit": method.split()[0],
            "criterion": "magnitude",
            "control": "none",
            "pruning": "iterative",
            "seed": seed,
            "round": number,
            "sparsity": 1 - 0.8**number,
            "compression_ratio": 1.25**number,
            "theoretical_speedup": 1.5**number,
            "valid_accuracy": 0.98,
            "test_accuracy": 0.98
            + seed / 100
            - number / 1000
            - 0.01 * (method == "random" and number > 0),
            "early_stop_iteration": 1000 - 100 * number,
            "early_stop_test_accuracy": 0.98,
            "train_barrier": 0.03 + number / 100,
            "test_barrier": 0.04 + number / 100,
            "layer_sparsity/fc1": (fc1 or {}).get(method, 1 - 0.8**number) if number else 0.0,
            "layer_sparsity/fc2": 1 - 0.9**number,
        }
        for method in methods
        for seed in range(seeds)
        for number in range(rounds + 1)
    ]
    return pd.DataFrame(table)


def epochs(start=0.5, methods=METHODS, seeds=2):
    table = [
        {"method": m, "seed": s, "round": 2, "epoch": e, "test_accuracy": 0.98 - start / 10**e}
        for m in methods
        for s in range(seeds)
        for e in range(1, 7)
    ]
    return pd.DataFrame(table)


def masks(methods=METHODS, shape=(5, 4)):
    draw = torch.Generator().manual_seed(0)
    return {
        (method, seed): {"fc1.weight": torch.rand(shape, generator=draw) < 0.5}
        for method in methods
        for seed in range(2)
    }


def curves(axes):
    return [line for line in axes.lines if line.get_linestyle() != "None"]


def texts(figure):
    figure.draw_without_rendering()
    legends = [legend.get_title().get_text() for legend in figure.legends]
    labels = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    return " | ".join(legends + labels)


def everything(**changes):
    return figures.draw_all(
        comparison_of(
            **{
                "rounds": arms(),
                "epochs": epochs(),
                "masks": masks(),
                "image_shape": (1, 2, 2),
                "shown_round": 2,
            }
            | changes
        )
    )


@pytest.fixture(scope="module")
def drawn():
    return everything()


@pytest.fixture(scope="module")
def svgs(drawn):
    return {name: to_svg(figure) for name, figure in drawn.items()}


def test_a_reinit_method_has_the_same_style_beside_any_others():
    alone = {name: style.styles([name])[name] for name in REINITS}
    assert style.styles(["lottery snip", *reversed(REINITS), "a control"]).items() >= alone.items()
    looks = {(each["color"], each["ls"]) for each in alone.values()}  # a colour twice: dashed
    assert len(looks) == len(REINITS)


def test_no_two_methods_share_a_style():
    names = ["lottery", "lottery snip", *(f"control {number}" for number in range(30)), "keep"]
    found = style.styles(names)
    assert list(found) == names
    assert len({(each["color"], str(each["ls"])) for each in found.values()}) == len(names)
    assert len({found[name]["marker"] for name in names[:13]}) == 13


def test_no_method_is_as_dark_as_the_ink():
    assert all(max(to_rgb(colour)) > 0.4 for colour in style.COLOURS)


def test_accuracy_is_drawn_in_percent_with_the_dense_network_on_the_left():
    axes = figures.draw_accuracy(arms()).axes[0]
    dense, random, lottery = curves(axes)
    assert dense.get_ydata()[0] == pytest.approx(98.5)
    assert lottery.get_ydata() == pytest.approx([98.5, 98.4, 98.3, 98.2])
    assert random.get_ydata() == pytest.approx([98.5, 97.4, 97.3, 97.2])
    assert (random.get_xdata()[0], lottery.get_xdata()[0]) == (100, 100)
    assert axes.get_xlim()[0] > axes.get_xlim()[1]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["100", "80", "64", "51.2"]


def test_methods_of_one_round_are_drawn_side_by_side():
    lines = curves(figures.draw_accuracy(arms()).axes[0])
    random, lottery = (line.get_xdata().astype(float) for line in lines[1:])
    assert (random[1:] != lottery[1:]).all()
    middles = np.sqrt(random[1:] * lottery[1:])
    assert middles == pytest.approx([80, 64, 51.2])
    assert abs(np.log(random[1] / lottery[1])) < -np.log(0.8) / 2


def test_the_limits_hold_every_mean_close_to_the_best():
    means = pd.Series([98.0, 98.2, 98.4, 97.9])
    bottom, top = accuracy_limits(means, means - 0.1, means + 0.1)
    assert 97.6 < bottom < 97.8
    assert 98.5 < top < 98.7


def test_one_collapse_does_not_flatten_the_rest():
    means = pd.Series([98.0, 98.2, 98.4, 97.9, 11.0])
    bottom, _ = accuracy_limits(means, means - 0.1, means + 0.1)
    # the upper median is 98, the best 98.4: four times 0.4 below the best, and some room
    assert 96 < bottom < 96.8


def test_wide_intervals_do_not_widen_the_limits_much():
    means = pd.Series([98.0, 98.2, 98.4])
    bottom, top = accuracy_limits(means, means - 40, means + 40)
    assert (bottom, top) == pytest.approx((98 - 0.1875, 98.4 + 0.1875))


def test_limits_without_intervals_are_those_of_the_means():
    means = pd.Series([97.0, 98.0])
    unknown = means * np.nan
    assert accuracy_limits(means, unknown, unknown) == pytest.approx((97 - 1 / 24, 98 + 1 / 24))


def test_accuracy_figures_show_all_data_and_a_close_up_of_what_a_collapse_flattens():
    rounds = arms(("random", "lottery", "keep"))
    late = (rounds["method"] == "random") & (rounds["round"] == 3)
    rounds.loc[late, "test_accuracy"] = 0.101
    whole, close = figures.draw_accuracy(rounds).axes
    assert whole.get_ylim()[0] < 10.1
    assert close.get_ylim()[0] > 90
    assert close.get_title(loc="left") == "the same, close up"
    for axes in figures.draw_tradeoff(rounds).axes:
        assert axes.get_ylim()[0] < 10.1
    (only,) = figures.draw_accuracy(arms()).axes
    means = 100 * arms()["test_accuracy"]
    assert only.get_ylim()[0] < means.min() < means.max() < only.get_ylim()[1]


def test_barriers_are_drawn_in_points_of_training_and_of_test_error():
    train, test = figures.draw_barrier(arms()).axes
    for axes, first in ((train, 3), (test, 4)):
        dense, random, lottery, stable = curves(axes)
        assert dense.get_ydata()[0] == pytest.approx(first)
        assert random.get_ydata() == pytest.approx([first, first + 1, first + 2, first + 3])
        assert lottery.get_ydata() == pytest.approx(random.get_ydata())
        assert stable.get_ydata()[0] == 2
    assert train.get_title(loc="left") == "error barrier, training images"
    assert train.get_ylim() == test.get_ylim()
    (only,) = figures.draw_barrier(arms().drop(columns="test_barrier")).axes
    assert only.get_title(loc="left") == "error barrier, training images"


def test_layers_that_coincide_share_a_line():
    lines = pd.DataFrame({"a": [0, 1.0], "b": [0, 1.05], "c": [0, 2.0], "d": [0, 1.0]})
    assert list(experiment.distinct_lines(lines)) == ["a, b, d", "c"]
    many = pd.DataFrame({f"conv{n}": [1.0] for n in range(1, 10)})
    assert list(experiment.distinct_lines(many)) == ["conv1 to conv9 (9 layers)"]
    few = pd.DataFrame({"a": [100, 0.09], "b": [100, 0.0905], "c": [100, 0.0], "d": [100, 0.0]})
    assert list(experiment.distinct_lines(few, log=True)) == ["a, b", "c, d"]


def test_the_legend_has_the_number_of_seeds():
    assert "mean and 95% interval of 2 seeds | random | lottery" in texts(
        figures.draw_accuracy(arms())
    )
    rounds = arms(seeds=3)
    cut = rounds[(rounds["method"] == "random") | (rounds["seed"] == 0) | (rounds["round"] < 2)]
    cut = cut[(cut["method"] == "lottery") | (cut["seed"] < 2)]
    assert " of " not in texts(figures.draw_accuracy(cut))
    assert "random (2 seeds) | lottery (1 to 3 seeds)" in texts(figures.draw_accuracy(cut))
    assert "no interval" in texts(figures.draw_accuracy(arms(seeds=1)))


def test_early_stop_has_a_log_scale_with_plain_numbers():
    axes = figures.draw_early_stop(arms()).axes[0]
    assert axes.get_yscale() == "log"
    assert "1,000" in [tick.get_text() for tick in axes.get_yticklabels()]


def test_epochs_are_means_over_seeds_and_end_at_the_dense_level():
    figure = figures.draw_epochs(epochs(), arms(), 2)
    dense, random = figure.axes[0].lines[:2]
    assert random.get_xdata().tolist() == [1, 2, 3, 4, 5, 6]
    assert random.get_ydata()[:2] == pytest.approx([93, 97.5])
    assert dense.get_ydata()[0] == pytest.approx(98.5)


def test_a_close_up_is_drawn_only_if_the_start_hides_the_end():
    assert len(figures.draw_epochs(epochs(start=5), arms(), 2).axes) == 2
    assert len(figures.draw_epochs(epochs(start=0.01), arms(), 2).axes) == 1


def test_layers_have_one_panel_if_the_methods_agree_else_one_each():
    (axes,) = figures.draw_layers(arms()).axes
    assert axes.get_title(loc="left") == "the same for all methods"
    assert axes.lines[0].get_ydata() == pytest.approx([100, 80, 64, 51.2])
    panels = figures.draw_layers(arms(fc1={"random": 0.5, "lottery": 0.7})).axes
    assert [panel.get_title(loc="left") for panel in panels] == ["random", "lottery"]


def test_an_emptied_layer_is_drawn_at_the_very_top():
    (axes,) = figures.draw_layers(arms(fc1={"random": 1.0, "lottery": 1.0})).axes
    assert axes.lines[0].get_ydata()[1:].tolist() == [axes.get_ylim()[1]] * 3


def test_the_heat_map_has_each_pair_of_arms_once():
    axes = figures.draw_overlap(masks()).axes[0]
    assert len(axes.texts) == 6
    assert [tick.get_text() for tick in axes.get_xticklabels()] == [
        "random 0",
        "random 1",
        "lottery 0",
    ]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == [
        "random 1",
        "lottery 0",
        "lottery 1",
    ]


def test_pixels_have_one_panel_if_all_methods_share_their_masks():
    assert len(figures.draw_pixels(masks(), (1, 2, 2)).axes) == 3
    shared = {(m, s): mask for m in METHODS for s, mask in enumerate(masks(("a",)).values())}
    assert len(figures.draw_pixels(shared, (1, 2, 2)).axes) == 2
    assert figures.draw_pixels(masks(), (1, 9, 9)) is None


def test_every_figure_that_applies_is_drawn_in_reading_order_with_a_caption(drawn):
    assert [*drawn, "rewinding"] == sorted(figures.CAPTIONS, key=lambda name: name == "rewinding")
    assert all("seeds" in text or "mask" in text for text in figures.CAPTIONS.values())
    alone = arms().drop(columns=["train_barrier", "test_barrier"])
    few = everything(rounds=alone, epochs=epochs().assign(round=0), masks={})
    assert list(few) == ["accuracy", "early_stop", "tradeoff", "layers"]


def test_one_seed_is_enough_for_every_figure():
    drawn = everything(rounds=arms(seeds=1, rounds=2), epochs=epochs(seeds=1))
    assert all(to_svg(figure) for figure in drawn.values())


def test_everything_but_data_is_in_ink_on_a_transparent_background(drawn, svgs):
    for name, svg in svgs.items():
        text_colours = set(re.findall(r"<text[^>]*?fill: (#\w+)", svg))
        assert text_colours <= {figures.INK, "#ffffff", "#111111"}
        assert len(re.findall("<text(?![^>]*fill:)", svg)) == 0
        assert "stroke: #000000" not in svg
        assert drawn[name].get_facecolor() == (0, 0, 0, 0)


def test_an_svg_is_well_formed_scales_and_has_a_title():
    svg = to_svg(figures.draw_accuracy(arms(("a < b & c", "lottery"))))
    root = ElementTree.fromstring(svg)
    assert svg.startswith("<svg")
    assert (root.get("width"), root.get("height"), root.get("role")) == ("100%", None, "img")
    assert root.get("viewBox").startswith("0 0 ")
    assert root[0].tag.endswith("title")
    assert root[0].text == "Test accuracy against remaining weights"
    assert "a &lt; b &amp; c" in svg
    assert "<style" not in svg
    assert "<metadata" not in svg
    assert set(re.findall(r"font-family: ([^;\"]*)", svg)) == {"sans-serif"}


def test_the_same_numbers_give_the_same_svg(drawn, svgs):
    again = everything()
    assert {name: to_svg(figure) for name, figure in again.items()} == svgs
    assert to_svg(again["pixels"]) == to_svg(drawn["pixels"])


def test_unpruned_networks_stand_where_those_of_their_round_do():
    rounds = arms()
    whole = rounds["method"] == "random"
    rounds.loc[whole, ["control", "sparsity"]] = ["unpruned", 0.0]
    _, (axes,) = style.new_figure("")
    table = figures.draw_rounds(axes, rounds, "test_accuracy", "remaining")
    for method in ("random", "lottery"):
        own = table[table["method"] == method].set_index("round")["x"]
        assert list(own) == pytest.approx([100, 80, 64, 51.2], rel=0.04)  # side by side
    figures.remaining_axis(axes, rounds)
    assert list(axes.get_xticks()) == pytest.approx([100, 80, 64, 51.2])
