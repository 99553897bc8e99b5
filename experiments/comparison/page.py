"""Page: a comparison as one HTML file that needs nothing else.

Ids, links and times are in elements of class `volatile`, which can be removed whole; the rest is
the same, byte for byte, on two pages of the same comparison. To add a part: a section in page.html,
and what it shows in `render_page`.
"""

import re
from collections.abc import Mapping
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from experiments.comparison import findings
from experiments.comparison.checklist import checklist
from experiments.comparison.figures import CAPTIONS
from experiments.comparison.page_tables import tables
from experiments.comparison.results import Comparison
from experiments.comparison.text import count, listed, weights
from experiments.figures.style import INK


def render_page(comparison: Comparison, drawings: Mapping[str, str]) -> str:
    """The comparison as one self-contained HTML file.

    `drawings` are the figures of `draw_all` as SVG, by name; the first stands at the top.
    """
    shown = comparison.rounds.loc[comparison.rounds["round"] == comparison.shown_round, "sparsity"]
    main, *others = [picture(name, svg) for name, svg in drawings.items()]
    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return templates.get_template("page.html").render(
        comparison=comparison,
        question=question(comparison),
        headline=findings.headline(comparison),
        caveats=findings.caveats(comparison),
        incomplete=findings.incomplete(comparison.rounds),
        early_stop_notes=findings.early_stop_notes(comparison),
        shown=weights(1 - shown.mean()),
        main=main,
        pictures=others,
        tables=tables(comparison),
        checklist=checklist(comparison),
        count=count,
    )


def question(comparison: Comparison) -> str:
    """What the comparison asks."""
    model, dataset = (comparison.setting[name] for name in ("model", "dataset"))
    methods = comparison.methods
    if len(methods) == 1:
        return f"How small can {methods[0]} make {model} on {dataset}?"
    if len(methods) > 4:
        return f"Which of {len(methods)} methods finds the best small {model} on {dataset}?"
    names = listed(methods, "or")
    return f"Which method finds the best small {model} on {dataset}: {names}?"


def picture(name: str, svg: str) -> dict[str, object]:
    """A figure in the page's own ink, its caption, and the width it is drawn at in CSS pixels.

    Ids get a prefix, since matplotlib repeats them.
    """
    svg = svg.replace(INK, "currentColor")
    svg = re.sub(r'(\bid="|url\(#|href="#|aria-labelledby=")', rf"\1{name}-", svg)
    box = re.search(r'viewBox="[\d.-]+ [\d.-]+ ([\d.]+) ', svg)
    assert box is not None
    width = round(float(box.group(1)))
    return {"name": name, "svg": Markup(svg), "caption": CAPTIONS[name], "width": width}
