"""Pictures: the figures of a search as files."""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from experiments.tuning.figures import draw
from experiments.tuning.findings import findings
from experiments.tuning.fronts import draw_fronts, interactive_fronts
from experiments.tuning.interactive import interactive, page_of
from experiments.tuning.search import Search
from experiments.tuning.study import Study


def save_study(study: Study, chosen: int, folder: Path) -> None:
    """Write the figures of a study to `plots/`, and `interactive.html` to point at.

    Args:
        chosen: Number of the trial that is recommended.
    """
    found = findings(study, chosen)
    (folder / "plots").mkdir(exist_ok=True)
    for name, figure in draw(found).items():
        figure.savefig(folder / "plots" / f"{name}.png", facecolor="white")
    (folder / "interactive.html").write_text(page_of(interactive(found)), encoding="utf-8")


def save_search(
    tables: Mapping[str, pd.DataFrame], chosen: Mapping[str, int], search: Search, folder: Path
) -> list[Path]:
    """Write what all studies of a search look like side by side; the files.

    Args:
        tables: Of the studies, by method.
        chosen: Number of the trial that is recommended, by method.
        search: Of any of them.
    """
    files = [folder / "fronts.png", folder / "fronts.html"]
    draw_fronts(tables, chosen, search).savefig(files[0], facecolor="white")
    page = page_of({"fronts": interactive_fronts(tables, chosen, search)})
    files[1].write_text(page, encoding="utf-8")
    return files
