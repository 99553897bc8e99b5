"""Config: an experiment as it is asked for, and as it is done.

`python -m experiments mlproject` writes MLproject from the fields here and in
experiments/fields.py. Where a field may be "auto", None stands for it, and `resolved` fills it in:
experiments/recipes.py says with what.
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated, Any

import torch
from pydantic import AfterValidator, Field, model_validator

from experiments.config.fields import NONE, Common, Method, run_id
from experiments.config.parameters import AUTO, one_of, validated
from experiments.config.recipes import defaults_for, model_for
from experiments.training.optimizers import OPTIMIZERS
from experiments.training.schedules import SCHEDULES
from pruning.reinit import REINITS

MASKS = ("own", "shared")

# What no dense network depends on.
PRUNING_FIELDS = {
    *("reinit", "criterion", "control", "pruning", "masks", "branch_of"),
    *("scope", "prune_rate", "output_prune_rate", "target_sparsity", "rounds"),
    *("retrain_epochs", "retrain_lr"),
}


class Config(Common, Method):
    """One experiment as it is asked for."""

    seed: Annotated[int, Field(ge=0, lt=2**63)] = Field(
        0, description="of everything random: initial values, split, batches, scores"
    )
    branch_of: Annotated[str, AfterValidator(run_id)] = Field(
        NONE, description="id of a run whose dense network is taken, not trained anew"
    )
    masks: Annotated[str, one_of(*MASKS)] = Field(
        "own", description="own: prunes by itself; shared: takes the masks of branch_of's rounds"
    )
    resume: Annotated[str, AfterValidator(run_id)] = Field(
        NONE, description="id of an interrupted run to continue in place"
    )

    @model_validator(mode="after")
    def _sound_together(self) -> "Config":
        if self.momentum and self.optimizer not in (None, "sgd"):
            raise ValueError(
                f"momentum is for optimizer=sgd, got {self.momentum} with {self.optimizer}"
            )
        rewinds = REINITS[self.reinit].schedule == "rewound"
        if rewinds and self.rewind_epoch > (self.epochs or self.rewind_epoch):
            raise ValueError(
                f"rewind_epoch must be at most epochs ({self.epochs}), got {self.rewind_epoch}"
            )
        if self.warmup_epochs and self.epochs and self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"warmup_epochs must be less than epochs ({self.epochs}), "
                f"got {self.warmup_epochs:g}"
            )
        if self.masks == "shared":
            self._check_shared()
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("device=cuda needs a CUDA GPU that torch can see, and there is none")
        return self

    def _check_shared(self) -> None:
        if self.branch_of == NONE:
            raise ValueError("masks=shared needs branch_of, the run whose masks are taken")
        if self.control == "inverted" or self.pruning == "one_shot":
            raise ValueError(
                "masks=shared takes the masks of another run, so control=inverted and "
                "pruning=one_shot, which choose others, do not go with it"
            )

    def _fine_tunes(self) -> bool:
        return REINITS[self.reinit].schedule == "final"

    def settings(self) -> dict[str, Any]:
        """What decides the result: nothing of the machine, so that checkpoints are alike."""
        elsewhere = {"data_root", "resume", "device"}
        if self.masks == "own":  # then it would have trained the same dense network itself
            elsewhere.add("branch_of")
        return self.model_dump(exclude=elsewhere)

    def dense_settings(self) -> dict[str, Any]:
        """What decides the dense network."""
        return {k: value for k, value in self.settings().items() if k not in PRUNING_FIELDS}

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
        return validated(Resolved, values)


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
    return validated(Config, values)
