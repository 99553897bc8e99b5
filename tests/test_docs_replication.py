"""docs/replication.py: tables with known answers give the contrasts, p-values and verdicts."""

import importlib.util
import math
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from tests.conftest import ROOT

SCRIPT = ROOT / "docs" / "replication.py"
SPEC = importlib.util.spec_from_file_location("replication", SCRIPT)
replication = importlib.util.module_from_spec(SPEC)
sys.modules["replication"] = replication
SPEC.loader.exec_module(replication)

LEFT = [(265_200 * 0.8**k + 1_000 * 0.9**k) / 266_200 for k in range(25)]
NOISE = [-0.02, -0.01, 0.0, 0.01, 0.02]  # by seed; mean 0
HALF = 2.776445 * math.sqrt(0.00025 / 5)  # of the 95% interval of NOISE, 4 degrees of freedom


def chains(iterations, points, rounds=25, seeds=range(5)):
    """Chains with `iterations(arm, round)` and `points(arm, round)` above 97%, and small noise.

    A seed's noise is added to its one-shot tickets, twice to its tickets, and in proportion to the
    round to the networks from random values: once in round 7. So round 7 of ticket and random
    differ by it once.
    """
    rows = []
    for arm in ("ticket", "random", "one_shot"):
        for seed in seeds:
            for number in range(rounds):
                noise = NOISE[seed % 5] if number else 0.0
                noise *= {"ticket": 2, "random": number / 7, "one_shot": 1}[arm]
                accuracy = 0.97 + (points(arm, number) + noise) / 100
                rows.append(
                    {"arm": arm, "seed": seed, "round": number, "sparsity": 1 - LEFT[number]}
                    | {replication.SPEED: iterations(arm, number) * math.exp(noise)}
                    | {replication.VALID: accuracy, replication.ACCURACY: accuracy}
                    | {"test_accuracy": accuracy + 0.001, "late_test_accuracy": accuracy + 0.002}
                )
    return pd.DataFrame(rows)


def as_in_the_paper(arm, number):
    """Iterations of a world in which all claims about speed hold."""
    if arm == "random":
        return 10_000 * (2.51 * 0.62 if number == 7 else 1.05**number)
    return 10_000 * (0.62 if number < 15 and number else 1)


def accurate_as_in_the_paper(arm, number):
    table = {
        "ticket": {7: 0.3, 9: 0.4, 15: 0.0, 16: -0.3},
        "random": {7: -0.2},
        "one_shot": dict.fromkeys(range(1, 14), 0.1),
    }
    return table[arm].get(number, 0.0)


def row_of(made, name):
    return made.set_index("name").loc[name]


def test_a_world_like_the_papers_supports_every_claim():
    made = replication.evaluate(chains(as_in_the_paper, accurate_as_in_the_paper))
    assert list(made["name"]) == [f"C{number}" for number in range(1, 12)]
    assert set(made["verdict"]) == {"supported"}
    assert set(made["n"]) == {5}
    sizes = made.set_index("name")["size"]
    assert sizes["C1"] == sizes["C2"] == sizes["C3"] == "as in the paper"
    assert sizes["C4"] == "larger"


def test_a_contrast_is_the_mean_over_chains_with_students_interval():
    made = replication.evaluate(chains(as_in_the_paper, accurate_as_in_the_paper))
    first, fourth = row_of(made, "C1"), row_of(made, "C4")
    assert first["mean"] == pytest.approx(math.log(0.62))
    assert first["high"] - first["mean"] == pytest.approx(2 * HALF, rel=1e-6)
    assert row_of(made, "C2")["mean"] == pytest.approx(-math.log(2.51))
    assert row_of(made, "C3")["mean"] == pytest.approx(0.5)
    assert fourth["mean"] == pytest.approx(0.4)
    assert fourth["low"] == pytest.approx(0.4 - 2 * HALF, rel=1e-6)
    assert fourth["test_accuracy"] == pytest.approx(0.4)  # both ends are 0.1 points higher
    assert row_of(made, "C11")["mean"] == pytest.approx(0.1)


def test_a_slope_is_that_of_the_logarithm_over_the_rounds():
    contrast = row_contrast("C9")
    table = chains(lambda arm, number: 1000 * 1.05**number, lambda arm, number: 0)
    slopes = replication.changes(table, contrast)
    assert slopes.to_numpy() == pytest.approx(math.log(1.05) + np.array(NOISE) / 7)
    assert replication.interval(slopes)[0] == pytest.approx(math.log(1.05))


def row_contrast(name):
    return next(one for one in replication.CONTRASTS if one.name == name)


def test_the_opposite_of_every_direction_is_contradicted():
    def iterations(arm, number):
        if arm == "random":
            return 10_000 * 0.9**number
        return 10_000 * (1.5 if number else 1)

    def points(arm, number):
        if arm == "random":
            return 0.6 if number else 0
        return {9: -0.3, 16: 0.3, 15: 0.5}.get(number, -0.2 if number else 0)

    made = replication.evaluate(chains(iterations, points))
    assert set(made["verdict"]) == {"contradicted"}


def test_no_difference_contradicts_a_stated_size_and_leaves_a_bare_direction_undecided():
    made = replication.evaluate(chains(lambda *_: 10_000, lambda *_: 0))
    verdicts = made.set_index("name")["verdict"]
    assert set(verdicts[["C1", "C2", "C3", "C4"]]) == {"contradicted"}
    assert set(verdicts[["C5", "C6"]]) == {"supported"}
    assert set(verdicts[["C7", "C8", "C9", "C10", "C11"]]) == {"undecided"}
    assert row_of(made, "C4")["size"] == "smaller"


def test_a_noisy_difference_is_undecided():
    rng = np.random.default_rng(0)
    table = chains(as_in_the_paper, accurate_as_in_the_paper)
    noise = rng.normal(0, 0.01, len(table)) * table["round"].gt(0)
    table[replication.ACCURACY] += noise
    made = replication.evaluate(table)
    accuracies = made[made["metric"] == replication.ACCURACY]
    assert set(accuracies["verdict"]) == {"undecided"}


def test_a_smaller_effect_than_the_papers_supports_the_direction_and_says_so():
    def iterations(arm, number):
        return as_in_the_paper(arm, number) if arm != "ticket" or number != 7 else 9_000

    made = replication.evaluate(chains(iterations, accurate_as_in_the_paper))
    first = row_of(made, "C1")
    assert (first["verdict"], first["size"]) == ("supported", "smaller")
    assert first["p_against"] < 0.001


@pytest.mark.parametrize(
    ("p", "corrected"),
    [
        ([0.01, 0.04, 0.03], [0.03, 0.06, 0.06]),
        ([0.5, 0.5], [1.0, 1.0]),
        ([0.01, 0.011, 1.0], [0.03, 0.03, 1.0]),  # never below a smaller one's
    ],
)
def test_holm_corrects_the_smallest_most(p, corrected):
    assert replication.holm(p) == pytest.approx(corrected)


def test_p_values_are_two_sided_and_one_where_nothing_varies():
    one = row_contrast("C4")
    change = pd.Series([0.1, 0.2, 0.3])
    shown, refuted = replication.p_values(change, one)
    assert shown == pytest.approx(0.0741799)  # t = 3.4641, 2 degrees of freedom
    assert refuted == pytest.approx(0.2254033)  # t = -1.7321
    assert replication.p_values(pd.Series([0.5, 0.5, 0.5]), one) == (1.0, 1.0)
    assert replication.p_values(pd.Series([0.5]), one) == (1.0, 1.0)


def test_the_sign_test_leaves_out_ties():
    assert replication.sign_test(pd.Series([1.0, 2, 3, 4, 5, 0])) == pytest.approx(2 / 32)
    assert replication.sign_test(pd.Series([1.0, -1])) == 1.0
    assert replication.sign_test(pd.Series([0.0, 0])) == 1.0


def test_early_stops_at_the_last_look_are_counted():
    table = chains(as_in_the_paper, accurate_as_in_the_paper)
    late = (table["arm"] == "random") & (table["round"] == 7) & (table["seed"] < 2)
    table.loc[late, replication.SPEED] = replication.LAST_LOOK
    made = replication.evaluate(table)
    assert row_of(made, "C2")["censored"] == 2
    assert row_of(made, "C9")["censored"] == 2  # round 7 is one of its rounds
    assert row_of(made, "C1")["censored"] == 0
    table.loc[late, replication.SPEED] += 1
    with pytest.raises(ValueError, match="must have 50435 iterations"):
        replication.evaluate(table)


def test_missing_rounds_and_arms_are_errors():
    table = chains(as_in_the_paper, accurate_as_in_the_paper)
    gone = (table["arm"] == "random") & (table["seed"] == 3) & table["round"].isin([4, 20])
    with pytest.raises(ValueError, match="random, seed 3: rounds are missing: 4, 20"):
        replication.evaluate(table[~gone])
    with pytest.raises(ValueError, match="one_shot, seed 0: rounds are missing"):
        replication.evaluate(table[table["arm"] != "one_shot"])
    with pytest.raises(ValueError, match=r"ticket, seed 0: rounds are missing: 16"):
        replication.evaluate(table[table["round"] < 16])


def test_other_sizes_than_the_papers_are_an_error():
    table = chains(as_in_the_paper, accurate_as_in_the_paper)
    table["sparsity"] = 1 - 0.8 ** table["round"]  # 20% in the output layer, too
    with pytest.raises(ValueError, match=r"round 7 must leave 21.1%, got 20.97%"):
        replication.evaluate(table)


def write(table, folder):
    """As `collect` writes it."""
    folder.mkdir()
    for seed, rows in table.groupby("seed"):
        rows.to_csv(folder / f"seed_{seed:03}.csv", index=False)


def report(folder, seeds, reinit="lottery", pruning="iterative", epochs=21):
    """The two tables of a report's folder: accuracies rise by 0.001 an epoch, from 0.9."""
    folder.mkdir()
    method = {"reinit": reinit, "criterion": "magnitude", "control": "none", "pruning": pruning}
    rounds, ends = [], []
    for seed in seeds:
        for number in range(2):
            of = {"method": reinit, **method, "seed": seed, "round": number}
            accuracies = {replication.VALID: 0.5, replication.ACCURACY: 0.6, "test_accuracy": 0.92}
            rounds.append(of | {"sparsity": 0.2 * number, replication.SPEED: 700} | accuracies)
            ends += [of | {"epoch": e, "test_accuracy": 0.899 + e / 1000} for e in range(1, 22)]
    pd.DataFrame(rounds).to_csv(folder / "comparison.csv", index=False)
    table = pd.DataFrame(ends)
    table[table["epoch"] <= epochs].to_csv(folder / "epochs.csv", index=False)


def test_a_report_is_read_with_the_mean_of_the_last_twenty_epochs(tmp_path):
    report(tmp_path / "a", [3])
    table = replication.read([tmp_path / "a"])
    assert list(table.columns) == replication.COLUMNS
    assert table[["arm", "seed", "round"]].to_numpy().tolist() == [
        ["ticket", 3, 0],
        ["ticket", 3, 1],
    ]
    assert table["late_test_accuracy"].tolist() == pytest.approx([0.9105, 0.9105])  # 2 to 21
    report(tmp_path / "short", [3], epochs=19)
    with pytest.raises(ValueError, match="needs at least 20 epochs a round, got 19"):
        replication.read([tmp_path / "short"])


def test_a_seed_in_two_reports_is_an_error(tmp_path):
    report(tmp_path / "a", [3, 4])
    report(tmp_path / "b", [4, 5])
    with pytest.raises(ValueError, match="seed 4 appears twice: round 0 of ticket"):
        replication.read([tmp_path / "a", tmp_path / "b"])


def test_other_methods_and_other_files_are_errors(tmp_path):
    report(tmp_path / "a", [3], reinit="keep")
    with pytest.raises(ValueError, match="keep, magnitude, none, iterative is not an arm"):
        replication.read([tmp_path / "a"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="neither"):
        replication.read([tmp_path / "empty"])
    (tmp_path / "seed_000.csv").write_text("arm,seed\nticket,0\n")
    with pytest.raises(ValueError, match="has no column round, sparsity"):
        replication.read([tmp_path / "seed_000.csv"])


def test_collected_files_give_the_same_table_and_take_arms_one_by_one(tmp_path):
    report(tmp_path / "tickets", [3, 12])
    report(tmp_path / "one_shot", [3, 12], pruning="one_shot")
    out = tmp_path / "main"
    files = replication.collect([tmp_path / "tickets"], out)
    assert [file.name for file in files] == ["seed_003.csv", "seed_012.csv"]
    replication.collect([tmp_path / "one_shot"], out)
    replication.collect([tmp_path / "tickets"], out)  # again: nothing changes
    both = replication.read([tmp_path / "tickets", tmp_path / "one_shot"])
    pd.testing.assert_frame_equal(replication.read([out]), both)
    pd.testing.assert_frame_equal(replication.read(sorted(out.glob("*.csv"))), both)

    report(tmp_path / "other", [12])
    changed = pd.read_csv(tmp_path / "other" / "comparison.csv")
    changed[replication.SPEED] = 800
    changed.to_csv(tmp_path / "other" / "comparison.csv", index=False)
    with pytest.raises(ValueError, match=r"seed_012.csv: has other values"):
        replication.collect([tmp_path / "other"], out)


def run(*arguments):
    return subprocess.run(
        [sys.executable, SCRIPT, *map(str, arguments)], capture_output=True, text=True
    )


def test_the_command_prints_the_verdicts_and_writes_them(tmp_path):
    write(chains(as_in_the_paper, accurate_as_in_the_paper), tmp_path / "main")
    done = run(tmp_path / "main", "--csv", tmp_path / "verdicts.csv")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[2].startswith("| C1 | ticket stops earlier than dense, 21.1% | 5 | 0.62x (0.59")
    assert lines[2].endswith("| **supported** | as in the paper |")
    assert "| C4 | +0.40 (+0.36 to +0.44) | +0.40 (+0.36 to +0.44) |" in done.stdout
    assert len(pd.read_csv(tmp_path / "verdicts.csv")) == 11
    done = run(tmp_path / "main", tmp_path / "main" / "seed_003.csv")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: seed 3 appears twice: round 0 of ticket; pass it once\n"


def pilot_chains(points):
    table = chains(as_in_the_paper, accurate_as_in_the_paper, rounds=17)
    table[replication.VALID] += points / 100
    return table[table["arm"] != "one_shot"]


def test_the_pilot_takes_the_scaling_with_the_best_dense_networks(tmp_path):
    write(pilot_chains(0.0), tmp_path / "standardised")
    write(pilot_chains(0.2), tmp_path / "l2")
    write(pilot_chains(0.1), tmp_path / "unit")
    given = [f"{name}={tmp_path / name}" for name in ("standardised", "l2", "unit")]
    done = run("pilot", *given)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("\nPrimary scaling: l2\n")
    assert "| unit | ticket against dense, 21.1% | 5 | 0.62x (0.596x to 0.645x) |" in done.stdout
    assert "| l2 | random against dense, 21.1% | 5 | -0.20 (-0.22 to -0.18) |" in done.stdout
    refused = run("pilot", f"pixels={tmp_path / 'l2'}")
    assert refused.stderr == "error: pilot takes NAME=PATH with NAME in unit, l2, standardised\n"


def test_the_pilot_takes_the_first_of_its_list_where_the_interval_includes_0():
    dense = pd.Series([97.0, 97.1, 97.2])
    noisy = dense + [0.3, -0.1, 0.0]
    assert replication.choose_scaling({"standardised": noisy, "unit": dense}) == "unit"
    assert replication.choose_scaling({"standardised": noisy, "l2": dense - 1}) == "standardised"
    with pytest.raises(ValueError, match="the same seeds"):
        replication.choose_scaling({"l2": dense, "unit": dense[:2]})
