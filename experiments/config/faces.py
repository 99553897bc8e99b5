"""The parameters of prepare_faces."""

from typing import Annotated

import torch
from pydantic import Field, model_validator

from datasets.photographs.options import FaceOptions
from experiments.config import parameters
from experiments.config.parameters import AUTO, Parameters, one_of


class FacesConfig(FaceOptions, Parameters):
    """The parameters of prepare_faces."""

    source: parameters.Path = Field(description="folder with one folder of photographs per class")
    out: parameters.Path = Field(description="folder to write the data set to")
    device: Annotated[str, one_of(AUTO, "cpu", "cuda")] = Field(
        AUTO, description="cpu or cuda; auto is cuda if available"
    )

    @model_validator(mode="after")
    def _check_device(self) -> "FacesConfig":
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ValueError(
                "device=cuda requires a CUDA GPU that PyTorch can use, and there is none"
            )
        return self

    def options(self) -> FaceOptions:
        """The settings that decide the crops and the splits."""
        return FaceOptions(**self.model_dump(include=set(FaceOptions.model_fields)))
