"""Page: a comparison as one HTML file that needs nothing else.

Ids, links and times are in elements of class `volatile`, which can be removed whole; the rest is
the same, byte for byte, on two pages of the same comparison. To add a part: a section in page.html,
and what it shows in `render_page`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.comparison import findings
from experiments.comparison.checklist import checklist
from experiments.comparison.figures import CAPTIONS
from experiments.comparison.page_tables import tables
from experiments.comparison.results import Comparison
from experiments.comparison.statistics import pruned
from experiments.comparison.text import count, listed, points, weights
from experiments.figures.page import picture, render


def render_page(comparison: Comparison, drawings: Mapping[str, str]) -> str:
    """The comparison as one self-contained HTML file.

    `drawings` are the figures of `draw_all` as SVG, by name; the first stands at the top.
    """
    shown = pruned(comparison.rounds[comparison.rounds["round"] == comparison.shown_round])
    pictures = [picture(name, svg, CAPTIONS[name]) for name, svg in drawings.items()]
    values: dict[str, Any] = {
        "comparison": comparison,
        "question": question(comparison),
        "headline": findings.headline(comparison),
        "caveats": findings.caveats(comparison),
        "incomplete": findings.incomplete(comparison.rounds),
        "note_on_tests": findings.note_on_tests(comparison),
        "margin": points(comparison.margin),
        "early_stop_notes": findings.early_stop_notes(comparison),
        "shown": weights(1 - shown["sparsity"].mean()),
        "main": pictures[0],
        "pictures": pictures[1:],
        "tables": tables(comparison),
        "checklist": checklist(comparison),
        "count": count,
    }
    return render(Path(__file__).parent, values)


def question(comparison: Comparison) -> str:
    """What the comparison asks."""
    model, dataset = (comparison.setting[name] for name in ("model", "dataset"))
    plain = [name for name in comparison.methods if name not in comparison.controls]
    methods = plain or comparison.methods
    if len(methods) == 1:
        return f"How small can {methods[0]} make {model} on {dataset}?"
    if len(methods) > 4:
        return f"Which of {len(methods)} methods finds the best small {model} on {dataset}?"
    names = listed(methods, "or")
    return f"Which method finds the best small {model} on {dataset}: {names}?"
