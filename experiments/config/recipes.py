"""Recipes: how a family of models is trained where the config says "auto".

To add one: a line in `RECIPES`. A family without is trained as the first.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Defaults:
    """What "auto" stands for; most names are the config's."""

    epochs: int
    retrain_epochs: int
    optimizer: str
    weight_decay: float
    batch_size: int
    warmup_share: float = 0.0  # of epochs
    grad_clip: float = 0.0
    label_smoothing: float = 0.0
    fine_tune_share: float | None = None  # of lr, with which keep retrains; None: where lr ends
    bf16: bool = False  # whether precision is bf16 where the hardware has it


RECIPES: dict[str, Defaults] = {
    "lenet": Defaults(
        epochs=10, retrain_epochs=10, optimizer="adam", weight_decay=0.0, batch_size=60
    ),
    "lightcnn": Defaults(
        epochs=40,
        retrain_epochs=40,
        optimizer="adamw",
        weight_decay=0.05,
        batch_size=20,
        warmup_share=0.25,
        grad_clip=1.0,
        label_smoothing=0.1,
        fine_tune_share=0.3,
        bf16=True,
    ),
}
MODELS_FOR = {"faces": "lightcnn_9", "olivetti": "lightcnn_9"}  # by data set
MODEL = "lenet_300_100"  # for the others


def model_for(dataset: str) -> str:
    """The model that a data set is usually met with."""
    return MODELS_FOR.get(dataset, MODEL)


def defaults_for(model: str) -> Defaults:
    """What "auto" stands for with a model."""
    usual = next(iter(RECIPES.values()))
    return RECIPES.get(model.partition("_")[0], usual)
