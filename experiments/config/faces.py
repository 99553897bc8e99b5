"""The parameters of prepare_faces."""

from typing import Annotated

import torch
from pydantic import Field, model_validator

from datasets.face_options import FaceOptions
from experiments.config import parameters
from experiments.config.parameters import AUTO, Parameters, one_of


class FacesConfig(FaceOptions, Parameters):
    """What prepare_faces can be asked for."""

    source: parameters.Path = Field(description="folder of class folders of photographs")
    out: parameters.Path = Field(description="folder to write the data set to")
    device: Annotated[str, one_of(AUTO, "cpu", "cuda")] = Field(
        AUTO, description="cpu or cuda; auto is cuda where there is one"
    )

    @model_validator(mode="after")
    def _device_is_there(self) -> "FacesConfig":
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("device=cuda needs a CUDA GPU that torch can see, and there is none")
        return self

    def options(self) -> FaceOptions:
        """What decides the crops and the splits."""
        return FaceOptions(**self.model_dump(include=set(FaceOptions.model_fields)))
