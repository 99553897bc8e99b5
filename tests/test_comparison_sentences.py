"""The sentences of a page, word for word, from numbers worked out by hand.

Three seeds, so t(0.975, 2 d.o.f.) = 4.302652729911275. The differences of lottery and random are
0.02, 0.03 and 0.04: mean 0.03, deviation 0.01, so the interval is 0.03 -+ 4.3027 * 0.01 / sqrt(3)
= 0.0052 to 0.0548, t = 5.196 and p = 0.0351.
"""

import pandas as pd

from experiments.comparison import statistics
from experiments.comparison.in_short import in_short
from experiments.comparison.sentences import (
    Tables,
    accuracy,
    controls,
    doubts,
    findings,
    smallest_round,
    speed,
    winning_tickets,
)

DENSE_TEST, DENSE_VALID, DENSE_STOP = (0.95, 0.95, 0.95), (0.94, 0.94, 0.94), (100, 200, 300)


def rounds_of(test, valid=None, stop=None, control=None, reinit=None):
    """A table of rounds: the dense network, and one round of half the weights a method."""
    rows = []
    for method, values in test.items():
        for seed, value in enumerate(values):
            common = {
                "method": method,
                "reinit": (reinit or {}).get(method, method.split()[0]),
                "criterion": "magnitude",
                "control": (control or {}).get(method, "none"),
                "pruning": "one_shot" if "one_shot" in method else "iterative",
                "seed": seed,
            }
            for number, reached, checked, when in (
                (0, DENSE_TEST[seed], DENSE_VALID[seed], DENSE_STOP[seed]),
                (
                    1,
                    value,
                    (valid or test)[method][seed],
                    (stop or {}).get(method, DENSE_STOP)[seed],
                ),
            ):
                rows.append(
                    common
                    | {"round": number, "sparsity": 0.5 * number, "compression_ratio": 1.0 + number}
                    | {"theoretical_speedup": 1.0 + number, "test_accuracy": reached}
                    | {"valid_accuracy": checked, "early_stop_iteration": when}
                    | {"early_stop_test_accuracy": reached}
                )
    return pd.DataFrame(rows)


def tables_of(rounds):
    return Tables(
        rounds,
        statistics.summarise(rounds),
        statistics.differences(rounds),
        statistics.winning_tickets(rounds),
    )


APART = {"lottery": (0.96, 0.97, 0.98), "random": (0.94, 0.94, 0.94)}
ALIKE = {"lottery": (0.96, 0.97, 0.98), "random": (0.96, 0.96, 0.98)}


def test_the_most_accurate_method_is_named_with_its_lead_over_each_other():
    tables = tables_of(rounds_of(APART))
    assert accuracy(tables.summary, tables.differences, 1) == [
        "With 50% of the weights left (2.0 times fewer parameters), lottery is the most accurate "
        "on average, at 97.00% (95% interval 94.52% to 99.48%, n = 3).",
        "lottery is 3.00 points above random (95% interval 0.52 to 5.48, p = 0.035, n = 3).",
        "Between lottery and the dense network there is no difference that 3 seeds could show: "
        "+2.00 points (95% interval \N{MINUS SIGN}0.48 to 4.48, p = 0.074, n = 3).",
    ]


def test_an_interval_around_zero_is_no_difference_that_the_seeds_could_show():
    tables = tables_of(rounds_of(ALIKE))  # differences 0, 0.01 and 0
    said = accuracy(tables.summary, tables.differences, 1)[1]
    assert said == (
        "Between lottery and random there is no difference that 3 seeds could show: +0.33 points "
        "(95% interval \N{MINUS SIGN}1.10 to 1.77, p = 0.42, n = 3)."
    )


def test_the_order_of_the_methods_does_not_turn_a_difference_around():
    tables = tables_of(rounds_of(dict(reversed(APART.items()))))
    said = accuracy(tables.summary, tables.differences, 1)[1]
    assert said.startswith("lottery is 3.00 points above random (95% interval 0.52 to 5.48,")


def test_of_one_seed_nothing_is_said_about_spread():
    tables = tables_of(rounds_of({"lottery": (0.97,), "random": (0.94,)}))
    said = accuracy(tables.summary, tables.differences, 1)
    assert said[0].endswith("at 97.00% (n = 1).")
    assert said[1] == ("lottery is 3.00 points above random (n = 1, spread unknown).")
    assert doubts(tables.rounds, tables.differences) == [
        "There is one seed: nothing can be said about spread, and every difference here may be "
        "chance."
    ]
    assert not any("nan" in text for texts in findings(tables, 1, 100).values() for text in texts)


def test_a_method_that_did_not_come_so_far_is_named():
    three = APART | {"keep": (0.9, 0.9, 0.9)}
    rounds = rounds_of(three)
    tables = tables_of(rounds[~((rounds["method"] == "keep") & (rounds["round"] == 1))])
    said = accuracy(tables.summary, tables.differences, 1)
    assert said[-1] == "keep has no network this small."
    assert smallest_round(tables.summary) == 1


def test_the_smallest_round_is_one_that_two_methods_reach():
    summary = pd.DataFrame({"method": ["a", "a", "b", "b", "c"], "round": [1, 5, 1, 3, 1]})
    assert smallest_round(summary) == 3
    assert smallest_round(summary[summary["method"] == "a"]) == 5


def test_a_winning_ticket_is_told_with_what_it_was_chosen_by():
    tables = tables_of(
        rounds_of(APART, valid={"lottery": (0.95, 0.94, 0.95), "random": (0.9,) * 3})
    )
    assert winning_tickets(tables.tickets, tables.summary) == [
        "The smallest network of lottery that matches the dense one has 50% of the weights, the "
        "fewest tried: "
        "94.67% against 94.00% on validation images. On test images it has 97.00% (95% interval "
        "94.52% to 99.48%, n = 3), the dense network 95.00%.",
        "random never matches the dense network on validation images, from 50% of the weights "
        "down to 50%.",
    ]


STOPS = {"lottery": (60, 140, 190), "random": (240, 340, 430)}  # dense: 100, 200, 300


def test_speed_is_a_ratio_of_iterations_to_the_dense_network_and_between_methods():
    tables = tables_of(rounds_of(APART, stop=STOPS))
    lottery, random, against = speed(tables.rounds, tables.differences, 1, last_iteration=None)
    assert lottery.startswith(
        "lottery takes 0.65 times as many iterations as the dense network to its lowest "
        "validation loss: 130 against 200; no difference that 3 seeds could show (difference "
        "\N{MINUS SIGN}70, 95% interval \N{MINUS SIGN}"
    )
    assert "random takes 1.68 times as many iterations as the dense network" in random
    assert "random takes 2.59 times as many iterations as lottery" in against
    assert "337 against 130 (difference +207, 95% interval " in against


def test_speed_owns_up_to_trained_starts_and_to_training_that_ended_first():
    rounds = rounds_of(
        {"keep": (0.95,) * 3, "random": (0.95,) * 3},
        stop={"keep": (10, 10, 10), "random": (300, 300, 290)},
    )
    tables = tables_of(rounds)
    said = speed(rounds, tables.differences, 1, last_iteration=300)
    assert "keep starts from values that were trained before" in said[-2]
    assert said[-1].startswith("In 2 of 6 networks the lowest validation loss came with the last")
    assert not any("as keep" in text for text in said)  # no race against a head start


MASKED = {"lottery": (0.96, 0.97, 0.98), "lottery shuffled_mask": (0.93, 0.94, 0.94)}
CONTROL = {"lottery shuffled_mask": "shuffled_mask"}


def test_a_control_that_does_worse_says_that_the_mask_matters():
    tables = tables_of(rounds_of(MASKED, control=CONTROL))
    (said,) = controls(tables.summary, tables.differences, 1)
    assert said.startswith("lottery shuffled_mask is 3.33 points below lottery (95% interval ")
    assert said.endswith(" So here it does matter which weights are kept.")


def test_a_control_that_does_as_well_is_worded_with_care():
    alike = {"lottery": ALIKE["lottery"], "lottery shuffled_mask": ALIKE["random"]}
    tables = tables_of(rounds_of(alike, control=CONTROL))
    (said,) = controls(tables.summary, tables.differences, 1)
    assert "there is no difference that 3 seeds could show" in said
    assert said.endswith(
        " So these seeds give no sign that it matters which weights are kept, beyond how many in "
        "each layer; more seeds might."
    )


def test_a_control_is_held_against_the_arm_that_prunes_alike():
    accuracies = {
        "lottery": (0.96, 0.97, 0.98),
        "lottery one_shot": (0.90, 0.92, 0.91),
        "lottery shuffled_mask one_shot": (0.91, 0.91, 0.90),
    }
    tables = tables_of(rounds_of(accuracies, control={list(accuracies)[2]: "shuffled_mask"}))
    (said,) = controls(tables.summary, tables.differences, 1)
    assert said.startswith(
        "Between lottery shuffled_mask one_shot and lottery one_shot there is no difference"
    )


def test_equal_differences_are_no_proof_that_a_mask_matters():
    alike = {"lottery": (0.96, 0.96, 0.96), "lottery shuffled_mask": (0.95, 0.95, 0.95)}
    tables = tables_of(rounds_of(alike, control=CONTROL))
    (said,) = controls(tables.summary, tables.differences, 1)
    assert said == (
        "lottery shuffled_mask is 1.00 points below lottery (the same in all 3 seeds, which leaves "
        "nothing to test)."
    )


def test_a_control_alone_says_nothing():
    tables = tables_of(
        rounds_of(
            {"random shuffled_mask": (0.9, 0.9, 0.9)},
            control={"random shuffled_mask": "shuffled_mask"},
        )
    )
    assert controls(tables.summary, tables.differences, 1) == [
        "random shuffled_mask has no arm without the control beside it to judge it by."
    ]


def test_missing_networks_and_uncorrected_tests_are_owned_up_to():
    rounds = rounds_of(APART)
    gone = (rounds["method"] == "random") & (rounds["seed"] == 2) & (rounds["round"] == 1)
    said = doubts(rounds[~gone], statistics.differences(rounds[~gone]))
    assert "not corrected for multiple comparisons" in said[1]
    assert said[2] == (
        "random lacks 1 network (of seed 2): its means there are over fewer seeds, or missing."
    )


def test_in_short_names_the_best_its_rivals_and_the_smallest_tickets():
    valid = {"lottery": (0.95, 0.94, 0.95), "random": (0.9,) * 3, "keep": (0.9,) * 3}
    three = APART | {"keep": ALIKE["random"]}
    assert in_short(tables_of(rounds_of(three, valid=valid))) == [
        "With 50% of the weights, lottery is the most accurate on average, with 97.00% on test "
        "images; the dense networks have 95.00%.",
        "3 seeds show its lead over random and cannot tell it from keep (95% intervals, not "
        "corrected for choosing the best of 3).",
        "The smallest networks that match the dense one on validation images: lottery 50%, "
        "random none, keep none.",
    ]


def test_in_short_tells_a_lead_that_is_the_same_in_all_seeds_apart():
    tables = tables_of(rounds_of({"lottery": (0.96, 0.96, 0.96), "random": (0.1, 0.1, 0.1)}))
    assert in_short(tables)[1] == "3 seeds put it equally far above random (95% intervals)."


def test_in_short_one_seed_claims_no_lead():
    said = in_short(tables_of(rounds_of({"lottery": (0.97,), "random": (0.94,)})))
    assert said[1] == "No two seeds tell whether that is more than chance."


def test_findings_leave_out_headings_with_nothing_to_say():
    assert list(findings(tables_of(rounds_of(APART)), 1, None)) == [
        "Accuracy of the smallest networks",
        "Winning tickets",
        "Speed of training",
        "How sure is this?",
    ]


def test_a_method_that_lacks_seeds_is_not_called_the_best():
    """What failed may have been its worst seed."""
    rounds = rounds_of({"lottery": (0.95, 0.96, 0.97), "keep": (0.99, 0.99, 0.99)})
    rounds = rounds[(rounds["method"] == "lottery") | (rounds["seed"] == 2)]
    tables = tables_of(rounds)
    assert in_short(tables)[0].startswith("With 50% of the weights, lottery is the most accurate")
    assert "keep lacks" in " ".join(doubts(tables.rounds, tables.differences))
