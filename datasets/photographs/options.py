"""Face options: the settings that decide the crops and the splits of a folder of photographs."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class FaceOptions(BaseModel):
    """Settings that decide the crops and the splits."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    which_face: Literal["largest", "most_confident", "all"] = Field(
        "largest", description="if a photograph has several faces: largest, most_confident, all"
    )
    min_confidence: float = Field(
        0.9, ge=0, le=1, description="lowest MTCNN confidence of a face to keep"
    )
    min_size: float = Field(
        20,
        ge=0,
        description="shorter side of the smallest face to keep, in pixels of the photograph",
    )
    align: bool = Field(
        True,
        description="rotate, scale and shift the eyes and mouth into place; false crops the box",
    )
    margin: float = Field(
        0.0,
        ge=0,
        le=10,
        description="for align=false: margin around the box, as a share of its side",
    )
    valid_share: float = Field(0.2, gt=0, lt=1, description="share of each class for validation")
    test_share: float = Field(0.1, gt=0, lt=1, description="share of each class for testing")
    seed: int = Field(0, ge=0, lt=2**63, description="seed of the split")

    @model_validator(mode="after")
    def _check_combinations(self) -> "FaceOptions":
        if self.margin and self.align:
            raise ValueError(f"margin requires align=false, got {self.margin} with align=true")
        if self.valid_share + self.test_share >= 1:
            raise ValueError(
                "valid_share and test_share must sum to less than 1, "
                f"got {self.valid_share} and {self.test_share}"
            )
        return self

    @property
    def shares(self) -> dict[str, float]:
        """Share of each split by name."""
        train = 1 - self.valid_share - self.test_share
        return {"train": train, "valid": self.valid_share, "test": self.test_share}
