"""Face options: what decides the crops and the splits of a folder of photographs."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class FaceOptions(BaseModel):
    """What decides the crops and the splits."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    which_face: Literal["largest", "most_confident", "all"] = Field(
        "largest", description="of several faces in a photograph: largest, most_confident, all"
    )
    min_confidence: float = Field(
        0.9, ge=0, le=1, description="how sure MTCNN must be that it is a face"
    )
    min_size: float = Field(
        20, ge=0, description="shortest side of a face's box, in pixels of the photograph"
    )
    align: bool = Field(
        True, description="turn, scale and shift eyes and mouth into place; false crops the box"
    )
    margin: float = Field(
        0.0, ge=0, le=10, description="for align=false: share of the box to add around it"
    )
    valid_share: float = Field(0.2, gt=0, lt=1, description="share of each class to validate with")
    test_share: float = Field(0.1, gt=0, lt=1, description="share of each class to test with")
    seed: int = Field(0, ge=0, lt=2**63, description="of the split")

    @model_validator(mode="after")
    def _sound_together(self) -> "FaceOptions":
        if self.margin and self.align:
            raise ValueError(f"margin is for align=false, got {self.margin} with align=true")
        if self.valid_share + self.test_share >= 1:
            raise ValueError(
                "valid_share and test_share must leave something to train with, "
                f"got {self.valid_share} and {self.test_share}"
            )
        return self

    @property
    def shares(self) -> dict[str, float]:
        """Of each part of the split."""
        train = 1 - self.valid_share - self.test_share
        return {"train": train, "valid": self.valid_share, "test": self.test_share}
