"""Fields: the parameters that several commands share, with their defaults, rules and words.

`Method` is what a comparison compares, `Common` what its methods have in common.
"""

import pathlib
import re
from typing import Annotated, Self

import torch
from pydantic import AfterValidator, Field

from datasets import DATASETS
from experiments.config.parameters import (
    AUTO,
    Amount,
    Parameters,
    Path,
    Positive,
    Rate,
    Share,
    one_of,
    or_auto,
)
from experiments.processes.executors import EXECUTORS
from experiments.training.optimizers import OPTIMIZERS
from experiments.training.schedules import SCHEDULES
from models import build_model
from pruning.controls import CONTROLS
from pruning.criteria import CRITERIA
from pruning.masks import MOST_ROUNDS, SCOPES
from pruning.reinit import REINITS

NONE = "none"
PRECISIONS = ("float32", "bf16")
PRUNINGS = ("iterative", "one_shot")


def _known_model(name: str | None) -> str | None:
    if name is None:
        return None
    with torch.device("meta"):  # takes no memory, however large
        try:
            build_model(name, (1, 128, 128), 2)
        except (TypeError, RuntimeError):
            raise ValueError(f"model is larger than any memory, got {name[:80]}") from None
    return name


def run_id(text: str) -> str:
    """The rule that a value is the id of a run, or "none"."""
    if text != NONE and not re.fullmatch("[0-9a-f]{32}", text):
        raise ValueError("must be the id of a run, 32 hexadecimal digits")
    return text


_unit = Field(gt=0, lt=1)


class Method(Parameters):
    """What makes one way to prune differ from another."""

    reinit: Annotated[str, one_of(*REINITS)] = Field(
        "lottery", description=f"where survivors restart: {', '.join(REINITS)}"
    )
    criterion: Annotated[str, one_of(*CRITERIA)] = Field(
        "magnitude", description=f"which weights go first: {', '.join(CRITERIA)}"
    )
    control: Annotated[str, one_of(*CONTROLS)] = Field(
        "none", description=f"a mask that should do worse: {', '.join(CONTROLS)}"
    )
    pruning: Annotated[str, one_of(*PRUNINGS)] = Field(
        "iterative", description="iterative: prunes the last round's network; one_shot: the dense"
    )


class Common(Parameters):
    """What all methods of a comparison share: data, network, how much goes, how it is trained."""

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
        1,
        description="for rewind and lr_rewind: survivors return to this epoch of the dense network",
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
    device: Annotated[str, one_of(AUTO, "cpu", "cuda")] = Field(
        AUTO, description="cpu or cuda; auto is cuda where there is one"
    )
    data_root: Path = Field(
        "data", description="folder of downloaded data sets; for faces, of the photographs"
    )

    def with_absolute_paths(self) -> Self:
        """The same parameters for tasks that run in another folder."""
        return self.model_copy(update={"data_root": str(pathlib.Path(self.data_root).absolute())})


class Execution(Parameters):
    """Where the tasks of a command run: the arms of a comparison, the trials of a search."""

    workers: Annotated[Positive | None, or_auto] = Field(
        None, description="tasks at a time; auto is one per core, one on a GPU, or Ray's CPUs"
    )
    executor: Annotated[str, one_of(*EXECUTORS)] = Field(
        "processes",
        description="where tasks run: processes of this machine, ray, or inline (one by one)",
    )
    ray_address: str = Field(
        AUTO,
        min_length=1,
        description="for executor=ray: the cluster's host:port; auto is the one on this machine",
    )
