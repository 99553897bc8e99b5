"""The installed package: everything is inside `weight_loss`, and works from any folder."""

import ast
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

from experiments.config.experiment import config_from
from experiments.tracking.fingerprint import code_digest
from tests.conftest import QUICK, ROOT, TIMEOUT

OURS = ("pruning", "models", "datasets", "experiments")
TOP = (*OURS, "weight_loss")
REQUIREMENTS = ("requirements.txt", "requirements-cluster.txt", "requirements-dev.txt")
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
OFFLINE = ["--no-deps", "--no-build-isolation", "--no-index"]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of the checkout to build in, since builds leave files."""
    copy = tmp_path_factory.mktemp("checkout")
    for name in TOP:
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in (*REQUIREMENTS, "pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    return copy


@pytest.fixture(scope="module")
def wheel(checkout):
    """The wheel, built although an earlier build has left a file that no longer exists.

    It is built where the locale's encoding is ASCII: our files are UTF-8 whatever the locale is.
    """
    old = checkout / "build" / "lib" / "weight_loss"
    old.mkdir(parents=True)
    (old / "removed.py").touch()
    build = [*PIP, "wheel", "-q", *OFFLINE, "-w", checkout / "dist", checkout]
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    subprocess.run(build, check=True, env=os.environ | ascii_only)
    (made,) = (checkout / "dist").iterdir()
    return made


@pytest.fixture(scope="module")
def site(wheel, tmp_path_factory):
    """A folder with the wheel installed."""
    folder = tmp_path_factory.mktemp("site")
    argv = [*PIP, "install", "-q", "--no-deps", "--no-index", "--target", folder, wheel]
    subprocess.run(argv, check=True)
    return folder


def test_nothing_is_installed_at_the_top_level_but_weight_loss(site):
    names = {path.name for path in site.iterdir()}
    assert names == {"weight_loss", "bin", f"weight_loss-{version(site)}.dist-info"}
    installed = {path.relative_to(site / "weight_loss") for path in site.rglob("*.py")}
    ours = {path.relative_to(ROOT) for name in OURS for path in (ROOT / name).rglob("*.py")}
    assert installed == ours | {Path("__init__.py")}
    assert (site / "weight_loss/experiments/comparison/page.html").is_file()


def version(site):
    (folder,) = site.glob("*.dist-info")
    return folder.name.removeprefix("weight_loss-").removesuffix(".dist-info")


def test_installed_files_differ_only_in_their_imports(site):
    for path in (site / "weight_loss").rglob("*.py"):
        text = path.read_text()
        name = path.relative_to(site / "weight_loss")
        source = ROOT / ("weight_loss/__init__.py" if name == Path("__init__.py") else name)
        assert re.sub(r"^( *from )weight_loss\.", r"\1", text, flags=re.M) == source.read_text(), (
            name
        )
        for node in ast.walk(ast.parse(text)):
            modules = [node.module] if isinstance(node, ast.ImportFrom) else []
            modules += [a.name for a in node.names] if isinstance(node, ast.Import) else []
            assert not {module.partition(".")[0] for module in modules} & set(OURS), name


def test_the_requirements_files_are_the_one_list(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
        metadata = archive.read(name).decode()
    required = re.findall(r"^Requires-Dist: ([^;\n]+)(?:; extra == \"(\w+)\")?$", metadata, re.M)
    lists = [
        [line for line in (ROOT / name).read_text().splitlines() if line[0] != "#"]
        for name in REQUIREMENTS
    ]
    for extra, expected in (("", lists[0]), ("cluster", lists[1]), ("dev", lists[1] + lists[2])):
        assert [package for package, of in required if of == extra] == expected


SESSION = f"""
import datasets, models
import weight_loss

run_id = weight_loss.run_experiment(**{QUICK | {"epochs": 1, "rounds": 1}})
network = weight_loss.load_network(run_id)
score = weight_loss.evaluate(network, weight_loss.data_of(network).test)
assert score.accuracy == network.metrics["test_accuracy"]
assert datasets.marker == models.marker == "theirs"

from weight_loss.experiments.config.experiment import config_from
from weight_loss.experiments.tracking.environment import environment
from weight_loss.experiments.tracking.fingerprint import code_digest
print(code_digest(config_from({{}}).resolved("mnist")), environment("cpu")["git_commit"])
"""


@pytest.fixture
def installed(site, tmp_path, monkeypatch):
    """The search path of an environment with other packages called `datasets` and `models`."""
    for name in ("datasets", "models"):
        (tmp_path / "theirs" / name).mkdir(parents=True)
        (tmp_path / "theirs" / name / "__init__.py").write_text('marker = "theirs"\n')
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "theirs"), str(site)]))


def run(*argv):
    return subprocess.run(argv, capture_output=True, text=True, timeout=TIMEOUT)


def test_an_experiment_runs_beside_packages_of_the_same_names(store, site, installed):
    """Installed code has the digest of the checkout's, so that runs of either are reused."""
    subprocess.run(["git", "init", "-q", site.parent], check=True)  # not the commit of our code
    done = run(sys.executable, "-c", SESSION)
    assert done.returncode == 0, done.stderr
    here = code_digest(config_from({}).resolved("mnist"))
    assert done.stdout.splitlines()[-1] == f"{here} unknown"
    program = Path(sys.executable).with_name("mlflow")
    assert f"To look at it, run `{program} ui " in done.stdout


def test_the_console_script_has_the_commands(site, installed):
    script = site / "bin" / "weight-loss"
    listed = run(script, "--help")
    assert listed.stdout.startswith("usage: weight-loss COMMAND [--help]\n")
    shown = run(script, "run", "--help")
    assert shown.stdout.startswith("usage: weight-loss run [-h] [--reinit ...]")
    rewriting = run(script, "mlproject")
    assert (rewriting.returncode, rewriting.stdout) == (2, "")
    assert rewriting.stderr.startswith("error: mlproject is for a checkout")


def test_an_editable_install_is_refused_in_one_line(checkout, tmp_path):
    refused = run(*PIP, "install", "-q", *OFFLINE, "--target", tmp_path, "-e", checkout)
    assert refused.returncode != 0
    lines = [line.strip() for line in refused.stderr.splitlines()]
    assert "a checkout needs no editable install: use it from its root" in lines
    assert list(tmp_path.iterdir()) == []


def test_importing_weight_loss_imports_nothing_slow():
    slow = {"mlflow", "pandas", "matplotlib", "sklearn", "torchvision", "optuna", "scipy", "ray"}
    code = f"import sys, weight_loss; print(sorted(sys.modules.keys() & {slow}))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


def test_the_servers_of_compose_are_reachable_only_from_this_machine_unless_asked():
    services = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    ports = {name: service["ports"] for name, service in services.items()}
    assert ports == {
        "postgres": ["${BIND:-127.0.0.1}:5432:5432"],
        "mlflow": ["${BIND:-127.0.0.1}:5000:5000"],
        "dashboard": ["127.0.0.1:8080:8080"],
    }
