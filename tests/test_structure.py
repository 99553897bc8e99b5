"""Imports point one way, and only a few files import each service."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# From the lowest layer up: a package or command imports only from the layers before its own.
LAYERS = (
    {"pruning", "datasets"},
    {"models"},
    {"experiments.training", "experiments.processes"},
    {"experiments.config"},
    {"experiments.rounds"},
    {"experiments.figures"},
    {"experiments.tracking"},
    {
        "experiments.run",
        "experiments.predict",
        "experiments.prepare_faces",
        "experiments.mlproject",
    },
    {"experiments.comparison", "experiments.tuning", "experiments.deployment"},
    {"experiments.compare", "experiments.report", "experiments.tune"},
    {"experiments.export", "experiments.measure"},
    {"experiments.bench"},
    {"experiments.__main__"},
    {"weight_loss"},
)
SERVICES = {
    "mlflow": (
        *(
            f"experiments/tracking/{name}.py"
            for name in ("claims", "log", "networks", "orphan", "paste", "registry", "resume", "ui")
        ),
        *(f"experiments/tracking/{name}.py" for name in ("server", "session")),
        "experiments/comparison/record.py",
        "experiments/comparison/report.py",
        "experiments/tuning/runs.py",
        "experiments/prepare_faces.py",
        *(f"experiments/deployment/{name}.py" for name in ("serve", "served")),
    ),
    "optuna": (
        *(
            f"experiments/tuning/{name}.py"
            for name in ("choose", "figures", "sampling", "storage", "study")
        ),
        "experiments/bench/sampling.py",
    ),
    "ray": ("experiments/processes/ray.py",),
}
PACKAGES = ("pruning", "models", "datasets", "experiments", "weight_loss")
FILES = sorted(path for folder in PACKAGES for path in (ROOT / folder).rglob("*.py"))


def imported(path):
    """The modules that a file imports; `from a import b` counts as a.b."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            yield from (f"{node.module}.{name.name}" for name in node.names)


LAYER_OF = {part: number for number, layer in enumerate(LAYERS) for part in layer}
IMPORTS = {path.relative_to(ROOT).as_posix(): set(imported(path)) for path in FILES}


def part_of(module):
    """`pruning` for `pruning.masks`, `experiments.config` for `experiments.config.fields`."""
    parts = module.split(".")
    return ".".join(parts[: 2 if parts[0] == "experiments" else 1])


@pytest.mark.parametrize("name", [name for name in IMPORTS if name != "experiments/__init__.py"])
def test_imports_point_one_way(name):
    part = part_of(name.removesuffix(".py").replace("/", "."))
    layer = LAYER_OF[part]  # every part is in one
    own = [module for module in IMPORTS[name] if module.partition(".")[0] in PACKAGES]
    assert not [
        module for module in own if part_of(module) != part and LAYER_OF[part_of(module)] >= layer
    ]


@pytest.mark.parametrize("service", SERVICES)
def test_only_these_files_import_a_service(service):
    files = {
        name
        for name, modules in IMPORTS.items()
        if any(module.partition(".")[0] == service for module in modules)
    }
    assert files == set(SERVICES[service])
