"""The checklist of a page: its answers for made-up comparisons."""

from dataclasses import replace

from experiments.comparison.checklist import ITEMS, checklist
from tests.test_comparison_page import METHODS, comparison_of

CHANGED = {"git_commit": "875a04c", "git_dirty": "true"}


def answers(comparison):
    replies = checklist(comparison)
    assert replies.keys() == ITEMS.keys()
    names = [getattr(reply, "__name__", key).removeprefix("_") for key, reply in ITEMS.items()]
    return dict(zip(names, (answer for answer, _ in replies.values()), strict=True))


def test_the_checklist_is_honest_about_a_small_comparison():
    assert answers(comparison_of()) == {
        "pairs": "no",
        "Exact architecture, data, pre-processing and metrics, in one place": "partly",
        "reproducible": "yes",
        "The same metrics for the network before pruning, and raw values at every point": "yes",
        "Compression ratio (old size / new) and theoretical speed-up (multiply-adds)": "yes",
        "operating_points": "partly",
        "extremes": "yes",
        "curves": "yes",
        "Top-1 accuracy, and top-5 where there are many classes": "partly",
        "random_baseline": "no",
        "magnitude_baseline": "yes",
        "other_methods": "no",
        "seeds": "yes",
        "error_bars": "yes",
        "same_recipe": "partly",
        "Claims no wider than the experiments": "partly",
    }


def test_the_checklist_sees_what_changes():
    one = {"lottery": METHODS["lottery"]}
    found = answers(replace(comparison_of(one, seeds=(0,)), environment=CHANGED))
    assert (found["seeds"], found["error_bars"], found["curves"]) == ("no", "no", "no")
    assert (found["reproducible"], found["extremes"]) == ("partly", "no")
    assert found["same_recipe"] == "yes"
    longer = replace(comparison_of(), retrain_epochs=dict.fromkeys(METHODS, 10.0) | {"keep": 9.0})
    _, reason = checklist(longer)["The same code, data and fine-tuning recipe for every method"]
    assert "keep (9 epochs)" in reason
    assert "epochs are the same" not in reason
    own = dict.fromkeys(METHODS, 0.0012) | {"random": 0.01}
    _, reason = checklist(replace(comparison_of(), retrain_lr=own))[
        "The same code, data and fine-tuning recipe for every method"
    ]
    assert "random (0.01)" in reason
    at_random = METHODS | {"lottery random": ("lottery", "random", "none", -0.05, 2)}
    newer = at_random | {"lottery snip": ("lottery", "snip", "none", -0.01, 1)}
    found = answers(comparison_of(newer, seeds=(0, 1)))
    assert (found["random_baseline"], found["other_methods"]) == ("yes", "partly")
    assert found["seeds"] == "partly"


def test_operating_points_name_the_networks_that_cover_them():
    request = "At least five operating points, such as 2, 4, 8, 16 and 32 times smaller"
    answer, reason = checklist(comparison_of())[request]
    assert answer == "partly"
    points = reason.replace("\N{MULTIPLICATION SIGN}", "x")
    assert points == "Covered within 12%: 2x, 4x and 8x; 10 pruned sizes in all."
