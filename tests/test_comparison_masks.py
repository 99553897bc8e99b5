import math

import pytest
import torch

from experiments.comparison.masks import METHODS, ROUNDS, SEEDS, similarity


def mask(*kept):
    weights = torch.zeros(10, dtype=torch.bool)
    weights[list(kept)] = True
    return {"a.weight": weights}


MADE = {
    ("keep", 0): mask(0, 1, 2, 3),
    ("keep", 1): mask(2, 3, 4, 5),
    ("keep", 2): mask(0, 1, 2, 3),
    ("lottery", 0): mask(0, 1),
}


def test_masks_are_compared_between_seeds_methods_and_rounds():
    earlier = {("keep", 0): mask(*range(8)), ("lottery", 0): mask(0, 1, 2)}
    table = similarity(MADE, earlier).set_index(["differs", "method", "other"])
    seeds = table.loc[SEEDS, "keep", "keep"]
    assert (seeds["n"], seeds["lowest"], seeds["highest"]) == (3, 1 / 3, 1)
    assert seeds["jaccard"] == pytest.approx((1 / 3 + 1 / 3 + 1) / 3)
    assert seeds["expected"] == pytest.approx(1.6 / 6.4)  # 4 * 4 / 10 in both, of 8 - 1.6
    methods = table.loc[METHODS, "keep", "lottery"]
    assert (methods["n"], methods["jaccard"]) == (1, 0.5)
    assert methods["expected"] == pytest.approx(0.8 / 5.2)
    rounds = table.loc[ROUNDS]
    assert [*rounds["jaccard"]] == [0.5, pytest.approx(2 / 3)]
    assert len(table) == 4  # lottery has one seed only


def test_one_arm_has_nothing_to_compare_with():
    assert similarity({("keep", 0): mask(1)}, {}).empty


def test_the_overlap_of_two_empty_masks_is_unknown():
    table = similarity({("keep", 0): mask(), ("keep", 1): mask()}, {})
    assert math.isnan(table["jaccard"][0])
