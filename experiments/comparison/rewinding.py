"""Rewinding: how early may a network be rewound? Accuracy and stability against the epoch.

Frankle et al. 2020, arXiv:1912.05671: tickets match the dense network from the point in training
on at which it is stable to the order of the images.
"""

import re

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from experiments.comparison.statistics import ACCURACY, dense_interval, measured, summarise
from experiments.comparison.text import in_percent
from experiments.config.comparison import EPOCH
from experiments.figures.style import DASHED, INK, new_figure, report_style, styles
from experiments.rounds.metrics import METRICS

SHOWN = (ACCURACY, "test_barrier")  # what is drawn, of what was measured


def by_epoch(rounds: pd.DataFrame, shown_round: int) -> pd.DataFrame:
    """The rows of `summarise` for methods that rewind to several epochs.

    Returns:
        Rows of the shown round with `base`, the method without its epoch, and `epoch`; empty if no
        method rewinds to more than one.
    """
    table = summarise(rounds[rounds["round"].isin([0, shown_round])])
    table = table[table["round"] == shown_round]
    parts = table["method"].str.extract(re.compile(rf"^(?P<base>.+){EPOCH}(?P<epoch>\d+)$"))
    table = table.assign(base=parts["base"], epoch=parts["epoch"].astype("Float64")).dropna(
        subset="base"
    )
    several = table.groupby("base")["epoch"].transform("nunique") > 1
    return table[several].sort_values("epoch", kind="stable")


@report_style
def draw_rewinding(rounds: pd.DataFrame, shown_round: int) -> Figure | None:
    """Accuracy and error barrier against the epoch to rewind to, if there are several."""
    table = by_epoch(rounds, shown_round)
    if table.empty:
        return None
    names = [name for name in SHOWN if name in measured(rounds)]
    figure, panels = new_figure("Rewinding: which epoch to return to", len(names))
    for axes, name in zip(panels, names, strict=True):
        scale = 100 if in_percent(name) else 1
        dense = dense_interval(rounds, name) * scale
        axes.axhline(dense["mean"], color=INK, lw=1, ls=DASHED, zorder=1, label="dense network")
        for base, style in styles(list(table["base"].unique())).items():
            own = table[table["base"] == base].set_index("epoch")
            mean, low, high = (scale * own[f"{name}_{end}"] for end in ("mean", "low", "high"))
            bars = [(mean - low).astype(float), (high - mean).astype(float)]
            x = own.index.astype(float)
            axes.errorbar(x, mean, bars, lw=1.3, elinewidth=1, capsize=1.5, label=base, **style)
        axes.set_title(METRICS[name].label + (" (%)" if scale > 1 else ""))
        axes.set_xlabel("epoch to rewind to")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    handles = panels[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=4)
    return figure
