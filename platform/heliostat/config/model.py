"""The backbone."""

from typing import Any, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from heliostat.config.base import Section, Share
from heliostat.config.convnext import CONVNEXT_ARCHS, CONVNEXT_CUSTOM
from heliostat.errors import InvalidValueError

ARCHS: dict[str, dict[str, Any]] = {
    "vit_s": {"embed_dim": 384, "depth": 12, "heads": 6},
    "vit_b": {"embed_dim": 768, "depth": 12, "heads": 12},
    "vit_l": {"embed_dim": 1024, "depth": 24, "heads": 16},
    "vit_g": {"embed_dim": 1536, "depth": 40, "heads": 24, "ffn": "swiglu"},
}
"""DINOv2 paper, table 17; its depth of 18 for ViT-B is a misprint, the released model has 12 blocks."""

SIZES = ("embed_dim", "depth", "heads")


def _sizes_are_optional(schema: dict[str, Any]) -> None:
    # An editor that checks a recipe against the schema must not ask for what the arch gives.
    schema["required"] = [key for key in schema["required"] if key not in SIZES]


class RopeConfig(Section):
    """2-D rotary position embedding of DINOv3 (arXiv 2508.10104): angles on queries and keys of patches, no table."""

    base: float = Field(100.0, gt=1, description="ratio that the periods of a head's frequencies span")
    normalise: Literal["separate", "min", "max"] = Field(
        "separate", description="what scales the patches' coordinates to [-1, 1]: each side, the shorter or the longer"
    )
    rescale: float | None = Field(
        2.0, gt=1, description="training jitter: coordinates times a log-uniform factor in [1/x, x]; null is none"
    )
    shift: float | None = Field(None, gt=0, description="training jitter: uniform in [-x, x], per axis, added")
    stretch: float | None = Field(
        None, gt=1, description="training jitter: per axis, a log-uniform factor in [1/x, x] on the coordinates"
    )


class ModelConfig(Section):
    """A vision transformer. ``arch`` sets width, depth and heads; each can also be given by itself."""

    model_config = ConfigDict(json_schema_extra=_sizes_are_optional)

    arch: Literal["vit_s", "vit_b", "vit_l", "vit_g", "custom"] = Field(
        "vit_s", description="gives embed_dim, depth and heads where they are not set; custom needs all three"
    )
    embed_dim: int = Field(gt=0, description="width of a token")
    depth: int = Field(gt=0, description="number of transformer blocks")
    heads: int = Field(gt=0, description="attention heads per block; must divide embed_dim")
    ffn: Literal["mlp", "swiglu"] = Field(
        "mlp", description="feed-forward layers: mlp with GELU, or swiglu at two thirds of the hidden width"
    )
    ffn_ratio: float = Field(4.0, gt=0, description="hidden width of the feed-forward layers over embed_dim")
    patch_px: int = Field(14, gt=0, description="side of a square patch in pixels")
    channels: int = Field(3, gt=0, description="colour channels of the input")
    registers: int = Field(0, ge=0, description="register tokens between the class token and the patches")
    position_resize: Literal["auto", "offset", "antialias", "size"] = Field(
        "auto",
        description="bicubic resize of the position embedding to another grid: offset (scale factor with 0.1 added, as "
        "released models without registers), antialias (to the size, as those with registers), size (as Hugging Face); "
        "auto is one of the first two",
    )
    position: Literal["learned", "rope"] = Field(
        "learned", description="a learned position embedding (DINOv2) or rotary positions (DINOv3)"
    )
    rope: RopeConfig = Field(default_factory=lambda: RopeConfig.model_validate({}))
    untied_norms: Literal["none", "local_cls", "cls", "both"] = Field(
        "none",
        description="an own final norm for class and register tokens: of local crops in training (local_cls), of all "
        "crops (cls), or both (DINOv3)",
    )
    layer_scale: float = Field(1e-5, gt=0, description="initial LayerScale gamma")
    drop_path: Share = Field(0.3, lt=1.0, description="stochastic depth: share of a slot's crops that skip a branch")

    @model_validator(mode="before")
    @classmethod
    def _sizes_from_arch(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        arch = values.get("arch", "vit_s")
        if arch in (*CONVNEXT_ARCHS, CONVNEXT_CUSTOM):
            raise InvalidValueError(
                f"model.arch {arch} is a convolutional network, which learns from a teacher only: none of its patches "
                "can be masked",
                f"Set model.arch to one of {', '.join(ARCHS)}, custom; or make it a student of kind: distill",
            )
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

    @model_validator(mode="after")
    def _rope_fits(self) -> Self:
        if self.rotary is not None and (self.embed_dim // self.heads) % 4:
            raise InvalidValueError(
                f"model.position rope needs heads with a width that 4 divides, this is {self.embed_dim // self.heads}",
                "Change model.embed_dim or model.heads; the usual width of a head is 64",
            )
        return self

    @property
    def rotary(self) -> RopeConfig | None:
        """The rotary positions; None where positions are learned."""
        return self.rope if self.position == "rope" else None

    @property
    def resize(self) -> Literal["offset", "antialias", "size"]:
        """How the position embedding is brought to another grid; what ``auto`` stands for is decided here."""
        if self.position_resize != "auto":
            return self.position_resize
        return "antialias" if self.registers else "offset"

    @property
    def ffn_hidden(self) -> int:
        """Hidden width of a feed-forward branch; SwiGLU has two thirds of it, rounded up to a multiple of 8."""
        hidden = int(self.embed_dim * self.ffn_ratio)
        return hidden if self.ffn == "mlp" else (int(hidden * 2 / 3) + 7) // 8 * 8

    def origin_of_unset(self, key: str) -> str:
        """The arch, for the sizes that it fills in."""
        return f"arch {self.arch}" if key in ARCHS.get(self.arch, {}) else super().origin_of_unset(key)
