"""Recipes: the training settings of each model family where a parameter is "auto".

To add one, add a line to `RECIPES`. A family without a recipe uses the first.
"""

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Defaults:
    """The values of "auto"; most names are those of the config."""

    epochs: int
    retrain_epochs: int
    optimizer: str
    weight_decay: float
    batch_size: int
    fine_tune_share: float = 0.3  # of lr, the constant rate of keep: docs/results.md says why
    warmup_share: float = 0.0  # of epochs
    grad_clip: float = 0.0
    label_smoothing: float = 0.0
    bf16: bool = False  # use bf16 on hardware that supports it
    threads: int | None = None  # of `run`; None: one per core


RECIPES: dict[str, Defaults] = {
    "lenet": Defaults(
        epochs=10,
        retrain_epochs=10,
        optimizer="adam",
        weight_decay=0.0,
        batch_size=60,
        threads=1,
    ),
    "lightcnn": Defaults(
        epochs=40,
        retrain_epochs=40,
        optimizer="adamw",
        weight_decay=0.05,
        batch_size=20,
        fine_tune_share=1.0,
        warmup_share=0.25,
        grad_clip=1.0,
        label_smoothing=0.1,
        bf16=True,
    ),
}
MODELS_FOR = {"faces": "lightcnn_9", "olivetti": "lightcnn_9"}  # by data set
MODEL = "lenet_300_100"  # for the others


def defaults_for(model: str) -> Defaults:
    """The values of "auto" for a model."""
    first = next(iter(RECIPES.values()))
    return RECIPES.get(model.partition("_")[0], first)


def threads_for(model: str) -> int | None:
    """How many threads a run of its own computes with; None: as many as PyTorch uses.

    The recipe's number does not depend on the command or on the number of cores, since another one
    can change the last bits of a result. OMP_NUM_THREADS overrides it.
    """
    return None if os.environ.get("OMP_NUM_THREADS") else defaults_for(model).threads


def auto(name: str) -> str:
    """The values of "auto" in words, such as "auto is 10 for lenet, 40 for lightcnn"."""
    return f"auto is {by_family(name)}"


def by_family(name: str) -> str:
    """The values of the recipes in words, such as "10 for lenet, 40 for lightcnn"."""
    values = {family: getattr(recipe, name) for family, recipe in RECIPES.items()}
    return ", ".join(
        f"{value:{'' if isinstance(value, str) else 'g'}} for {family}"
        for family, value in values.items()
    )
