"""The checklist of a page: what it answers about comparisons made up for it."""

from dataclasses import replace

from experiments.comparison.checklist import ITEMS, Evidence, operating_points
from experiments.comparison.statistics import summarise
from tests.test_comparison_page import METHODS, comparison_of


def evidence_of(comparison, **changes):
    evidence = Evidence(
        comparison.rounds,
        summarise(comparison.rounds),
        comparison.setting,
        comparison.environment,
        comparison.images,
    )
    return replace(evidence, **changes)


def answers(evidence):
    return {item.__name__: item(evidence).answer for item in ITEMS}


def test_the_checklist_is_honest_about_a_small_comparison():
    assert answers(evidence_of(comparison_of())) == {
        "pairs": "no",
        "named": "partly",
        "reproducible": "yes",
        "dense_too": "yes",
        "both_sizes": "yes",
        "operating_points": "partly",
        "extremes": "yes",
        "curves": "yes",
        "top5": "partly",
        "random_baseline": "no",
        "magnitude_baseline": "yes",
        "other_methods": "no",
        "seeds": "yes",
        "error_bars": "yes",
        "same_recipe": "partly",
        "modest": "partly",
    }


def test_the_checklist_sees_what_changes():
    one = {"lottery": METHODS["lottery"]}
    found = answers(evidence_of(comparison_of(one, seeds=(0,)), environment={"git_dirty": "true"}))
    assert (found["seeds"], found["error_bars"], found["curves"]) == ("no", "no", "no")
    assert (found["reproducible"], found["extremes"]) == ("partly", "no")
    assert found["same_recipe"] == "yes"
    by_lot = METHODS | {"lottery random": ("lottery", "random", "none", -0.05, 2)}
    newer = by_lot | {"lottery snip": ("lottery", "snip", "none", -0.01, 1)}
    found = answers(evidence_of(comparison_of(newer, seeds=(0, 1))))
    assert (found["random_baseline"], found["other_methods"]) == ("yes", "partly")
    assert found["seeds"] == "partly"


def test_operating_points_are_told_with_the_networks_that_cover_them():
    item = operating_points(evidence_of(comparison_of()))
    assert item.why.startswith(
        "Nearest networks within 12%: 1.95\N{MULTIPLICATION SIGN} for 2\N{MULTIPLICATION SIGN}, "
    )
    assert "none for 16\N{MULTIPLICATION SIGN}" in item.why
