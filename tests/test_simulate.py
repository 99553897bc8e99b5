"""Coverage of the intervals and mistakes of the matching rules, in made-up networks."""

import numpy as np
import pandas as pd
import pytest

from experiments.comparison.matching import gains
from tests.simulate import CURVES, FRESH, WORLDS, coverage, mistakes

REGULAR = [world for world in WORLDS if world.images * (1 - world.accuracy) > 5]
SEEDS = (3, 5, 10)


def mistakes_of(curve, seeds, margin, repeats=4000):
    return mistakes(CURVES[curve], seeds, repeats, margin, np.random.default_rng(0))


@pytest.mark.parametrize("seeds", SEEDS)
@pytest.mark.parametrize("world", [WORLDS[1], WORLDS[5], WORLDS[7]], ids=str)
def test_intervals_contain_the_true_value_in_about_95_of_100_cases(world, seeds):
    covered = coverage(world, seeds, repeats=1500)["covered"]
    assert covered.between(0.92, 0.98).drop("bound, images").all()  # 1,500 repeats: about 1% wide
    assert covered["bound, images"] > 0.93


@pytest.mark.slow
@pytest.mark.parametrize("seeds", SEEDS)
@pytest.mark.parametrize("world", [*REGULAR, *FRESH], ids=str)
def test_intervals_have_93_to_97_percent_coverage_and_with_three_seeds_up_to_98(world, seeds):
    covered = coverage(world, seeds, repeats=4000)["covered"]
    most = 0.98 if seeds == 3 else 0.975  # weighted t is too wide with two degrees of freedom
    assert covered.between(0.93, most).drop("bound, images").all()
    assert covered["bound, images"] > 0.93


@pytest.mark.slow
@pytest.mark.parametrize("seeds", SEEDS)
@pytest.mark.parametrize("world", sorted({*WORLDS} - {*REGULAR}, key=str), ids=str)
def test_with_a_handful_of_errors_intervals_are_too_wide_or_missing_but_not_too_short(world, seeds):
    found = coverage(world, seeds, repeats=4000)
    assert (found["covered"] > 0.93).all()


def test_a_mean_at_least_dense_often_picks_a_network_that_is_truly_worse():
    assert mistakes_of("digits", 3, None).worse > 0.15
    assert mistakes_of("slow", 3, None).worse > 0.4


@pytest.mark.parametrize("seeds", SEEDS)
def test_a_bound_above_the_margin_seldom_accepts_a_network_that_is_truly_worse(seeds):
    assert mistakes_of("one", seeds, 0.002, 40_000).beyond_margin == pytest.approx(0.05, abs=0.004)
    assert mistakes_of("digits", seeds, 0.001).worse < 0.05  # the mistake of the older rule
    assert mistakes_of("digits", seeds, 0.002).beyond_margin < 0.05


@pytest.mark.parametrize("curve", CURVES)
def test_where_all_larger_networks_match_at_most_5_percent_are_truly_worse(curve):
    assert mistakes_of(curve, 3, 0.002, 40_000).beyond_margin_unbroken < 0.054


def test_the_smallest_of_several_tests_may_be_worse_more_often():
    """Which is why a page says whether all larger networks match too."""
    assert mistakes_of("flat", 3, 0.002).beyond_margin > 0.1


def test_the_simulated_bound_is_that_of_a_comparison():
    draw = np.random.default_rng(0)
    dense, pruned = 0.97 + 0.001 * draw.standard_normal((2, 5))
    rows = [
        {"seed": seed, "round": number, "sparsity": 0.2 * number, "valid_accuracy": value}
        for seed, values in enumerate(zip(dense, pruned, strict=True))
        for number, value in enumerate(values)
    ]
    gain = pruned - dense
    expected = gain.mean() - 2.131846786 * gain.std(ddof=1) / np.sqrt(5)
    assert gains(pd.DataFrame(rows))["gain_low"].tolist() == pytest.approx([expected])
