"""Config: every knob of an experiment, in one typed list.

`python -m experiments mlproject` writes MLproject from this list. Where a field may be "auto", None
stands for it here, and `resolved` fills it in: experiments/recipes.py says with what.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Annotated, Any

import torch
from pydantic import AfterValidator, Field, model_validator

from datasets import DATASETS
from experiments.optimizers import OPTIMIZERS
from experiments.parameters import (
    AUTO,
    Amount,
    Parameters,
    Path,
    Positive,
    Rate,
    Share,
    checked,
    one_of,
    or_auto,
    parse,
)
from experiments.recipes import defaults_for, model_for
from experiments.schedules import SCHEDULES
from models import build_model
from pruning.criteria import CRITERIA
from pruning.masks import MOST_ROUNDS, SCOPES
from pruning.reinit import REINITS

NONE = "none"
PRECISIONS = ("float32", "bf16")


def _known_model(name: str | None) -> str | None:
    if name is None:
        return None
    with torch.device("meta"):  # takes no memory, however large
        try:
            build_model(name, (1, 128, 128), 2)
        except (TypeError, RuntimeError):
            raise ValueError(f"model is larger than any memory, got {name[:80]}") from None
    return name


def _run_id(text: str) -> str:
    if text != NONE and not re.fullmatch("[0-9a-f]{32}", text):
        raise ValueError("must be the id of a run, 32 hexadecimal digits")
    return text


_unit = Field(gt=0, lt=1)


class Config(Parameters):
    """One experiment as it is asked for."""

    reinit: Annotated[str, one_of(*REINITS)] = Field(
        "lottery", description=f"where survivors restart: {', '.join(REINITS)}"
    )
    dataset: Annotated[str, one_of(AUTO, *DATASETS)] = Field(
        AUTO, description=f"{', '.join(DATASETS)}; auto is mnist if it can be had, else digits"
    )
    model: Annotated[str | None, AfterValidator(_known_model), or_auto] = Field(
        None,
        description=(
            "lenet_n_n... (fully connected, of sizes n), lightcnn_9, lightcnn_29, lightcnn_29_v2; "
            "auto is lightcnn_9 for photographs, else lenet_300_100"
        ),
    )
    pretrained: Path = Field(
        NONE, description="file of published values that the dense network starts from"
    )
    criterion: Annotated[str, one_of(*CRITERIA)] = Field(
        "magnitude", description=f"which weights go first: {', '.join(CRITERIA)}"
    )
    scope: Annotated[str, one_of(*SCOPES)] = Field(
        "layer", description="layer: each layer loses the same share; global: all compete"
    )
    prune_rate: Annotated[float, _unit] = Field(
        0.2, description="share of the surviving weights that a round removes"
    )
    output_prune_rate: Annotated[Share | None, or_auto] = Field(
        None, description="the same for the output layer (0 spares it); auto is prune_rate"
    )
    target_sparsity: Annotated[float, _unit] = Field(
        0.9, description="share of the weights that is gone at the end, reached exactly"
    )
    rounds: Annotated[int, Field(ge=0, le=MOST_ROUNDS)] = Field(
        0, description="exactly so many full rounds whatever the target; 0 is as many as it needs"
    )
    epochs: Annotated[Positive | None, or_auto] = Field(
        None, description="epochs of the dense network; auto is 10 for lenet, 40 for lightcnn"
    )
    retrain_epochs: Annotated[Positive | None, or_auto] = Field(
        None, description="epochs of every later round; auto is 10 for lenet, 40 for lightcnn"
    )
    rewind_epoch: Annotated[int, Field(ge=0)] = Field(
        1, description="for reinit=rewind: survivors return to their values after this epoch"
    )
    optimizer: Annotated[str | None, one_of(*OPTIMIZERS), or_auto] = Field(
        None, description=f"{', '.join(OPTIMIZERS)}; auto is adam for lenet, adamw for lightcnn"
    )
    lr: Annotated[Rate | None, or_auto] = Field(
        None, description="learning rate; auto is 0.0012 for adam, 0.001 for adamw, 0.1 for sgd"
    )
    retrain_lr: Annotated[Rate | None, or_auto] = Field(
        None,
        description="learning rate of every later round; auto is lr, for keep "
        "where the schedule ends (0.3 of lr for lightcnn)",
    )
    schedule: Annotated[str, one_of(*SCHEDULES)] = Field(
        "cosine", description=f"course of the learning rate in a round: {', '.join(SCHEDULES)}"
    )
    warmup_epochs: Annotated[Amount | None, or_auto] = Field(
        None,
        description=(
            "of epochs, how many the rate rises first, and so in proportion when retraining; auto "
            "is 0 for lenet, a quarter of epochs for lightcnn"
        ),
    )
    momentum: Share = Field(0.0, description="for optimizer=sgd")
    weight_decay: Annotated[Amount | None, or_auto] = Field(
        None,
        description=(
            "adam, sgd: L2 penalty, added to the gradient; adamw: decay of the weights; "
            "auto is 0 for lenet, 0.05 for lightcnn"
        ),
    )
    grad_clip: Annotated[Amount | None, or_auto] = Field(
        None,
        description="largest norm of the gradient, 0 is any; auto is 0 for lenet, 1 for lightcnn",
    )
    label_smoothing: Annotated[Share | None, or_auto] = Field(
        None,
        description="share of a label given to all classes; auto is 0 for lenet, 0.1 for lightcnn",
    )
    batch_size: Annotated[Positive | None, or_auto] = Field(
        None, description="images in a training step; auto is 60 for lenet, 20 for lightcnn"
    )
    precision: Annotated[str, one_of(AUTO, *PRECISIONS)] = Field(
        AUTO, description="float32 or bf16; auto is bf16 for lightcnn on hardware that has it"
    )
    train_limit: Annotated[int, Field(ge=0)] = Field(
        0, description="use only so many training images, for quick looks; 0 is all"
    )
    eval_every: Annotated[int, Field(ge=0)] = Field(
        0, description="iterations between looks for early stopping; 0 is once an epoch"
    )
    seed: Annotated[int, Field(ge=0, lt=2**63)] = Field(
        0, description="of everything random: initial values, split, batches, scores"
    )
    device: Annotated[str, one_of(AUTO, "cpu", "cuda")] = Field(
        AUTO, description="cpu or cuda; auto is cuda where there is one"
    )
    data_root: Path = Field(
        "data", description="folder of downloaded data sets; for faces, of the photographs"
    )
    resume: Annotated[str, AfterValidator(_run_id)] = Field(
        NONE, description="id of an interrupted run to continue in place"
    )

    @model_validator(mode="after")
    def _sound_together(self) -> "Config":
        if self.momentum and self.optimizer not in (None, "sgd"):
            raise ValueError(
                f"momentum is for optimizer=sgd, got {self.momentum} with {self.optimizer}"
            )
        if self.reinit == "rewind" and self.rewind_epoch > (self.epochs or self.rewind_epoch):
            raise ValueError(
                f"rewind_epoch must be at most epochs ({self.epochs}), got {self.rewind_epoch}"
            )
        if self.warmup_epochs and self.epochs and self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"warmup_epochs must be less than epochs ({self.epochs}), "
                f"got {self.warmup_epochs:g}"
            )
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("device=cuda needs a CUDA GPU that torch can see, and there is none")
        return self

    def _fine_tunes(self) -> bool:
        return REINITS[self.reinit].schedule == "final"

    def settings(self) -> dict[str, Any]:
        """What decides the result: nothing of the machine, so that checkpoints are alike."""
        return self.model_dump(exclude={"data_root", "resume", "device"})

    def resolved(self, dataset: str) -> "Resolved":
        """The config with every "auto" replaced by what is used; `dataset` is what was loaded.

        Raises:
            ValueError: If what was asked for does not go with what replaces the rest.
        """
        model = self.model or model_for(dataset)
        defaults = asdict(defaults_for(model))
        fast, share = defaults.pop("bf16"), defaults.pop("warmup_share")
        fine_tune_share = defaults.pop("fine_tune_share")
        said = {name: value for name, value in self.model_dump().items() if value is not None}
        values = defaults | said | {"dataset": dataset, "model": model}
        values.setdefault("lr", OPTIMIZERS[values["optimizer"]].default_lr)
        values.setdefault("warmup_epochs", share * values["epochs"])
        end = SCHEDULES[self.schedule](1.0) if fine_tune_share is None else fine_tune_share
        values.setdefault("retrain_lr", values["lr"] * (end if self._fine_tunes() else 1.0))
        values.setdefault("output_prune_rate", self.prune_rate)
        if self.device == AUTO:
            values["device"] = "cuda" if torch.cuda.is_available() else "cpu"
        if self.precision == AUTO:
            values["precision"] = "bf16" if fast and has_bf16(values["device"]) else "float32"
        return checked(Resolved, values)


class Resolved(Config):
    """One experiment as it is done: nothing is "auto" any more."""

    model: str
    epochs: int
    retrain_epochs: int
    optimizer: str
    lr: float
    retrain_lr: float
    warmup_epochs: float
    weight_decay: float
    grad_clip: float
    label_smoothing: float
    batch_size: int
    output_prune_rate: float


def has_bf16(device: str) -> bool:
    """Whether the hardware multiplies bfloat16 numbers itself."""
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return any(
        bool(there) for name, there in torch.cpu.get_capabilities().items() if "bf16" in name
    )


def config_from(values: Mapping[str, Any]) -> Config:
    """A checked config; raises as `checked`."""
    return checked(Config, values)


def parse_config(argv: Sequence[str] | None = None) -> Config:
    """The config of a command line; raises as `parse`."""
    return parse(Config, "run", argv)
