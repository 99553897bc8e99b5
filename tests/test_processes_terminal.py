"""What users read in the terminal: tables, and hints in error messages."""

import errno
import os
import shutil

import pandas as pd
import pytest
from mlflow.exceptions import MlflowException

from experiments.comparison.report import report_text
from experiments.processes import terminal
from experiments.processes.terminal import (
    describe_error,
    did_you_mean,
    is_user_error,
    table_text,
)
from experiments.tracking.summary import emptied_layers, table


def test_a_table_aligns_words_on_the_left_and_values_on_the_right():
    columns = {"method": ["keep", "random"], "weights\nleft": ["9.5%", "100%"], "n": [12, 3]}
    assert table_text(columns).split("\n") == [
        "        weights",
        "method     left   n",
        "keep       9.5%  12",
        "random     100%   3",
    ]


def test_a_table_has_one_line_for_each_row_whatever_is_in_it():
    text = table_text({"name": ["a\nb", "\x1b[31mred"], "value": [1, 2]})
    assert text.splitlines() == ["name         value", "a\\nb             1", "\\x1b[31mred      2"]


def test_a_table_may_have_no_rows():
    assert table_text({"one": [], "two\nlines": []}) == "       two\none  lines"


def test_the_rounds_are_a_table_of_at_most_80_columns():
    rounds = pd.DataFrame(
        {
            "round": [9, 10],
            "sparsity": [0.0, 0.985],
            "valid_accuracy": [0.98765, 1.0],
            "test_accuracy": [0.98, 0.5],
            "early_stop_iteration": [120, 1234567],
            "early_stop_test_accuracy": [0.97, 0.4],
            "compression_ratio": [1.0, 123.44],
            "checkpoint_bytes": [1102, 123456789],
        }
    )
    lines = table(rounds).split("\n")
    assert lines == [
        "       weights     valid      test  early-stop     test at   fewer  checkpoint",
        "round     left  accuracy  accuracy   iteration  early stop  params        size",
        "    9  100.00%    0.9877    0.9800         120      0.9700    1.0x        1 kB",
        "   10    1.50%    1.0000    0.5000   1,234,567      0.4000  123.4x  123,457 kB",
        "Early stop: the iteration with the lowest validation loss.",
    ]
    assert max(map(len, lines)) <= 80


def test_a_comparison_ends_with_a_table_of_the_smallest_matching_networks(tmp_path):
    (tmp_path / "matches.csv").write_text(
        "method,margin,name,round,remaining,gain_low,test_accuracy,dense_test_accuracy\n"
        "keep,0.002,matching subnetwork,11,0.0866,-0.0013,0.9721,0.975\n"
        "lottery,0.002,winning ticket,9,0.134,0.0002,0.9731,0.975\n"
        "random,0.002,,,,,,0.975\n"
    )
    assert report_text(tmp_path).split("\n") == [
        "The smallest network that is shown to match the dense one: the one-sided 95% lower",
        "bound of its validation accuracy minus dense is above -0.20 points.",
        "",
        "         weights     bound      test  dense test",
        "method      left  (points)  accuracy    accuracy",
        "keep       8.66%     -0.13    97.21%      97.50%",
        "lottery    13.4%     +0.02    97.31%      97.50%",
        "random      none      none      none      97.50%",
        "",
        "Winning ticket (its early stop is also no later than the dense network's): lottery.",
        "",
        f"Report: {tmp_path / 'report.html'}",
    ]


def test_a_hint_names_only_what_is_near():
    assert did_you_mean("Lotery", ("keep", "lottery")) == " (did you mean lottery?)"
    assert did_you_mean("snip", ("keep", "lottery")) == ""


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device", "model"),
            "the disk is full, nothing can be written to model: free some space, then try again",
        ),
        (
            MlflowException("(sqlite3.OperationalError) database or disk is full\n[SQL: INSERT"),
            "the disk is full: free some space, then try again",
        ),
        (
            MlflowException("500: could not extend file: No space left on device\nHINT: Check"),
            "the disk is full: free some space, then try again",
        ),
        (RuntimeError("Disk quota exceeded"), "the disk is full: free some space, then try again"),
        (
            shutil.Error("Destination path 'a' already exists"),
            "Destination path 'a' already exists",
        ),
        (OSError(errno.ENOENT, "No such file", "there"), "No such file: there"),
        (OSError(errno.EIO, "Input/output error"), "Input/output error"),
    ],
)
def test_an_error_is_one_line(error, line):
    assert describe_error(error) == line
    assert is_user_error(error)


def test_a_folder_that_cannot_be_copied_is_one_line(tmp_path):
    for name in ("report/plots", "full/plots"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "report/plots/a.svg").write_text("a")
    (tmp_path / "full/plots/a.svg").symlink_to("/dev/full")
    with pytest.raises(shutil.Error) as full:
        shutil.copytree(tmp_path / "report", tmp_path / "full", dirs_exist_ok=True)
    assert describe_error(full.value) == (
        f"the disk is full, nothing can be written to {tmp_path}/full/plots/a.svg: "
        "free some space, then try again"
    )
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/plots").write_text("")
    with pytest.raises(shutil.Error) as taken:
        shutil.copytree(tmp_path / "report", tmp_path / "taken", dirs_exist_ok=True)
    reason = f"[Errno {errno.EEXIST}] {os.strerror(errno.EEXIST)}: '{tmp_path}/taken/plots'"
    assert describe_error(taken.value) == f"{tmp_path}/taken/plots cannot be written: {reason}"


def test_a_database_on_a_full_disk_is_named_by_the_working_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    error = MlflowException("(sqlite3.OperationalError) database or disk is full\n[SQL: INSERT")
    assert describe_error(error) == "the disk is full: free some space, then try again"
    monkeypatch.setattr(terminal, "MOST_FREE", shutil.disk_usage(tmp_path).free + (1 << 40))
    assert describe_error(error) == (
        f"the disk is full, nothing can be written to {tmp_path}: free some space, then try again"
    )


def test_a_layer_is_named_once_when_it_has_lost_its_last_weight():
    rows = [{"layer_sparsity/fc1": share, "layer_sparsity/fc2": 0.5} for share in (0.9, 1.0, 1.0)]
    assert emptied_layers(rows[:1]) == []
    assert emptied_layers(rows[:2]) == ["fc1"]
    assert emptied_layers(rows) == []
