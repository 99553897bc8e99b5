"""In short: what is the answer, for someone who reads three sentences?"""

import pandas as pd

from experiments.comparison.sentences import RANKING, Tables, accuracy, smallest_round
from experiments.comparison.statistics import dense_interval
from experiments.comparison.wording import POINTS, difference, listed, percent, remaining


def in_short(tables: Tables) -> list[str]:
    """The answer in three sentences at most: the best small network, its rivals, the tickets."""
    summary, number = tables.summary, smallest_round(tables.summary)
    here = summary[summary["round"] == number]
    if number == 0:
        return accuracy(summary, tables.differences, number)
    ranked = here.sort_values(RANKING, ascending=False, kind="stable")
    best, others = str(ranked["method"].iloc[0]), [str(name) for name in ranked["method"].iloc[1:]]
    dense = percent(dense_interval(tables.rounds, POINTS.metric)["mean"])
    said = "is the most accurate on average, with" if others else "has"
    return [
        f"With {remaining(1 - here['sparsity'].mean())} of the weights, {best} {said} "
        f"{percent(ranked['test_accuracy_mean'].iloc[0])} on test images; the dense networks have "
        f"{dense}.",
        *_rivals(tables.differences, number, best, others),
        _smallest_tickets(tables.tickets),
    ]


def _rivals(differences: pd.DataFrame, number: int, best: str, others: list[str]) -> list[str]:
    gaps = {name: difference(differences, POINTS.metric, number, best, name) for name in others}
    known = {name: gap for name, gap in gaps.items() if gap is not None and gap.n > 1}
    if not known:
        return ["No two seeds tell whether that is more than chance."] if others else []
    ahead = [name for name, gap in known.items() if gap.shows]
    same = [name for name, gap in known.items() if gap.same and gap.value]
    level = [name for name in known if name not in (*ahead, *same)]
    counts = sorted({gap.n for gap in known.values()})
    seeds = listed([str(count) for count in counts], "or") + " seeds"
    shown = [f"show its lead over {listed(ahead)}"] if ahead else []
    shown += [f"put it equally far above {listed(same)}"] if same else []
    shown += [f"cannot tell it from {listed(level)}"] if level else []
    count = len(others) + 1
    chosen = f", not corrected for choosing the best of {count}" if count > 2 else ""
    return [f"{seeds} {listed(shown)} (95% intervals{chosen})."]


def _smallest_tickets(tickets: pd.DataFrame) -> str:
    found = [
        f"{row['method']} {'none' if pd.isna(row['round']) else remaining(row['remaining'])}"
        for _, row in tickets.iterrows()
    ]
    kept = ", ".join(found)
    return f"The smallest networks that match the dense one on validation images: {kept}."
