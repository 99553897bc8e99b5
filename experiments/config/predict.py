"""The parameters of predict."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from experiments.config import parameters
from experiments.config.fields import Device
from experiments.config.parameters import AUTO, Parameters

LAST: Literal["last"] = "last"


def round_or(*names: str) -> AfterValidator:
    """Rule: the value is the number of a round, or one of `names`."""

    def check(text: str) -> str:
        if text not in names and not (text.isascii() and text.isdecimal()):
            raise ValueError(f"must be {', '.join(names)} or the number of a round")
        return text

    return AfterValidator(check)


class PredictConfig(Parameters):
    """The parameters of predict."""

    run: parameters.Path = Field(description="id of a run, or a checkpoint file")
    images: parameters.Path = Field(description="picture, or folder of pictures")
    round: Annotated[str, round_or(LAST)] = Field(
        LAST, description="round whose network predicts: a number, or last"
    )
    invert: bool = Field(
        False,
        description="true for pictures that are dark on light, such as ink on paper; not for faces",
    )
    out: parameters.Path = Field(
        AUTO, description="output folder; auto is one for each run or checkpoint in predictions/"
    )
    device: Device = AUTO

    @property
    def number(self) -> int | Literal["last"]:
        """The round, as `load_network` takes it."""
        return LAST if self.round == LAST else int(self.round)
