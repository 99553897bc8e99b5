"""Config: every knob of an experiment, in one typed list.

A field's name is the command-line flag, the MLproject parameter and the MLflow param; its default,
help and rule stand beside it. `python -m experiments mlproject` writes MLproject from this list.
Where a field may be "auto", None stands for it here, and the run resolves it.
"""

import argparse
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import torch
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)
from pydantic.fields import FieldInfo

from datasets import DATASETS
from experiments.optimizers import OPTIMIZERS
from experiments.schedules import SCHEDULES
from models import build_model
from pruning.criteria import CRITERIA
from pruning.masks import MOST_ROUNDS, SCOPES
from pruning.reinit import REINITS

AUTO = "auto"
NO_RESUME = "none"


def _one_of(*names: str) -> AfterValidator:
    def check(value: str) -> str:
        if value not in names:
            raise ValueError(f"must be one of {', '.join(names)}")
        return value

    return AfterValidator(check)


def _known_model(name: str) -> str:
    with torch.device("meta"):  # takes no memory, however large
        try:
            build_model(name, (1, 1, 1), 2)
        except (TypeError, RuntimeError):
            raise ValueError(f"model is larger than any memory, got {name[:80]}") from None
    return name


def _run_id(text: str) -> str:
    if text != NO_RESUME and not re.fullmatch("[0-9a-f]{32}", text):
        raise ValueError("must be the id of a run, 32 hexadecimal digits")
    return text


_or_auto = BeforeValidator(lambda value: None if value == AUTO else value)
_filled = Field(min_length=1)
_unit = Field(gt=0, lt=1)
_positive = Field(gt=0)
_Rate = Annotated[float, Field(gt=0)]
_Share = Annotated[float, Field(ge=0, lt=1)]


class Config(BaseModel):
    """One experiment. Frozen; `resolved` fills in what was left to the program."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    reinit: Annotated[str, _one_of(*REINITS)] = Field(
        "lottery", description=f"where survivors restart: {', '.join(REINITS)}"
    )
    dataset: Annotated[str, _one_of(AUTO, *DATASETS)] = Field(
        AUTO, description=f"{', '.join(DATASETS)}; auto is mnist if it can be had, else digits"
    )
    model: Annotated[str, AfterValidator(_known_model)] = Field(
        "lenet_300_100", description="lenet_<n>_<n>..., a fully connected net of these sizes"
    )
    criterion: Annotated[str, _one_of(*CRITERIA)] = Field(
        "magnitude", description=f"which weights go first: {', '.join(CRITERIA)}"
    )
    scope: Annotated[str, _one_of(*SCOPES)] = Field(
        "layer", description="layer: each layer loses the same share; global: all compete"
    )
    prune_rate: Annotated[float, _unit] = Field(
        0.2, description="share of the surviving weights that a round removes"
    )
    output_prune_rate: Annotated[_Share | None, _or_auto] = Field(
        None, description="the same for the output layer (0 spares it); auto is prune_rate"
    )
    target_sparsity: Annotated[float, _unit] = Field(
        0.9, description="share of the weights that is gone at the end, reached exactly"
    )
    rounds: Annotated[int, Field(ge=0, le=MOST_ROUNDS)] = Field(
        0, description="exactly so many full rounds whatever the target; 0 is as many as it needs"
    )
    epochs: Annotated[int, _positive] = Field(10, description="epochs of the dense network")
    retrain_epochs: Annotated[int, _positive] = Field(10, description="epochs of every later round")
    rewind_epoch: Annotated[int, Field(ge=0)] = Field(
        1, description="for reinit=rewind: survivors return to their values after this epoch"
    )
    optimizer: Annotated[str, _one_of(*OPTIMIZERS)] = Field(
        "adam", description=f"{', '.join(OPTIMIZERS)}"
    )
    lr: Annotated[_Rate | None, _or_auto] = Field(
        None, description="learning rate; auto is 0.0012 for adam, 0.1 for sgd"
    )
    retrain_lr: Annotated[_Rate | None, _or_auto] = Field(
        None, description="learning rate of every later round; auto is what reinit says"
    )
    schedule: Annotated[str, _one_of(*SCHEDULES)] = Field(
        "cosine", description=f"course of the learning rate in a round: {', '.join(SCHEDULES)}"
    )
    momentum: _Share = Field(0.0, description="for optimizer=sgd")
    weight_decay: Annotated[float, Field(ge=0)] = Field(
        0.0, description="L2 penalty, added to the gradient"
    )
    batch_size: Annotated[int, _positive] = Field(60, description="images in a training step")
    train_limit: Annotated[int, Field(ge=0)] = Field(
        0, description="use only so many training images, for quick looks; 0 is all"
    )
    eval_every: Annotated[int, Field(ge=0)] = Field(
        0, description="iterations between looks for early stopping; 0 is once an epoch"
    )
    seed: Annotated[int, Field(ge=0, lt=2**63)] = Field(
        0, description="of everything random: initial values, split, batches, scores"
    )
    device: Annotated[str, _one_of(AUTO, "cpu", "cuda")] = Field(
        AUTO, description="cpu or cuda; auto is cuda where there is one"
    )
    data_root: Annotated[str, _filled] = Field("data", description="folder of downloaded data sets")
    resume: Annotated[str, AfterValidator(_run_id)] = Field(
        NO_RESUME, description="id of an interrupted run to continue in place"
    )

    @model_validator(mode="after")
    def _sound_together(self) -> "Config":
        if self.momentum and self.optimizer != "sgd":
            raise ValueError(
                f"momentum is for optimizer=sgd, got {self.momentum} with {self.optimizer}"
            )
        if self.reinit == "rewind" and self.rewind_epoch > self.epochs:
            raise ValueError(
                f"rewind_epoch must be at most epochs ({self.epochs}), got {self.rewind_epoch}"
            )
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("device=cuda needs a CUDA GPU that torch can see, and there is none")
        return self

    def settings(self) -> dict[str, Any]:
        """What decides the result: nothing of the machine, so that checkpoints are alike."""
        return self.model_dump(exclude={"data_root", "resume", "device"})

    def resolved(self, dataset: str) -> "Config":
        """The config with every "auto" replaced by what is used; `dataset` is what was loaded."""
        lr = OPTIMIZERS[self.optimizer].default_lr if self.lr is None else self.lr
        final = REINITS[self.reinit].schedule == "final"
        retrain_lr = lr * SCHEDULES[self.schedule](1.0) if final else lr
        cuda = "cuda" if torch.cuda.is_available() else "cpu"
        rate = self.prune_rate if self.output_prune_rate is None else self.output_prune_rate
        return self.model_copy(
            update={
                "dataset": dataset,
                "device": cuda if self.device == AUTO else self.device,
                "lr": lr,
                "retrain_lr": retrain_lr if self.retrain_lr is None else self.retrain_lr,
                "output_prune_rate": rate,
            }
        )


def config_from(values: Mapping[str, Any]) -> Config:
    """A checked config.

    Raises:
        ValueError: One line that names the parameter, the rule and the value.
    """
    try:
        return Config.model_validate(dict(values))
    except ValidationError as error:
        raise ValueError("; ".join(_in_words(problem) for problem in error.errors())) from None


def parse_config(argv: Sequence[str] | None = None) -> Config:
    """The config of a command line such as `--reinit lottery --prune_rate 0.3`.

    Raises:
        ValueError: As `config_from`; also for an unknown flag.
    """
    parser = _Parser(prog="python -m experiments run", allow_abbrev=False)
    for name, field in Config.model_fields.items():
        help_text = f"{field.description} (default: {default_text(field)})".replace("%", "%%")
        parser.add_argument(f"--{name}", metavar="...", help=help_text, default=argparse.SUPPRESS)
    return config_from(vars(parser.parse_args(argv)))


def default_text(field: FieldInfo) -> str:
    """A field's default as one types it: "auto" for None."""
    return as_text(field.default)


def as_text(value: object) -> str:
    """A field's value as one types it: "auto" for None."""
    return AUTO if value is None else str(value)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise ValueError(f"{message}; python -m experiments run --help lists the parameters")


def _in_words(problem: Mapping[str, Any]) -> str:
    """One of pydantic's problems as: parameter, rule, value."""
    rule = str(problem["msg"]).removeprefix("Value error, ")
    if not problem["loc"] or ", got " in rule:  # said in full by our own rules
        return rule
    name = problem["loc"][0]
    if problem["type"] == "extra_forbidden":
        return f"there is no parameter {name}; the parameters are {', '.join(Config.model_fields)}"
    rule = rule.replace("Input should be", "must be").replace("String should", "must")
    value = str(problem["input"])
    shown = value if value.isprintable() and len(value) < 80 else repr(value)[:80]
    return f"{name} {rule}, got {shown}"
