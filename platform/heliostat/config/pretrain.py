"""``kind: pretrain``: self-supervised pre-training of a backbone (DINOv2, arXiv 2304.07193)."""

from typing import Literal, Self

from pydantic import Field, model_validator

from heliostat.config.model import ModelConfig
from heliostat.config.network import NetworkRecipe
from heliostat.config.training import nearest_multiple
from heliostat.errors import InvalidValueError


class PretrainRecipe(NetworkRecipe):
    """Pre-train a backbone without labels."""

    kind: Literal["pretrain"]
    model: ModelConfig = Field(default_factory=lambda: ModelConfig.model_validate({}))

    @model_validator(mode="after")
    def _gram_crops_are_whole_patches(self) -> Self:
        side, patch = self.gram_px, self.model.patch_px
        if side is not None and side % patch:
            raise InvalidValueError(
                f"objective.gram.crop_px {side} is not a multiple of model.patch_px {patch}",
                f"Set objective.gram.crop_px to {nearest_multiple(side, patch)}",
            )
        return self
