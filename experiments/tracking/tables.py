"""Tables: the rounds of an experiment, and their epochs, as rows that pandas reads.

`rounds.csv` has a row for each round, `epochs.csv` for each epoch. Epochs are counted twice: within
their round (`epoch`), and through all rounds (`step`), as MLflow's charts need it.
"""

from dataclasses import dataclass, field

import pandas as pd

from experiments.config.experiment import Resolved
from experiments.rounds.metrics import METRICS, PER_EPOCH
from experiments.training.loop import Evaluation

Row = dict[str, float]

EPOCH_PREFIX = "epoch/"
INTEGER_COLUMNS = (
    *("round", "epoch", "step"),
    *(name for name, metric in METRICS.items() if metric.whole),
)


@dataclass
class History:
    """Rows so far, in order."""

    rounds: list[Row] = field(default_factory=list)
    epochs: list[Row] = field(default_factory=list)
    steps_logged: frozenset[int] = frozenset()  # including those of an incomplete round

    def frames(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Rounds and epochs, with whole numbers as integers."""
        return _frame(self.rounds), _frame(self.epochs)


def epoch_rows(config: Resolved, number: int, evaluations: tuple[Evaluation, ...]) -> list[Row]:
    """The evaluations at the ends of epochs, as rows of round `number`."""
    before = config.epochs + (number - 1) * config.retrain_epochs if number else 0
    return [
        {
            "round": number,
            "epoch": evaluation.epoch,
            "step": before + evaluation.epoch,
        }
        | {name: getattr(evaluation, name) for name in PER_EPOCH}
        for evaluation in evaluations
        if evaluation.ends_epoch
    ]


def place_of(config: Resolved, step: int) -> tuple[int, int]:
    """The round and the epoch in it of a `step` counted through all rounds."""
    if step <= config.epochs:
        return 0, step
    rounds, epochs = divmod(step - config.epochs - 1, config.retrain_epochs)
    return rounds + 1, epochs + 1


def _frame(rows: list[Row]) -> pd.DataFrame:
    frame = pd.DataFrame(rows)
    whole = [name for name in INTEGER_COLUMNS if name in frame and frame[name].notna().all()]
    return frame.astype(dict.fromkeys(whole, int))
