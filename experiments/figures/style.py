"""Style: the colours, markers and layout that the figures of a report share.

A method has the same style in every figure (`styles`). Everything but data is drawn in `INK` on a
transparent background, so that a dark page has one colour to replace.
"""

from collections.abc import Sequence
from itertools import count
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.figures import experiment

INK = "#1b1f24"
COLOURS = (*experiment.COLOURS[:6], "#8a8a8a")  # grey instead of black, which is too close to INK
MARKERS = "os^DvPX<>p*hd8"
DASHED = (0, (5, 3))
FIXED = ("lottery", "random", "keep", "rewind", "lr_rewind", "sign", "shuffle", "random_scaled")
report_style = rc_context(
    {
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.edgecolor": INK,
        "figure.facecolor": "none",
        "axes.facecolor": "none",
        "axes.axisbelow": True,
        "axes.titlelocation": "left",
        "axes.titlesize": 9.5,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "legend.frameon": False,
        "legend.fontsize": 8.5,
        "legend.title_fontsize": 8.5,
        "font.family": "sans-serif",
        "font.size": 9,
    }
)


def styles(methods: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Arguments of `Axes.plot` for each method: `color`, `marker`, `ls` (dashes) and `ms`.

    A reinit method has its own style, any other gets the next free one.

    Colours repeat after seven methods, with different dashes; no two methods share a style.
    """
    fixed = {method: FIXED.index(method) for method in methods if method in FIXED}
    free = (slot for slot in count() if slot not in fixed.values())
    slots = {method: fixed[method] if method in fixed else next(free) for method in methods}
    return {method: _style(slot) for method, slot in slots.items()}


def _style(slot: int) -> dict[str, Any]:
    lap, colour = divmod(slot, len(COLOURS))
    dashes = (0, (4.0, 1.5, *(1.0, 1.5) * (lap - 1))) if lap else "-"
    marker = MARKERS[slot % len(MARKERS)]
    return {"color": COLOURS[colour], "marker": marker, "ls": dashes, "ms": 4}


def new_figure(
    title: str, panels: int = 1, height: float = 4.4, sharey: bool = False
) -> tuple[Figure, list[Axes]]:
    """An empty figure with a title and a number of panels, at most three in a row."""
    columns = min(panels, 3)
    rows = -(-panels // columns)
    size = (6.4, height if rows == 1 else 1 + 2.3 * rows)
    figure = Figure(figsize=size, layout="constrained", dpi=150, label=title)
    figure.suptitle(title, x=0.01, ha="left", fontsize=10.5)
    axes = list(figure.subplots(rows, columns, squeeze=False, sharey=sharey).flatten())
    for each in axes:  # ticks are made when drawn, outside of `report_style`
        each.tick_params(color=INK, labelcolor=INK, grid_color=INK, grid_alpha=0.13, labelsize=8.5)
        each.grid(True, lw=0.7)
    for empty in axes[panels:]:
        empty.remove()
    return figure, axes[:panels]
