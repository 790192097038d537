"""What one network of a run is made of, whoever trains it."""

from typing import Annotated, Any, Self

from pydantic import Discriminator, Tag, TypeAdapter, model_validator

from heliostat.config.convnext import CONVNEXT_ARCHS, CONVNEXT_CUSTOM, STEM_PX, ConvNextConfig
from heliostat.config.model import ARCHS, ModelConfig
from heliostat.config.nearest import nearest_key
from heliostat.config.training import TrainingRecipe, nearest_multiple
from heliostat.errors import InvalidValueError

BackboneConfig = ModelConfig | ConvNextConfig


def family_of(values: Any) -> str:
    """Which of the backbones a model section describes: what a union of them is told apart by.

    Args:
        values: Of the section, or the section itself. An unknown arch is of the family of the one nearest to it, whose
            rule it breaks then.
    """
    arch = values.get("arch") if isinstance(values, dict) else getattr(values, "arch", None)
    nearest = nearest_key(arch, [*ARCHS, "custom", *CONVNEXT_ARCHS, CONVNEXT_CUSTOM]) if isinstance(arch, str) else None
    return "convnext" if nearest in (*CONVNEXT_ARCHS, CONVNEXT_CUSTOM) else "vit"


BACKBONES: TypeAdapter[BackboneConfig] = TypeAdapter(
    Annotated[Annotated[ModelConfig, Tag("vit")] | Annotated[ConvNextConfig, Tag("convnext")], Discriminator(family_of)]
)
"""Makes either of what ``model_dump`` gave."""


class NetworkRecipe(TrainingRecipe):
    """A recipe of one network: of pre-training, or of a student as if it were trained alone."""

    model: BackboneConfig

    @model_validator(mode="after")
    def _shards_hold_rgb(self) -> Self:
        if self.model.channels != 3:
            raise InvalidValueError(
                f"model.channels is {self.model.channels}, but the images of a dataset are read as 3 channels",
                "Leave model.channels at 3; heliostat.load_backbone inflates trained weights to other channels",
            )
        return self

    @model_validator(mode="after")
    def _crops_are_whole_patches(self) -> Self:
        # The patches of a local crop are compared with nothing: a map of any size will do.
        keys = ("global_px", "local_px") if isinstance(self.model, ModelConfig) else ("global_px",)
        for key in keys:
            side, patch = getattr(self.augmentation, key), self.model.patch_px
            if side % patch:
                raise InvalidValueError(
                    f"augmentation.{key} {side} is not a multiple of model.patch_px {patch}",
                    f"Set augmentation.{key} to {nearest_multiple(side, patch)}",
                )
        return self

    @model_validator(mode="after")
    def _the_stem_sees_something(self) -> Self:
        if isinstance(self.model, ConvNextConfig) and self.augmentation.local_px < STEM_PX:
            raise InvalidValueError(
                f"augmentation.local_px {self.augmentation.local_px} is less than the {STEM_PX} pixels that the stem "
                f"of {self.model.arch} takes",
                f"Set augmentation.local_px to at least {STEM_PX}",
            )
        return self
