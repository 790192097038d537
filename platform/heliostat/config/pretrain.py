"""``kind: pretrain``: self-supervised pre-training of a backbone (DINOv2, arXiv 2304.07193)."""

from typing import Literal, Self

from pydantic import Field, model_validator

from heliostat.config.model import ModelConfig
from heliostat.config.training import TrainingRecipe, nearest_multiple
from heliostat.errors import InvalidValueError


class PretrainRecipe(TrainingRecipe):
    """Pre-train a backbone without labels."""

    kind: Literal["pretrain"]
    model: ModelConfig = Field(default_factory=lambda: ModelConfig.model_validate({}))

    @model_validator(mode="after")
    def _shards_hold_rgb(self) -> Self:
        if self.model.channels != 3:
            raise InvalidValueError(
                f"model.channels is {self.model.channels}, but the images of a dataset are read as 3 channels",
                "Leave model.channels at 3; heliostat.load_backbone inflates trained weights to other channels",
            )
        return self

    @model_validator(mode="after")
    def _gram_crops_are_whole_patches(self) -> Self:
        side, patch = self.gram_px, self.model.patch_px
        if side is not None and side % patch:
            raise InvalidValueError(
                f"objective.gram.crop_px {side} is not a multiple of model.patch_px {patch}",
                f"Set objective.gram.crop_px to {nearest_multiple(side, patch)}",
            )
        return self

    @model_validator(mode="after")
    def _crops_are_whole_patches(self) -> Self:
        for key in ("global_px", "local_px"):
            side, patch = getattr(self.augmentation, key), self.model.patch_px
            if side % patch:
                raise InvalidValueError(
                    f"augmentation.{key} {side} is not a multiple of model.patch_px {patch}",
                    f"Set augmentation.{key} to {nearest_multiple(side, patch)}",
                )
        return self
