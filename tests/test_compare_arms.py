"""The arms that a comparison adds to its methods: baselines, further draws, epochs to rewind to."""

import pandas as pd
import pytest

from tests.comparing import compare, runs
from tests.conftest import working_in

LABELS = ["random", "random draw 2", "rewind epoch 0", "rewind epoch 1"]
BASELINES = ["random_mask", "random_mask draw 2", "small_dense", "small_dense draw 2", "unpruned"]


@pytest.fixture(scope="module")
def made(tmp_path_factory, empty_store):
    """The tables of a comparison, its page, and the parameters of its runs."""
    folder = tmp_path_factory.mktemp("arms")
    with working_in(folder, empty_store):
        run, report = compare(
            reinits="random,rewind",
            rewind_epochs="0,1",
            draws=2,
            baselines="auto",
            retrain_lrs="unpruned=0.002",
            twin="true",
        )
        tables = {path.stem: pd.read_csv(path) for path in report.glob("*.csv")}
        children = runs("mlflow.parentRunId", run.info.run_id)
        params = {child.info.run_id: child.data.params for child in children}
        return tables, (report / "report.html").read_text(), params, report.absolute()


def of_method(made, method, number):
    table = made[0]["comparison"]
    return table[(table["method"] == method) & (table["round"] == number)].set_index("seed")


def test_every_arm_is_there_with_every_seed(made):
    table = made[0]["comparison"]
    assert list(table["method"].unique()) == LABELS + BASELINES
    assert len(table) == 9 * 2 * 3  # methods, seeds, rounds


def test_all_arms_of_a_seed_share_the_dense_network(made):
    table = made[0]["comparison"]
    assert (table[table["round"] == 0].groupby("seed")["test_loss"].nunique() == 1).all()


def test_a_further_draw_has_other_values_and_its_own_seed(made):
    first, second = (of_method(made, name, 1) for name in ("random", "random draw 2"))
    assert (first["valid_loss"] != second["valid_loss"]).all()
    params = made[2]
    assert {params[run]["draw_seed"] for run in first["run_id"]} == {"auto"}
    assert {params[run]["draw_seed"] for run in second["run_id"]} == {"1000000", "1000001"}


def test_a_random_mask_keeps_as_many_weights_and_a_small_dense_network_about_as_many(made):
    plain, random, small, whole = (
        of_method(made, name, 2)["sparsity"] for name in ("random", *BASELINES[::2])
    )
    assert (random == plain).all()
    assert ((small <= plain) & (small > plain - 0.05)).all()
    assert (whole == 0).all()


def test_a_learning_rate_is_for_its_method_only(made):
    table, params = made[0]["comparison"].drop_duplicates("run_id"), made[2]
    rates = {row["method"]: params[row["run_id"]]["retrain_lr"] for _, row in table.iterrows()}
    assert rates.pop("unpruned") == "0.002"
    assert set(rates.values()) == {"auto"}


def test_networks_that_rewind_to_the_start_differ_from_those_that_rewind_to_an_epoch(made):
    start, later = (of_method(made, f"rewind epoch {epoch}", 2) for epoch in (0, 1))
    assert (start["valid_loss"] != later["valid_loss"]).all()


def test_the_page_has_the_figures_and_tables_of_these_arms(made):
    _, page, _, report = made
    assert {"barrier.png", "rewinding.png"} <= {path.name for path in report.glob("plots/*")}
    assert "Which method finds the best small lenet_30_20 on digits: random" in page
    assert "Controls (corrected on their own)" in page
    for text in ("pruning beats a small dense", "Between seeds, methods and rounds"):
        assert text in page
    overlap = made[0]["mask_overlap"]
    assert set(overlap["differs"]) == {
        "other seed",
        "other method, same seed",
        "other round, same run",
    }
