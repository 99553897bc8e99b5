"""Page: a comparison as one HTML file that needs nothing else.

`page` is a pure function of a `Comparison`, plain data without MLflow. Ids, links, dates and times
are in elements of class `volatile`, which are to be removed whole; all else is the same, byte for
byte, on two pages of the same comparison. To add a part: a section in page.html, and what it shows
in `_context`.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from experiments.comparison import figures, page_tables
from experiments.comparison.checklist import Evidence, checklist
from experiments.comparison.in_short import in_short
from experiments.comparison.sentences import Tables, findings
from experiments.comparison.statistics import (
    RULE,
    differences,
    methods_of,
    summarise,
    winning_tickets,
)
from experiments.comparison.wording import listed, remaining
from experiments.figures.style import INK
from pruning.masks import Masks

DESIGNS = {
    "own": "Each method prunes networks of its own, so that what differs between methods is their "
    "masks as well as where they restart.",
    "shared": "All methods retrain the same masks, those of one trunk, so that what differs "
    "between them is where they restart, and not which weights are kept.",
}


@dataclass(frozen=True)
class Failure:
    """An arm that did not finish, and why."""

    method: str
    seed: int
    reason: str


@dataclass(frozen=True)
class Comparison:
    """All that a page needs.

    `setting` is what the arms have in common, parameter by parameter, `defaults` those of its names
    that are as by default. `rounds` has a row per method, seed and round, `epochs` one per method,
    seed, round and epoch, `masks` those of `shown_round` by (method, seed). `links` leads from a
    run's id to its URL, `images` from train, valid and test to how many there are; `command`
    repeats the comparison.
    """

    name: str
    setting: dict[str, str]
    defaults: frozenset[str]
    rounds: pd.DataFrame
    epochs: pd.DataFrame
    masks: dict[tuple[str, int], Masks]
    image_shape: tuple[int, ...]
    shown_round: int
    failed: tuple[Failure, ...]
    links: dict[str, str]
    command: str
    environment: dict[str, str]
    images: dict[str, int]
    data_source: str
    pretrained: bool


@dataclass(frozen=True)
class Picture:
    """A figure on the page; `width` is what it is drawn at, in CSS pixels at least."""

    name: str
    svg: Markup
    caption: str
    width: int


def page(comparison: Comparison) -> str:
    """The comparison as one self-contained HTML file.

    Raises:
        ValueError: If there is no round to show.
    """
    if comparison.rounds.empty:
        raise ValueError("a comparison without a single finished round cannot be shown")
    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    templates.filters["unbroken"] = unbroken
    return templates.get_template("page.html").render(_context(comparison))


def _context(comparison: Comparison) -> dict[str, Any]:
    rounds, shown = comparison.rounds, comparison.shown_round
    summary, gaps = summarise(rounds), differences(rounds)
    tables = Tables(rounds, summary, gaps, winning_tickets(rounds))
    evidence = Evidence(
        rounds,
        summary,
        comparison.setting,
        comparison.environment,
        comparison.images,
        len(comparison.failed),
    )
    here = summary.loc[summary["round"] == shown, "sparsity"]
    return {
        "comparison": comparison,
        "question": question(comparison.setting, methods_of(rounds)),
        "design": DESIGNS.get(comparison.setting.get("masks", "")),
        "changed": _setting(comparison, default=False),
        "unchanged": _setting(comparison, default=True),
        "seeds": [str(seed) for seed in rounds["seed"].unique()],
        "shown": remaining(1 - here.mean()) if len(here) else None,
        "in_short": in_short(tables),
        "findings": findings(tables, shown, last_iteration(comparison.setting, comparison.images)),
        "rule": RULE,
        "pictures": pictures(comparison),
        "tables": _tables(comparison, tables),
        "checklist": checklist(evidence),
    }


def _tables(comparison: Comparison, tables: Tables) -> dict[str, page_tables.Table]:
    rounds, summary, shown = tables.rounds, tables.summary, comparison.shown_round
    return {
        "methods": page_tables.methods_table(rounds),
        "summary_shown": page_tables.shown_table(summary, rounds, shown),
        "summary": page_tables.summary_table(summary),
        "differences_shown": page_tables.shown_differences_table(tables.differences, shown),
        "differences": page_tables.differences_table(tables.differences),
        "tickets": page_tables.tickets_table(tables.tickets),
        "arms": page_tables.arms_table(rounds, comparison.links),
        "failures": page_tables.failures_table(
            [(arm.method, arm.seed, arm.reason) for arm in comparison.failed]
        ),
    }


def _setting(comparison: Comparison, default: bool) -> dict[str, str]:
    return {
        name: value
        for name, value in comparison.setting.items()
        if (name in comparison.defaults) == default
    }


def unbroken(text: str) -> str:
    """The text with no line break within `n = 3` and `p < 0.001`."""
    return re.sub(r"\b([np]) ([=<]) (?=\d)", "\\1\N{NO-BREAK SPACE}\\2\N{NO-BREAK SPACE}", text)


def question(setting: Mapping[str, str], methods: list[str]) -> str:
    """What the comparison asks, in one sentence."""
    model, dataset = (setting.get(name, f"the {name}") for name in ("model", "dataset"))
    if len(methods) == 1:
        return f"How small can {methods[0]} make {model} on {dataset}?"
    return f"Which makes the best small {model} on {dataset}: {listed(methods, 'or')}?"


def last_iteration(setting: Mapping[str, str], images: Mapping[str, int]) -> int | None:
    """Iterations of a retraining round; None where the setting does not tell."""
    epochs, batch = setting.get("retrain_epochs", ""), setting.get("batch_size", "")
    if not (epochs.isdigit() and batch.isdigit() and "train" in images):
        return None
    return int(epochs) * math.ceil(images["train"] / int(batch))


def draw(comparison: Comparison) -> dict[str, Figure]:
    """The figures that apply, by name, in reading order."""
    return figures.draw_all(
        comparison.rounds,
        comparison.epochs,
        comparison.masks,
        comparison.image_shape,
        comparison.shown_round,
    )


def pictures(comparison: Comparison) -> list[Picture]:
    """The figures, in the page's own ink."""
    return [
        _picture(name, figures.to_svg(figure), figures.CAPTIONS[name])
        for name, figure in draw(comparison).items()
    ]


def _picture(name: str, svg: str, caption: str) -> Picture:
    """Ids are made unique on the page: matplotlib uses the same ones in every figure."""
    svg = svg.replace(INK, "currentColor")
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r'(url\(#|href="#|aria-labelledby=")', rf"\1{name}-", svg)
    box = re.search(r'viewBox="[\d.-]+ [\d.-]+ ([\d.]+) ', svg)
    assert box is not None
    return Picture(name, Markup(svg), caption, round(float(box.group(1))))
