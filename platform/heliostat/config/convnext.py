"""The convolutional backbone, which learns from a teacher only."""

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from heliostat.config.base import Section

CONVNEXT_ARCHS: dict[str, dict[str, Any]] = {
    "convnext_t": {"depths": (3, 3, 9, 3), "dims": (96, 192, 384, 768)},
    "convnext_s": {"depths": (3, 3, 27, 3), "dims": (96, 192, 384, 768)},
    "convnext_b": {"depths": (3, 3, 27, 3), "dims": (128, 256, 512, 1024)},
    "convnext_l": {"depths": (3, 3, 27, 3), "dims": (192, 384, 768, 1536)},
}
"""ConvNeXt (arXiv 2201.03545), section 3."""
CONVNEXT_CUSTOM = "convnext_custom"

SIZES = ("depths", "dims")
STEM_PX = 4
"""Side of the square that a position of the first stage stands for; each later stage halves the map."""

Count = Annotated[int, Field(gt=0)]
PerStage = tuple[Count, Count, Count, Count]


def _sizes_are_optional(schema: dict[str, Any]) -> None:
    # An editor that checks a recipe against the schema must not ask for what the arch gives.
    schema["required"] = [key for key in schema["required"] if key not in SIZES]


class ConvNextConfig(Section):
    """A convolutional network of four stages. ``arch`` sets depths and dims; each can also be given by itself."""

    model_config = ConfigDict(json_schema_extra=_sizes_are_optional)

    arch: Literal["convnext_t", "convnext_s", "convnext_b", "convnext_l", "convnext_custom"] = Field(
        description="gives depths and dims where they are not set; convnext_custom needs both"
    )
    depths: PerStage = Field(description="number of blocks of each stage")
    dims: PerStage = Field(description="channels of each stage; the last is the width of a token")
    patch_px: int = Field(
        16,
        ge=STEM_PX,
        description="side in pixels of the square that a token stands for; the last map is resized to this grid, on "
        "which it is compared with the teacher's",
    )
    channels: int = Field(3, gt=0, description="colour channels of the input")
    layer_scale: float = Field(1e-6, gt=0, description="initial factor of each channel of a block's branch")

    @field_validator(*SIZES, mode="before")
    @classmethod
    def _listed(cls, value: object) -> object:
        return tuple(value) if isinstance(value, list) else value

    @model_validator(mode="before")
    @classmethod
    def _sizes_from_arch(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        arch = values.get("arch")
        return {**CONVNEXT_ARCHS.get(arch if isinstance(arch, str) else "", {}), **values}

    @property
    def embed_dim(self) -> int:
        """Width of a token."""
        return self.dims[-1]

    @property
    def depth(self) -> int:
        """Blocks of all stages."""
        return sum(self.depths)

    def origin_of_unset(self, key: str) -> str:
        """The arch, for the sizes that it fills in."""
        return f"arch {self.arch}" if key in CONVNEXT_ARCHS.get(self.arch, {}) else super().origin_of_unset(key)
