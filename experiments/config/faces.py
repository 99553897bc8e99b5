"""The parameters of prepare_faces."""

from pydantic import Field

from datasets.photographs.options import FaceOptions
from experiments.config import parameters
from experiments.config.fields import Device
from experiments.config.parameters import AUTO, Parameters


class FacesConfig(FaceOptions, Parameters):
    """The parameters of prepare_faces."""

    source: parameters.Path = Field(description="folder with one folder of photographs per class")
    out: parameters.Path = Field(description="folder to write the data set to")
    device: Device = AUTO

    def options(self) -> FaceOptions:
        """The settings that decide the crops and the splits."""
        return FaceOptions(**self.model_dump(include=set(FaceOptions.model_fields)))
