"""The parameters of export and measure."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from experiments.config import parameters
from experiments.config.fields import NONE
from experiments.config.parameters import (
    AUTO,
    MOST_COUNT,
    Parameters,
    Positive,
    Rate,
    Share,
    one_of,
    some_of,
)
from experiments.config.predict import LAST, round_or

MODEL = "model"
FORMATS = ("compact", "packed", "onnx", "int8", MODEL)
VALUES = ("float32", "float16", "shared")
BEST = "best"


def _batches(text: str) -> str:
    sizes = text.split(",")
    if not all(each.isascii() and each.isdecimal() and int(each) for each in sizes):
        raise ValueError("must be positive whole numbers, separated by commas")
    if len({int(each) for each in sizes}) < len(sizes):
        raise ValueError("must not contain a number twice")
    return text


class Chosen(Parameters):
    """Which network of which run, and how it is packed."""

    run: parameters.Path = Field(
        description="id of a run, a checkpoint, or a folder of checkpoints"
    )
    round: Annotated[str, round_or(BEST, LAST)] = Field(
        BEST,
        description="round whose network is used: a number, last, or best, which has the highest "
        "validation accuracy; of equal ones the sparsest",
    )
    sparsity: Share = Field(0.0, description="least sparsity that round=best may have")
    values: Annotated[str, one_of(*VALUES)] = Field(
        "float32",
        description="values in the packed file; shared: each tensor gets a few values, by k-means",
    )
    shared_values: Annotated[int, Field(ge=1, le=4096)] = Field(
        16, description="how many values a tensor may have with values=shared"
    )
    shared_epochs: Annotated[int, Field(ge=0, le=MOST_COUNT)] = Field(
        5, description="epochs in which shared values are trained; the best on validation data stay"
    )
    data_root: parameters.Path = Field(
        AUTO, description="folder of the data that the run was trained on; auto is the run's own"
    )

    @property
    def number(self) -> int | Literal["last"]:
        """The round, as `load_network` takes it, unless it is best."""
        return LAST if self.round == LAST else int(self.round)


class ExportConfig(Chosen):
    """The parameters of export."""

    formats: Annotated[str, some_of(*FORMATS)] = Field(
        ",".join(FORMATS),
        description="what is written, separated by commas; model, which MLflow serves, includes "
        "the file that it needs",
    )
    out: parameters.Path = Field(
        AUTO, description="output folder; auto is one for each run and round in exports/"
    )
    served: Annotated[str, one_of("onnx", "int8")] = Field(
        "onnx", description="the file that the model of formats=model computes with"
    )
    register_as: Annotated[str, Field(min_length=1)] = Field(
        NONE,
        description="name under which MLflow registers the model; its alias champion moves if "
        "it is more accurate on validation images in no more bytes, or as accurate in fewer",
    )

    @model_validator(mode="after")
    def _check(self) -> "ExportConfig":
        if self.register_as != NONE and MODEL not in self.chosen:
            raise ValueError(f"register_as needs model in formats, got {self.formats}")
        return self

    @property
    def chosen(self) -> list[str]:
        """The formats, in the order in which they are made."""
        asked = self.formats.split(",")
        asked += [self.served] if MODEL in asked else []
        return [name for name in FORMATS if name in asked]


class MeasureConfig(Chosen):
    """The parameters of measure."""

    batches: Annotated[str, AfterValidator(_batches)] = Field(
        "1,64", description="numbers of images in a query, separated by commas"
    )
    queries: Positive = Field(1024, description="queries that each form answers, in turns ...")
    seconds: Rate = Field(60.0, description="... unless they take longer than these seconds")
    out: parameters.Path = Field(
        AUTO, description="output folder; auto is one for each run and round in measurements/"
    )
