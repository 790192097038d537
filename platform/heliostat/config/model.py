"""The backbone."""

from typing import Any, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from heliostat.config.base import Fraction, Section
from heliostat.errors import InvalidValueError

ARCHS: dict[str, dict[str, int]] = {
    "vit_s": {"embed_dim": 384, "depth": 12, "heads": 6},
    "vit_b": {"embed_dim": 768, "depth": 12, "heads": 12},
    "vit_l": {"embed_dim": 1024, "depth": 24, "heads": 16},
}
"""DINOv2 paper, table 17; its depth of 18 for ViT-B is a misprint, the released model has 12 blocks."""

SIZES = ("embed_dim", "depth", "heads")


def _sizes_are_optional(schema: dict[str, Any]) -> None:
    # An editor that checks a recipe against the schema must not ask for what the arch gives.
    schema["required"] = [key for key in schema["required"] if key not in SIZES]


class ModelConfig(Section):
    """A vision transformer. ``arch`` sets width, depth and heads; each can also be given by itself."""

    model_config = ConfigDict(json_schema_extra=_sizes_are_optional)

    arch: Literal["vit_s", "vit_b", "vit_l", "custom"] = Field(
        "vit_s", description="gives embed_dim, depth and heads where they are not set; custom needs all three"
    )
    embed_dim: int = Field(gt=0, description="width of a token")
    depth: int = Field(gt=0, description="number of transformer blocks")
    heads: int = Field(gt=0, description="attention heads per block; must divide embed_dim")
    ffn_ratio: float = Field(4.0, gt=0, description="hidden width of the feed-forward layers over embed_dim")
    patch_px: int = Field(14, gt=0, description="side of a square patch in pixels")
    registers: int = Field(0, ge=0, description="register tokens between the class token and the patches")
    layer_scale: float = Field(1e-5, gt=0, description="initial LayerScale gamma")
    drop_path: Fraction = Field(0.3, lt=1.0, description="stochastic depth: share of a slot's crops that skip a branch")

    @model_validator(mode="before")
    @classmethod
    def _sizes_from_arch(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        arch = values.get("arch", "vit_s")
        known = isinstance(arch, str) and (arch in ARCHS or arch == "custom")
        # An unknown arch is one mistake, reported as such; it must not look like three missing sizes as well.
        return {**ARCHS.get(arch if known else "vit_s", {}), **values}

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Self:
        if self.embed_dim % self.heads:
            raise InvalidValueError(
                f"model.embed_dim {self.embed_dim} is not a multiple of model.heads {self.heads}",
                "Change one of them; the usual width of a head is 64",
            )
        return self

    def origin_of_unset(self, key: str) -> str:
        """The arch, for the sizes that it fills in."""
        return f"arch {self.arch}" if key in ARCHS.get(self.arch, {}) else super().origin_of_unset(key)
