"""Config: the parameters of one experiment, as given and as resolved.

The fields here and in fields.py define the command line and MLproject. A field that is "auto" holds
None until `Config.resolved` replaces it with a value from recipes.py.
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated, Any

import torch
from pydantic import AfterValidator, Field, model_validator
from torch import nn

from datasets import PIXELS
from experiments.config.fields import NONE, Common, Instability, Method, Seeds, run_id
from experiments.config.parameters import AUTO, one_of, validated
from experiments.config.recipes import MODEL, MODELS_FOR, defaults_for
from experiments.training.optimizers import OPTIMIZERS
from models import build_model, linear_layers
from pruning.controls import CONTROLS
from pruning.criteria import CRITERIA
from pruning.reinit import REINITS

MASKS = ("own", "shared")

# They have no effect on the dense network: `seed` only through the other seeds.
PRUNING_FIELDS = {
    *("seed", "draw_seed"),
    *("reinit", "criterion", "control", "pruning", "masks", "branch_of"),
    *("scope", "granularity", "target"),
    *("prune_rate", "output_prune_rate", "target_sparsity", "rounds"),
    *("retrain_epochs", "retrain_lr"),
}


# What a control that trains another network than the pruned one needs of other parameters.
NEEDS = {
    "pruned": {},
    "small": {"reinit": "random", "criterion": "magnitude", "pruning": "iterative"}
    | {"granularity": "weight", "masks": "own"},
    "whole": {"criterion": "magnitude", "masks": "own"},
}


def unmet(control: str, values: Mapping[str, Any]) -> list[str]:
    """The needs of a control that these parameters do not meet, such as ["reinit=random"]."""
    needs = NEEDS[CONTROLS[control].network]
    return [
        f"{name}={needs[name]}" for name in needs if values.get(name, needs[name]) != needs[name]
    ]


class Config(Seeds, Instability, Common, Method):
    """The parameters of one experiment, as given."""

    branch_of: Annotated[str, AfterValidator(run_id)] = Field(
        NONE, description="id of a run whose dense network is reused instead of trained"
    )
    masks: Annotated[str, one_of(*MASKS)] = Field(
        "own", description="own: find masks in this run; shared: use the masks of branch_of"
    )
    resume: Annotated[str, AfterValidator(run_id)] = Field(
        NONE, description="id of an interrupted run to resume"
    )

    @model_validator(mode="after")
    def _check_combinations(self) -> "Config":
        if self.momentum and self.optimizer not in (None, "sgd"):
            raise ValueError(
                f"momentum is for optimizer=sgd, got {self.momentum} with {self.optimizer}"
            )
        rewinds = REINITS[self.reinit].schedule == "rewound"
        if rewinds and self.epochs and self.rewind_epoch >= self.epochs:
            raise ValueError(
                f"rewind_epoch must be less than epochs ({self.epochs}), after which nothing is "
                f"left to train, got {self.rewind_epoch}"
            )
        if self.warmup_epochs and self.epochs and self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"warmup_epochs must be less than epochs ({self.epochs}), "
                f"got {self.warmup_epochs:g}"
            )
        if self.target == "macs" and self.granularity != "unit":
            raise ValueError("target=macs needs granularity=unit")
        if self.granularity == "unit" and self.output_prune_rate not in (None, self.prune_rate):
            raise ValueError(
                "output_prune_rate is for granularity=weight: the output layer has no units to "
                f"prune, and loses the weights that read others; got {self.output_prune_rate}"
            )
        if self.pretrained != NONE and self.pixels not in (AUTO, "unit"):
            raise ValueError(
                "pretrained needs pixels=unit, which published networks were trained on, got "
                f"pixels={self.pixels}"
            )
        if self.granularity == "unit" and self.reinit == "random_scaled":
            raise ValueError(
                "reinit=random_scaled is for granularity=weight: where whole units are pruned, "
                "reinit=random draws with the variance of the smaller network"
            )
        if missing := unmet(self.control, self.model_dump()):
            names = [need.partition("=")[0] for need in missing]
            given = ", ".join(f"{name}={getattr(self, name)}" for name in names)
            raise ValueError(
                f"control={self.control} replaces the pruned network with another one: it needs "
                f"{', '.join(missing)}, got {given}"
            )
        shared = self.masks == "shared"
        if shared and self.branch_of == NONE:
            raise ValueError("masks=shared needs branch_of, the run whose masks are used")
        if shared and (self.control == "inverted" or self.pruning == "one_shot"):
            raise ValueError(
                "masks=shared uses the masks of another run and cannot be combined with "
                "control=inverted or pruning=one_shot"
            )
        return self

    def settings(self) -> dict[str, Any]:
        """The parameters that can change the result; checkpoints hold them.

        Parameters of the machine are excluded, so that checkpoints match across machines.
        """
        excluded = {"data_root", "resume", "device"}
        if self.masks == "own":  # branching only saves training the same dense network again
            excluded.add("branch_of")
        return self.model_dump(exclude=excluded)

    def dense_settings(self) -> dict[str, Any]:
        """The parameters that can change the dense network."""
        settings = self.settings() | self.streams()
        return {k: value for k, value in settings.items() if k not in PRUNING_FIELDS}

    def scaling(self) -> str:
        """What `pixels` stands for, one of `datasets.PIXELS`."""
        if self.pixels != AUTO:
            return self.pixels
        return PIXELS[0] if self.pretrained == NONE else "unit"

    def resolved(self, dataset: str) -> "Resolved":
        """The config with a value for every "auto"; `dataset` is the one that was loaded.

        Raises:
            ValueError: If given parameters conflict with the values of the others.
        """
        model = self.model or MODELS_FOR.get(dataset, MODEL)
        defaults = asdict(defaults_for(model))
        fast, share = defaults.pop("bf16"), defaults.pop("warmup_share")
        fine_tune_share = defaults.pop("fine_tune_share")
        del defaults["threads"]
        given = {name: value for name, value in self.model_dump().items() if value is not None}
        if REINITS[self.reinit].schedule == "rewound":  # what is left of the schedule
            whole = given.get("epochs", defaults["epochs"])
            defaults["retrain_epochs"] = max(1, whole - self.rewind_epoch)
        values = defaults | given | self.streams() | {"dataset": dataset, "model": model}
        values["pixels"] = self.scaling()
        values.setdefault("lr", OPTIMIZERS[values["optimizer"]].default_lr)
        values.setdefault("warmup_epochs", share * values["epochs"])
        fine_tunes = REINITS[self.reinit].schedule == "constant"
        low = float(f"{fine_tune_share * values['lr']:.12g}")  # easy to read and type: 0.00036
        values.setdefault("retrain_lr", low if fine_tunes else values["lr"])
        values.setdefault("output_prune_rate", self.prune_rate)
        values.setdefault("scope", CRITERIA[self.criterion].scope)
        if self.device == AUTO:
            values["device"] = "cuda" if torch.cuda.is_available() else "cpu"
        if self.precision == AUTO:
            values["precision"] = "bf16" if fast and has_bf16(values["device"]) else "float32"
        if self.engine == AUTO and not _can_be_sparse(values):
            values["engine"] = "compact"
        return validated(Resolved, values)


class Resolved(Config):
    """The parameters of one experiment, with a value for every "auto"."""

    model: str
    scope: str
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
    init_seed: int
    order_seed: int
    split_seed: int
    draw_seed: int

    @model_validator(mode="after")
    def _check_engine(self) -> "Resolved":
        if self.engine == "sparse" and not _can_be_sparse(self.model_dump()):
            known = " or ".join(name for name, made in OPTIMIZERS.items() if made.has_kernel)
            raise ValueError(
                "engine=sparse needs a fully connected model such as lenet_300_100, device=cpu, "
                f"precision=float32 and optimizer={known}, got "
                f"{self.model}, {self.device}, {self.precision} and {self.optimizer}"
            )
        if self.twin and any(True for _ in _skeleton(self.model).buffers()):
            raise ValueError(
                "twin=true evaluates networks between two others, which needs a model without "
                f"running statistics such as those of batch normalisation, got {self.model}"
            )
        return self


def _can_be_sparse(values: Mapping[str, Any]) -> bool:
    on_cpu = values["device"] == "cpu" and values["precision"] == "float32"
    has_kernel = OPTIMIZERS[values["optimizer"]].has_kernel
    return on_cpu and has_kernel and bool(linear_layers(_skeleton(values["model"])))


def _skeleton(name: str) -> nn.Module:
    """A model without values, for images of any size."""
    with torch.device("meta"):
        return build_model(name, (1, 128, 128), 2)


def has_bf16(device: str) -> bool:
    """Whether the hardware supports bfloat16 arithmetic."""
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return any(
        bool(supported)
        for name, supported in torch.cpu.get_capabilities().items()
        if "bf16" in name
    )


def config_from(values: Mapping[str, Any]) -> Config:
    """A validated config; raises ValueError as `validated` does."""
    return validated(Config, values)
