"""Page: what the reports share that are one HTML file, which needs nothing else.

base.html has the style, macros.html the parts. A report's own template extends base.html. A table
is rows and columns; a column is its heading and a function from a row to a cell.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.figure import Figure

from experiments.figures.style import INK

UNKNOWN = "\N{EN DASH}"


@dataclass(frozen=True)
class Cell:
    """One cell: `value` is the number to sort by, None for words; NaN comes last."""

    text: str
    value: float | None = None
    href: str = ""
    volatile: bool = False


@dataclass(frozen=True)
class Table:
    """A table with a heading for each column, whose cells are all numbers or all words."""

    name: str
    heads: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


Row = Any  # a mapping from column names to values
Cells = Callable[[Row], Cell]
Column = tuple[str, Cells]


def table_of(name: str, rows: pd.DataFrame, columns: Sequence[Column]) -> Table:
    """A table of these rows."""
    records = rows.to_dict("records")
    cells = tuple(tuple(cell(row) for _, cell in columns) for row in records)
    return Table(name, tuple(heading for heading, _ in columns), cells)


def words(name: str) -> Cells:
    """Cells of text."""
    return lambda row: Cell(str(row[name]))


def number(name: str, text: Callable[[float], str] = "{:,.0f}".format) -> Cells:
    """Cells of numbers, and a dash where a number is not known; counts by default."""
    return lambda row: number_cell(row[name], text)


def number_cell(value: Any, text: Callable[[float], str]) -> Cell:
    """A number as a cell; a dash if it is not known."""
    return Cell(UNKNOWN, math.nan) if pd.isna(value) else Cell(text(value), float(value))


def to_svg(figure: Figure) -> str:
    """The figure as an `<svg>` element that is as wide as its container, with text as text.

    The same figure gives the same characters, whatever fonts are installed.
    """
    title, file = figure.get_label(), StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": title, "font.family": "sans-serif"}):
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None, "Title": title})
    text = file.getvalue()
    for pattern, new in (
        (r"^.*?(?=<svg)", ""),  # the XML prolog
        (r"<metadata>.*?</metadata>\s*", ""),
        (r"<defs>\s*<style.*?</style>\s*</defs>\s*", ""),  # it would apply to the whole page
        (r'<svg ([^>]*?)width="\S+" height="\S+"', r'<svg \1width="100%" role="img"'),
        (r'<g id="[^"]*">', "<g>"),  # ids of several figures of one page would clash
        (r"font-family: [^;\"]*sans-serif", "font-family: sans-serif"),
    ):
        text = re.sub(pattern, new, text, flags=re.DOTALL)
    return text


def picture(name: str, svg: str, caption: str) -> dict[str, object]:
    """A figure in the page's own ink, its caption, and the width it is drawn at in CSS pixels.

    Ids get a prefix, since matplotlib repeats them.
    """
    svg = svg.replace(INK, "currentColor")
    svg = re.sub(r'(\bid="|url\(#|href="#|aria-labelledby=")', rf"\1{name}-", svg)
    box = re.search(r'viewBox="[\d.-]+ [\d.-]+ ([\d.]+) ', svg)
    assert box is not None
    width = round(float(box.group(1)))
    return {"name": name, "svg": Markup(svg), "caption": caption, "width": width}


def render(folder: Path, values: dict[str, Any]) -> str:
    """The page of `page.html` in a folder, which may use all that is in this one."""
    templates = Environment(
        loader=FileSystemLoader([folder, Path(__file__).parent]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return templates.get_template("page.html").render(values)
