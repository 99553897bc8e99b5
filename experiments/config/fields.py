"""Fields: the parameters that several commands share, with defaults, rules and descriptions.

`Method` holds what a comparison compares, `Common` what all its methods share.
"""

import pathlib
import re
from typing import Annotated, Self

import torch
from pydantic import AfterValidator, Field

from datasets import DATASETS, PIXELS
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
from experiments.config.recipes import MODEL, auto, by_family
from experiments.processes.executors import EXECUTORS
from experiments.processes.terminal import did_you_mean
from experiments.training.engine import ENGINES
from experiments.training.optimizers import OPTIMIZERS
from experiments.training.schedules import SCHEDULES
from models import NAMES, build_model
from pruning.controls import CONTROLS
from pruning.criteria import CRITERIA
from pruning.masks import MOST_ROUNDS, SCOPES
from pruning.reinit import REINITS
from pruning.units import GRANULARITIES, TARGETS

NONE = "none"
PRECISIONS = ("float32", "bf16")
PRUNINGS = ("iterative", "one_shot")


def _known_model(name: str | None) -> str | None:
    if name is None:
        return None
    with torch.device("meta"):  # allocates no memory
        try:
            build_model(name, (1, 128, 128), 2)
        except (TypeError, RuntimeError):
            raise ValueError(f"model is too large for any memory, got {name[:80]}") from None
        except ValueError as error:
            known = [known for known in (*NAMES, AUTO) if known.isidentifier()]
            known += [] if name.startswith("lenet_") else [MODEL]  # its message has an example
            raise ValueError(f"{error}{did_you_mean(name, known)}") from None
    return name


def run_id(text: str) -> str:
    """Rule: the value is the id of a run, or "none"."""
    if text != NONE and not re.fullmatch("[0-9a-f]{32}", text):
        raise ValueError("must be the id of a run, 32 hexadecimal digits")
    return text


def _usable(device: str) -> str:
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("must be cpu or auto on this machine: PyTorch finds no CUDA GPU")
    return device


def _regular_file(path: str) -> str:
    if path != NONE and pathlib.Path(path).exists() and not pathlib.Path(path).is_file():
        raise ValueError("must be a file, not a folder, a pipe or a device")
    return path


Device = Annotated[
    str,
    one_of(AUTO, "cpu", "cuda"),
    AfterValidator(_usable),
    Field(description="cpu or cuda; auto is cuda if available"),
]
_unit = Field(gt=0, lt=1)
_global = " and ".join(name for name, made in CRITERIA.items() if made.scope == "global")
_rates = ", ".join(f"{made.default_lr:g} for {name}" for name, made in OPTIMIZERS.items())


class Method(Parameters):
    """What distinguishes one pruning method from another."""

    reinit: Annotated[str, one_of(*REINITS)] = Field(
        "lottery",
        description=f"values from which survivors are retrained: {', '.join(REINITS)}",
    )
    criterion: Annotated[str, one_of(*CRITERIA)] = Field(
        "magnitude",
        description=f"score of a weight; the lowest are pruned first: {', '.join(CRITERIA)}",
    )
    control: Annotated[str, one_of(*CONTROLS)] = Field(
        "none",
        description="control that spoils the choice of weights, to see whether it matters, or "
        f"trains another network instead: {', '.join(CONTROLS)}",
    )
    pruning: Annotated[str, one_of(*PRUNINGS)] = Field(
        "iterative",
        description="iterative: each round prunes the previous network; one_shot: the dense one",
    )


class Common(Parameters):
    """What all methods of a comparison share: data, model, sparsity and training."""

    dataset: Annotated[str, one_of(AUTO, *DATASETS)] = Field(
        AUTO,
        description=f"{', '.join(DATASETS)}; auto is mnist if available, else digits",
    )
    model: Annotated[str | None, AfterValidator(_known_model), or_auto] = Field(
        None,
        description=(
            "lenet_n_n... (fully connected, with hidden layers of n units), "
            f"{', '.join(NAMES[1:])}; auto is lightcnn_9 for face images, else lenet_300_100"
        ),
    )
    pretrained: Annotated[Path, AfterValidator(_regular_file)] = Field(
        NONE, description="checkpoint file with the weights that the dense network starts from"
    )
    scope: Annotated[str | None, one_of(*SCOPES), or_auto] = Field(
        None,
        description="layer: every layer loses the same share; global: all layers compete; "
        f"auto is global for {_global}, else layer",
    )
    granularity: Annotated[str, one_of(*GRANULARITIES)] = Field(
        "weight",
        description="what is pruned at once: single weights, or a whole unit (a neuron or channel)",
    )
    target: Annotated[str, one_of(*TARGETS)] = Field(
        "weights",
        description="what target_sparsity and prune_rate count: weights, or with granularity=unit "
        "macs, the multiply-adds of an image",
    )
    prune_rate: Annotated[float, _unit] = Field(
        0.2, description="share of the surviving weights that each round prunes"
    )
    output_prune_rate: Annotated[Share | None, or_auto] = Field(
        None, description="prune_rate of the output layer (0 never prunes it); auto is prune_rate"
    )
    target_sparsity: Annotated[float, _unit] = Field(
        0.9,
        description="share of weights pruned by the end of the last round; reached exactly, or "
        "with granularity=unit exceeded by less than a unit",
    )
    rounds: Annotated[int, Field(ge=0, le=MOST_ROUNDS)] = Field(
        0,
        description="number of full pruning rounds, ignoring target_sparsity; "
        "0: as many as target_sparsity needs",
    )
    epochs: Annotated[Positive | None, or_auto] = Field(
        None, description=f"training epochs of the dense network; {auto('epochs')}"
    )
    retrain_epochs: Annotated[Positive | None, or_auto] = Field(
        None,
        description=f"training epochs after each pruning; {auto('retrain_epochs')}, and with "
        "rewind or lr_rewind it is epochs minus rewind_epoch",
    )
    rewind_epoch: Annotated[int, Field(ge=0)] = Field(
        1,
        description="for rewind and lr_rewind: epoch of dense training to rewind to, less than "
        "epochs",
    )
    optimizer: Annotated[str | None, one_of(*OPTIMIZERS), or_auto] = Field(
        None, description=f"{', '.join(OPTIMIZERS)}; {auto('optimizer')}"
    )
    lr: Annotated[Rate | None, or_auto] = Field(
        None, description=f"learning rate; auto is {_rates}"
    )
    retrain_lr: Annotated[Rate | None, or_auto] = Field(
        None,
        description="learning rate of retraining; auto is lr, or for reinit=keep a constant rate: "
        f"lr times {by_family('fine_tune_share')}",
    )
    schedule: Annotated[str, one_of(*SCHEDULES)] = Field(
        "cosine", description=f"learning rate schedule within a round: {', '.join(SCHEDULES)}"
    )
    warmup_epochs: Annotated[Amount | None, or_auto] = Field(
        None,
        description="first epochs of dense training, in which the learning rate rises; "
        "retraining warms up for the same share of its epochs; as a share of epochs, "
        f"{auto('warmup_share')}",
    )
    momentum: Share = Field(0.0, description="momentum of optimizer=sgd")
    weight_decay: Annotated[Amount | None, or_auto] = Field(
        None,
        description="L2 penalty for adam and sgd, decoupled weight decay for adamw; "
        f"{auto('weight_decay')}",
    )
    grad_clip: Annotated[Amount | None, or_auto] = Field(
        None, description=f"maximum norm of the gradient, 0 for no limit; {auto('grad_clip')}"
    )
    label_smoothing: Annotated[Share | None, or_auto] = Field(
        None,
        description=f"share of each label spread over all classes; {auto('label_smoothing')}",
    )
    batch_size: Annotated[Positive | None, or_auto] = Field(
        None, description=f"images per training step; {auto('batch_size')}"
    )
    precision: Annotated[str, one_of(AUTO, *PRECISIONS)] = Field(
        AUTO, description="float32 or bf16; auto is bf16 for lightcnn on hardware that supports it"
    )
    engine: Annotated[str, one_of(AUTO, *ENGINES)] = Field(
        AUTO,
        description="dense: products of whole matrices; compact: without the units that nothing "
        "reads; sparse: of survivors only, for lenet on a CPU; auto is the fastest one for each "
        "network, by a fixed rule",
    )
    pixels: Annotated[str, one_of(AUTO, *PIXELS)] = Field(
        AUTO,
        description="what a network sees: standardised over the training images; unit: from 0 to "
        "1; l2: divided by the L2 norm of the image; auto is unit with pretrained, else "
        "standardised",
    )
    train_limit: Annotated[int, Field(ge=0)] = Field(
        0, description="train on only this many images, for quick experiments; 0 uses all"
    )
    eval_every: Annotated[int, Field(ge=0)] = Field(
        0, description="iterations between evaluations of validation loss; 0 is once per epoch"
    )
    device: Device = AUTO
    data_root: Path = Field(
        "data",
        description="folder of downloaded data sets; for dataset=faces, one that prepare_faces "
        "wrote, or one of photographs",
    )

    def with_absolute_paths(self) -> Self:
        """The same parameters for tasks that run in another folder."""
        paths = {name: getattr(self, name) for name in ("data_root", "pretrained")}
        return self.model_copy(
            update={k: str(pathlib.Path(v).absolute()) for k, v in paths.items() if v != NONE}
        )


class Instability(Parameters):
    """Whether the networks of all rounds have twins."""

    twin: bool = Field(
        False,
        description="whether to train each network a second time, with the images in another "
        "order, and measure the error barrier between the two; more than doubles the time",
    )


Seed = Annotated[int, Field(ge=0, lt=2**63)]


class Seeds(Parameters):
    """The seeds of a run: one for everything, and one for each kind of random stream."""

    seed: Seed = Field(
        0, description="seed of everything random: initial weights, split, batches, scores"
    )
    init_seed: Annotated[Seed | None, or_auto] = Field(
        None, description="seed of the initial weights of the dense network; auto is seed"
    )
    order_seed: Annotated[Seed | None, or_auto] = Field(
        None,
        description="seed of training, in every round: order of the images, crops, mirror images, "
        "dropout; auto is seed",
    )
    split_seed: Annotated[Seed | None, or_auto] = Field(
        None,
        description="seed that chooses the validation images, and with train_limit the training "
        "images; auto is seed",
    )
    draw_seed: Annotated[Seed | None, or_auto] = Field(
        None,
        description="seed of what rounds draw: new values, such as those of reinit=random, and "
        "masks of random scores and controls; auto is seed",
    )

    def streams(self) -> dict[str, int]:
        """The seed of each kind of stream, by name of its parameter."""
        given = {name: getattr(self, name) for name in Seeds.model_fields if name != "seed"}
        return {name: self.seed if each is None else each for name, each in given.items()}


class Execution(Parameters):
    """Where the tasks of a command run: the arms of a comparison, the trials of a search."""

    workers: Annotated[Positive | None, or_auto] = Field(
        None,
        description="number of tasks at a time; auto is one per core, one on a GPU, or Ray's CPUs",
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
