"""Links into MLflow's UI and commands to paste, tried in a real browser and a real shell."""

import os
import re
import shlex
import signal
import subprocess
import sys
from contextlib import suppress
from urllib.parse import quote

import mlflow
import pytest
from selenium.common.exceptions import TimeoutException
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from experiments.compare import compare_methods
from experiments.config.comparison import CompareConfig
from experiments.processes.program import program_path
from experiments.tracking import paste, ui
from tests.conftest import QUICK, TIMEOUT
from tests.test_comparison_page_browser import browser
from tests.test_servers import free_port, serving

assert browser  # a fixture


def test_the_first_line_names_the_experiment_and_hides_a_password(store, monkeypatch):
    assert (
        ui.logging_to()
        == f"logging to the MLflow experiment weight-loss in sqlite:///{store}/mlflow.db"
    )
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME")
    assert " experiment Default in " in ui.logging_to()
    run_id = mlflow.MlflowClient().create_run(mlflow.create_experiment("mine")).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)  # as `mlflow run --experiment-name mine` does
    assert " experiment mine in " in ui.logging_to()
    monkeypatch.delenv("MLFLOW_RUN_ID")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://me:secret@host/db")
    assert "secret" not in ui.logging_to() + ui.command()


def test_the_printed_program_starts_although_the_environment_is_not_active(store, monkeypatch):
    program = shlex.split(ui.command())[0]
    done = subprocess.run([program, "--version"], env={"PATH": ""}, capture_output=True, text=True)
    assert done.stdout.startswith("mlflow, version ")
    monkeypatch.chdir(sys.prefix)
    assert ui.command() == f"bin/mlflow ui --backend-store-uri sqlite:///{store}/mlflow.db"
    assert program_path("not-installed") == "not-installed"


def test_without_the_right_to_change_an_experiment_the_charts_have_no_view(store):
    link = ui.chart_link("does-not-exist", "0" * 32, ["1" * 32])
    assert "viewStateShareKey" not in link
    assert link.endswith(f"&searchFilter=attributes.run_id%20IN%20%28%27{'1' * 32}%27%29")


def test_a_pasted_command_names_what_is_not_the_default(store, monkeypatch):
    values = {"data_root": "it's [my] $data/ü", "seed": "1"}
    words = shlex.split(paste.command_to_paste("run", values))
    assert words[0] == "MLFLOW_EXPERIMENT_NAME=weight-loss"
    assert words[2:] == ["-m", "experiments", "run", "--data_root=it's [my] $data/ü", "--seed=1"]
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME")
    assert paste.command_to_paste("run", {}, portable=True) == "python -m experiments run"
    monkeypatch.chdir(store.parent)
    (setting, *_) = shlex.split(paste.command_to_paste("run", {}))
    assert setting == f"MLFLOW_TRACKING_URI=sqlite:///{store}/mlflow.db"
    (odd := store / "ü [1]").mkdir()
    monkeypatch.chdir(odd)
    odd_store = f"sqlite:///{quote(str(odd))}/mlflow.db"  # as MLflow spells it
    monkeypatch.setenv("MLFLOW_TRACKING_URI", odd_store)
    assert paste.command_to_paste("run", {}).startswith(sys.executable)


@pytest.mark.servers
@pytest.mark.browser
def test_the_printed_links_open_the_comparison_and_a_chart_of_its_methods(store, capsys, browser):
    config = CompareConfig(**QUICK, reinits="keep,lottery", seeds="1", executor="inline")
    run_id = compare_methods(config)
    printed = capsys.readouterr().out
    (starting,) = re.findall("run `(.*mlflow ui .*)`, then open", printed)
    links = dict(re.findall(r"^  (\S.*?) +(http\S+)$", printed, re.MULTILINE))
    assert set(links) == {"the comparison", "its arms as charts"}
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    command = [*shlex.split(starting), "--port", str(port), "--workers", "1"]
    with serving(command, f"{address}/health", store):

        def opened(what, *texts):
            browser.get(links[what].replace(ui.LOCAL, address))
            shown = ""

            def has_all(page):
                nonlocal shown
                shown = page.find_element(By.TAG_NAME, "body").text
                return all(text in shown for text in texts)

            with suppress(TimeoutException):
                WebDriverWait(browser, 60).until(has_all)
            assert [text for text in texts if text not in shown] == [], shown
            assert "Error loading" not in shown

        browser.set_window_size(1800, 1200)
        opened("the comparison", mlflow.get_run(run_id).info.run_name, "learning rate")
        opened(
            "its arms as charts",
            "By remaining weights",
            "Group: keep",
            "Group: lottery",
            "test_error",
        )


@pytest.mark.servers
def test_the_command_that_an_interrupted_run_prints_finishes_it(store):
    command = paste.command_to_paste(
        "run", {k: str(v) for k, v in (QUICK | {"rounds": 30}).items()}
    )
    process = subprocess.Popen(
        ["bash", "-c", f"{command} & echo $!; wait"], stdout=subprocess.PIPE, text=True
    )
    with process:
        pid, lines = int(process.stdout.readline()), []
        for line in process.stdout:
            lines.append(line)
            if line.startswith("round  3/30"):
                os.kill(pid, signal.SIGTERM)
    (hint,) = re.findall("continue after the last complete round: (.*)", "".join(lines))
    done = subprocess.run(["bash", "-c", hint], capture_output=True, text=True, timeout=TIMEOUT)
    assert done.returncode == 0, done.stderr
    (run,) = mlflow.search_runs(search_all_experiments=True, output_format="list")
    assert run.info.status == "FINISHED"
    assert run.data.metrics["sparsity"] == pytest.approx(1 - 0.8**30, abs=1e-2)
