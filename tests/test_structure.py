"""Arrows point one way, and the peers' package names stay ours."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("pruning", "models", "datasets", "experiments")
TRACKERS = tuple(
    f"experiments/{name}.py"
    for name in (
        *("tracking", "held_run", "server", "stored_run", "leftover", "prepare_faces"),
        *("report", "comparison/store", "tuning/runs"),
    )
)
STUDIES = tuple(
    f"experiments/tuning/{name}.py"
    for name in ("storage", "study", "sampling", "table", "findings", "interactive")
)
SERVICES = {"mlflow": TRACKERS, "optuna": STUDIES, "ray": ("experiments/tuning/cluster.py",)}
FILES = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name.partition(".")[0] for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            yield str(node.module).partition(".")[0]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_arrows_point_one_way(path):
    folder = path.relative_to(ROOT).parts[0]
    found = set(imports(path))
    if folder != "experiments":
        assert not found & ((set(FOLDERS) | set(SERVICES)) - {folder})
    for service, where in SERVICES.items():
        assert service not in found or str(path.relative_to(ROOT)) in where


@pytest.mark.parametrize("service", SERVICES)
def test_the_files_that_know_a_service_are_there_and_do_import_it(service):
    assert all(service in imports(ROOT / path) for path in SERVICES[service])


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_stay_small(path):
    assert len(path.read_text().splitlines()) <= 300
