"""The sentences and verdicts of a page, from numbers worked out by hand.

Three seeds, so t(0.975, 2 d.o.f.) = 4.302652729911275. The differences of lottery and random are
0.02, 0.03 and 0.04: mean 0.03, deviation 0.01, so the interval is 0.03 -+ 4.3027 * 0.01 / sqrt(3)
= 0.0052 to 0.0548, t = 5.196 and p = 0.0351. The family of the best method has two tests, this one
and the one against the dense network (differences 0.01, 0.02 and 0.03, p = 0.0742), so Holm's
p-values are 0.0702 and 0.0742. With differences of 0.03, 0.031 and 0.032 instead, t = 53.7,
p = 0.00035 and Holm's is 0.0007. 400 test images.
"""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from experiments.comparison.findings import (
    caveats,
    difference,
    early_stop_notes,
    headline,
    incomplete,
    note_on_tests,
    verdict,
    verdict_text,
)
from experiments.comparison.results import EARLY_STOP, Comparison

DENSE_TEST, DENSE_VALID, DENSE_STOP = (0.95, 0.95, 0.95), (0.94, 0.94, 0.94), (100, 200, 300)
APART = {"lottery": (0.96, 0.97, 0.98), "random": (0.94, 0.94, 0.94)}
CLEAR = {"lottery": (0.96, 0.97, 0.98), "random": (0.93, 0.939, 0.948)}  # 0.03, 0.031, 0.032
ALIKE = {"lottery": (0.96, 0.97, 0.98), "random": (0.96, 0.96, 0.98)}  # differences 0, 0.01, 0
MASKED = {"lottery": (0.96, 0.97, 0.98), "lottery shuffled_mask": (0.93, 0.939, 0.95)}
CONTROL = {"lottery shuffled_mask": "shuffled_mask"}
CONSTANT = {"retrain_epochs": "10", "batch_size": "60", "schedule": "constant"}


def rounds_of(test, valid=None, stop=None, control=None):
    """A table of rounds: the dense network, and one round of half the weights per method."""
    rows = []
    for method, values in test.items():
        for seed, value in enumerate(values):
            common = {
                "method": method,
                "reinit": method.split()[0],
                "criterion": "magnitude",
                "control": (control or {}).get(method, "none"),
                "pruning": "one_shot" if "one_shot" in method else "iterative",
                "seed": seed,
            }
            checked = (valid or test)[method][seed]
            iteration = (stop or {}).get(method, DENSE_STOP)[seed]
            for number, reached, at_valid, at in (
                (0, DENSE_TEST[seed], DENSE_VALID[seed], DENSE_STOP[seed]),
                (1, value, checked, iteration),
            ):
                rows.append(
                    common
                    | {"round": number, "sparsity": 0.5 * number, "compression_ratio": 1.0 + number}
                    | {"theoretical_speedup": 1.0 + number, "test_accuracy": reached}
                    | {"valid_accuracy": at_valid, "early_stop_iteration": at}
                    | {"early_stop_test_accuracy": reached}
                )
    return pd.DataFrame(rows)


def comparison_of(rounds, **changes):
    """A comparison with nothing but rounds, and what `changes` says."""
    whole = Comparison(
        name="",
        setting={"batch_size": "60", "schedule": "cosine"},
        retrain_lr=dict.fromkeys(rounds["method"], 0.0012),
        retrain_epochs=dict.fromkeys(rounds["method"], 10.0),
        defaults=frozenset(),
        rounds=rounds,
        epochs=pd.DataFrame(),
        masks={},
        image_shape=(1, 8, 8),
        shown_round=1,
        failed=(),
        links={},
        command="",
        environment={},
        images={"train": 1790, "test": 400},
        data_source="",
    )
    return replace(whole, **changes)


def verdict_of(first, second):
    rounds = rounds_of({"a": first, "b": second})
    table = comparison_of(rounds).differences
    return verdict(difference(table, "test_accuracy", 1, "a", "b"))


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (CLEAR["lottery"], CLEAR["random"], "higher"),
        (CLEAR["random"], CLEAR["lottery"], "lower"),
        (APART["lottery"], APART["random"], "undecided"),  # p = 0.035, but one of two tests
        (ALIKE["lottery"], ALIKE["random"], "undecided"),
        ((0.96, 0.96, 0.96), (0.95, 0.95, 0.95), "same in every seed"),
        ((0.95, 0.95, 0.95), (0.95, 0.95, 0.95), "equal in every seed"),
        ((0.97,), (0.94,), "one seed"),
    ],
)
def test_a_verdict_says_no_more_than_the_seeds_show(first, second, expected):
    assert verdict_of(first, second) == expected


def test_beside_what_is_undecided_is_what_could_have_been_shown():
    table = comparison_of(rounds_of(APART)).differences
    row = difference(table, "test_accuracy", 1, "lottery", "random")
    # deviation 0.01; two tests, so t(0.9875, 2 d.o.f.) = 6.205
    assert verdict_text(row) == "undecided (4.62 points could have been shown)"


def test_a_difference_outside_of_the_families_has_no_verdict():
    rounds = rounds_of(CLEAR | {"keep": (0.5, 0.51, 0.523)})
    table = comparison_of(rounds).differences
    row = difference(table, "test_accuracy", 1, "keep", "random")
    assert row["p_value"] < 0.05
    assert verdict(row) == "not tested"


def test_methods_without_a_common_seed_are_not_compared():
    rounds = rounds_of(APART)
    apart = rounds[~((rounds["method"] == "random") & (rounds["round"] == 1))]
    row = difference(comparison_of(apart).differences, "test_accuracy", 1, "lottery", "random")
    assert verdict(row) == "no common seed"


def test_the_order_of_the_methods_does_not_turn_a_difference_around():
    for accuracies in (APART, dict(reversed(APART.items()))):
        table = comparison_of(rounds_of(accuracies)).differences
        row = difference(table, "test_accuracy", 1, "lottery", "random")
        found = (row["difference"], row["low"], row["high"], row["p_value"])
        assert found == pytest.approx((0.03, 0.0052, 0.0548, 0.0351), abs=5e-5)
        assert (row["method"], row["other"], row["n"]) == ("lottery", "random", 3)


def test_the_headline_names_the_best_method_its_tests_and_the_smallest_networks():
    valid = {"lottery": (0.95, 0.945, 0.951), "random": (0.9, 0.91, 0.9), "keep": (0.9, 0.91, 0.9)}
    comparison = comparison_of(rounds_of(CLEAR | {"keep": ALIKE["random"]}, valid=valid))
    assert headline(comparison) == [
        "With 50% of the weights, lottery has the highest validation accuracy, and a mean test "
        "accuracy of 97.00% (95%: 92.79% to 98.78%); the dense network has 95.00% (95%: "
        "92.40% to 96.74%).",
        "Test accuracy, paired over 3 seeds, corrected for 3 tests (Holm): lottery is more "
        "accurate than random (by 3.10 points, p = 0.001), and is not shown to differ from keep "
        "(3.27 points could have been shown) and the dense network (5.67 points could have been "
        "shown).",
        "Smallest network shown to match the dense one: lottery 50%; random none; keep none.",
    ]


def test_the_headline_counts_the_tests_of_its_family_and_not_the_controls():
    rounds = rounds_of(CLEAR | MASKED, control=CONTROL)
    comparison = comparison_of(rounds)
    assert "corrected for 2 tests" in headline(comparison)[1]
    assert "shuffled" not in headline(comparison)[1]
    kinds = comparison.differences.groupby("family")["p_holm"].count()
    assert (kinds["headline"], kinds["controls"]) == (2, 1)
    assert comparison.differences.loc[comparison.differences["family"] == "", "p_holm"].isna().all()


def test_a_control_is_never_the_best_method():
    better = {"lottery": (0.90, 0.91, 0.92), "lottery shuffled_mask": (0.97, 0.98, 0.97)}
    comparison = comparison_of(rounds_of(better, control=CONTROL))
    assert "lottery has" in headline(comparison)[0]
    assert "90.00" not in headline(comparison)[0]
    assert "91.00%" in headline(comparison)[0]


def test_validation_accuracy_chooses_the_best_method_and_test_accuracy_does_not():
    valid = {"lottery": (0.9, 0.9, 0.9), "random": (0.91, 0.9, 0.9)}
    first, second, *_ = headline(comparison_of(rounds_of(CLEAR, valid=valid)))
    assert first.startswith(
        "With 50% of the weights, random has the highest validation accuracy, and a mean test "
        "accuracy of 93.90%"
    )
    assert "random is less accurate than lottery" in second


def test_methods_with_the_same_validation_accuracy_share_the_lead():
    valid = {"lottery": (0.9, 0.8, 0.9), "random": (0.8, 0.9, 0.9), "keep": (0.8, 0.8, 0.8)}
    rounds = rounds_of(APART | {"keep": APART["random"]}, valid=valid)
    assert headline(comparison_of(rounds))[0].startswith(
        "With 50% of the weights, lottery and random share the highest validation accuracy; "
        "lottery has a mean test accuracy of 97.00%"
    )


def test_a_lead_that_is_the_same_in_every_seed_is_not_called_significant():
    rounds = rounds_of({"lottery": (0.96, 0.96, 0.96), "random": (0.1, 0.1, 0.1)})
    assert headline(comparison_of(rounds))[1] == (
        "Test accuracy, paired over 3 seeds: lottery differs from random and the dense network "
        "by the same amount in every seed, which leaves nothing to test."
    )


def test_one_seed_claims_no_difference_and_no_spread():
    comparison = comparison_of(rounds_of({"lottery": (0.97,), "random": (0.94,)}))
    first, second, *_ = headline(comparison)
    assert "97.00% (one seed); the dense network has 95.00% (one seed)" in first
    assert second == (
        "Test accuracy, paired over 1 seed: lottery shares one seed with random and the dense "
        "network, too few to show a difference."
    )
    assert headline(comparison)[2] == (
        "One seed cannot show that a smaller network matches the dense one."
    )
    assert caveats(comparison)[:2] == [
        "n = 1 seed (0).",
        "With one seed no spread is known, and any difference may be chance; all is conditional on "
        "these 400 test images.",
    ]
    assert not any("nan" in text for text in headline(comparison))


def test_a_method_alone_is_compared_with_the_dense_network():
    first, second, *_ = headline(comparison_of(rounds_of({"lottery": APART["lottery"]})))
    assert first.startswith("With 50% of the weights, lottery has a mean test accuracy of 97.00%")
    assert second == (
        "Test accuracy, paired over 3 seeds, corrected for 1 test (Holm): lottery is not shown to "
        "differ from the dense network (3.26 points could have been shown)."
    )


def test_without_a_pruned_network_there_is_nothing_to_compare():
    (only,) = headline(comparison_of(rounds_of(APART), shown_round=0))
    assert only.endswith("so there is nothing to compare.")


def test_a_method_that_lacks_seeds_is_not_called_the_best():
    """The seeds that failed may have been its worst."""
    rounds = rounds_of({"lottery": (0.95, 0.96, 0.97), "keep": (0.99, 0.99, 0.99)})
    rounds = rounds[(rounds["method"] == "lottery") | (rounds["seed"] == 2)]
    assert headline(comparison_of(rounds))[0].startswith(
        "With 50% of the weights, lottery has the highest validation accuracy of the methods with "
        "all seeds, and a mean test"
    )
    assert incomplete(rounds) == [
        "keep lacks 4 networks (seed 0 and 1): its means cover fewer seeds, and it ranks below "
        "complete methods."
    ]


def test_a_complete_comparison_lacks_nothing():
    assert incomplete(rounds_of(APART)) == []


def test_caveats_name_the_seeds_the_images_and_the_margin():
    bound = comparison_of(rounds_of(APART))
    assert caveats(bound) == [
        "n = 3 seeds (0, 1, 2).",
        "95% intervals of accuracies are over new seeds and new test images (here 400 test "
        "images), the images' part an upper bound.",
        "Tests of differences are over seeds, conditional on this test set.",
        "Matching: validation accuracy is less than 0.20 points below the dense network's "
        "(one-sided 95% bound, each round tested alone).",
        "Retraining learning rates: lottery and random 0.0012, cosine.",
    ]
    known = comparison_of(rounds_of(APART), correct={("lottery", 0, 0): np.ones(400, dtype=bool)})
    assert not any("upper bound" in each for each in caveats(known))


@pytest.mark.parametrize(
    ("images", "note"), [(200, "; not shown for new test images"), (20_000, "")]
)
def test_a_difference_that_new_images_could_undo_is_marked(images, note):
    correct = {}
    for row in rounds_of(CLEAR).itertuples():
        right = np.arange(images) < row.test_accuracy * images  # errors where they are last
        correct[row.method, row.seed, row.round] = (
            right[::-1] if row.method == "random" and row.round else right
        )
    comparison = comparison_of(rounds_of(CLEAR), correct=correct)
    assert f"random (by 3.10 points, p < 0.001{note})" in headline(comparison)[1]


def test_the_note_on_tests_counts_those_that_are_corrected_and_those_that_are_not():
    comparison = comparison_of(rounds_of(CLEAR | MASKED, control=CONTROL))
    tests = int(comparison.differences["p_value"].notna().sum())
    note = note_on_tests(comparison)
    assert "Holm's method (headline family: 2 tests; controls family: 1 test)" in note
    assert f"the other {tests - 3} p-values of the comparison are not corrected" in note


def test_a_schedule_that_sets_the_early_stop_leaves_no_p_value_and_says_so():
    stop = {"lottery": (90, 150, 280), "random": (80, 190, 270)}
    cosine = comparison_of(rounds_of(APART, stop=stop))
    constant = comparison_of(
        rounds_of(APART, stop=stop), setting=cosine.setting | {"schedule": "constant"}
    )
    early = [c.differences[c.differences["metric"] == EARLY_STOP] for c in (cosine, constant)]
    assert early[0]["p_value"].isna().all()
    assert early[1]["p_value"].notna().all()
    assert "follows schedule=cosine, which sets when" in early_stop_notes(cosine)[0]
    assert early_stop_notes(constant) == []


def test_a_winning_ticket_needs_a_constant_rate_and_an_early_stop_no_later():
    valid = {"lottery": (0.95, 0.945, 0.951), "random": (0.95, 0.945, 0.951)}
    rounds = rounds_of(APART, valid=valid)  # early stops are the dense network's
    found = comparison_of(rounds, setting=CONSTANT)
    assert list(found.matches["name"]) == ["winning ticket", "matching subnetwork"]
    assert headline(found)[2] == (
        "Smallest network shown to match the dense one: lottery 50%, a winning ticket; random 50%."
    )
    assert "winning" not in headline(comparison_of(rounds))[2]
    later = rounds_of(APART, valid=valid, stop={"lottery": (100, 200, 301)})
    assert "winning" not in headline(comparison_of(later, setting=CONSTANT))[2]


def test_early_stop_notes_name_trained_starts_and_training_that_ended_first():
    rounds = rounds_of(
        {"keep": (0.95,) * 3, "random": (0.95,) * 3},
        stop={"keep": (10, 10, 10), "random": (300, 300, 290)},
    )
    assert early_stop_notes(comparison_of(rounds, setting=CONSTANT)) == [
        "keep starts from trained values: the iterations of earlier training are not counted.",
        "In 2 of 6 networks, validation loss was lowest at the last iteration (300): longer "
        "training might lower it further.",
    ]
    early = rounds_of(APART, stop=dict.fromkeys(APART, (100, 200, 290)))
    assert early_stop_notes(comparison_of(early, setting=CONSTANT)) == []


def test_the_last_iteration_counts_a_smaller_last_batch():
    rounds = rounds_of({"random": (0.95,) * 3}, stop={"random": (240, 239, 100)})
    images = {"train": 1412, "test": 400}
    (note,) = early_stop_notes(comparison_of(rounds, images=images, setting=CONSTANT))
    assert note.startswith("In 1 of 3 networks")
    assert "the last iteration (240)" in note  # ten epochs of 23 batches of 60 and one of 32
