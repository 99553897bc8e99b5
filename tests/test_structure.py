"""Arrows point one way, and each service is known to a few files only."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Each room imports from those before it, and from nothing after it.
FLOORS = (
    {"pruning", "models", "datasets"},
    {"experiments.training"},
    {"experiments.config"},
    {"experiments.rounds", "experiments.processes"},
    {"experiments.figures"},
    {"experiments.tracking"},
    {"experiments.run", "experiments.prepare_faces", "experiments.mlproject"},
    {"experiments.comparison", "experiments.tuning"},
    {"experiments.compare", "experiments.report", "experiments.tune"},
    {"experiments.bench"},
    {"experiments.__main__"},
)
SERVICES = {
    "mlflow": (
        *(f"experiments/tracking/{name}.py" for name in ("log", "orphan", "resume", "server")),
        "experiments/tracking/session.py",
        "experiments/comparison/record.py",
        "experiments/comparison/report.py",
        "experiments/tuning/runs.py",
        "experiments/prepare_faces.py",
    ),
    "optuna": tuple(
        f"experiments/tuning/{name}.py"
        for name in ("choose", "figures", "sampling", "storage", "study")
    ),
    "ray": ("experiments/processes/ray.py",),
}
FILES = sorted(
    path
    for folder in ("pruning", "models", "datasets", "experiments")
    for path in (ROOT / folder).rglob("*.py")
)


def imported(path):
    """The modules that a file imports, as `from a import b` means them: a and a.b."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            yield from (f"{node.module}.{name.name}" for name in node.names)


def room_of(module):
    """`pruning` of `pruning.masks`, `experiments.config` of `experiments.config.fields`."""
    parts = module.split(".")
    return ".".join(parts[: 2 if parts[0] == "experiments" else 1])


def floor_of(room):
    return next((number for number, rooms in enumerate(FLOORS) if room in rooms), None)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_arrows_point_one_way(path):
    name = path.relative_to(ROOT).as_posix()
    room = room_of(".".join(path.relative_to(ROOT).with_suffix("").parts))
    for module in imported(path):
        other = room_of(module)
        if other != room and floor_of(other) is not None:
            assert floor_of(other) < floor_of(room), f"{name} imports {module}"
        service = module.partition(".")[0]
        assert service not in SERVICES or name in SERVICES[service]


@pytest.mark.parametrize("service", SERVICES)
def test_the_files_that_know_a_service_exist_and_import_it(service):
    for path in SERVICES[service]:
        assert any(name.partition(".")[0] == service for name in imported(ROOT / path))
