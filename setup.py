"""The build step of `pip install .`: our packages become packages inside `weight_loss`.

`datasets` and `models` are also the names of well-known packages, so ours are never installed at
the top level. Their files change in one respect: imports such as `from datasets import Split`
become `from weight_loss.datasets import Split`.
"""

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

INSIDE = ("pruning", "models", "datasets", "experiments")
IMPORT = re.compile(rf"^( *from )((?:{'|'.join(INSIDE)})[.\w]* import )", re.MULTILINE)


class BuildInside(build_py):
    """Copies the packages, with their imports rewritten."""

    def run(self) -> None:
        """Build into an empty folder, so that no removed file is installed."""
        if self.editable_mode:
            raise SystemExit("a checkout needs no editable install: use it from its root")
        shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()

    def build_module(self, module: str, module_file: str, package: str) -> tuple[str, bool]:
        """Copy a file."""
        copied = super().build_module(module, module_file, package)
        path = Path(copied[0])
        text = path.read_text(encoding="utf-8")
        path.write_text(IMPORT.sub(r"\1weight_loss.\2", text), encoding="utf-8")
        return copied


found = find_packages(include=[*INSIDE, *(f"{name}.*" for name in INSIDE)])
setup(
    packages=["weight_loss", *(f"weight_loss.{name}" for name in found)],
    package_dir={"weight_loss": "weight_loss"} | {f"weight_loss.{name}": name for name in INSIDE},
    package_data={"": ["*.html"]},
    cmdclass={"build_py": BuildInside},
)
