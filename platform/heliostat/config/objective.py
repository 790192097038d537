"""What a network learns from: DINO, iBOT, KoLeo and Gram anchoring, their heads and their constants."""

from dataclasses import dataclass
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from heliostat.config.base import Range, Section, Share
from heliostat.errors import InvalidValueError


class GramConfig(Section):
    """Gram anchoring (DINOv3, arXiv 2508.10104, section 4): patch similarities stay those of an earlier teacher."""

    weight: float = Field(0.0, ge=0, description="weight of the Gram loss; 0 is off, DINOv3 took 2")
    from_step: int = Field(0, ge=0, description="step whose EMA teacher becomes the first Gram teacher")
    refresh_every_steps: int = Field(10000, gt=0, description="steps between refreshes from the EMA teacher")
    max_refreshes: int = Field(3, ge=0, description="refreshes after the first Gram teacher")
    crop_px: int | None = Field(
        None, gt=0, description="side of the Gram teacher's undistorted crops; null is twice the global crop's"
    )
    clip_negative: bool = Field(False, description="count negative similarities as 0")


@dataclass(frozen=True, slots=True)
class HeadSizes:
    """Sizes of a projection head."""

    prototypes: int
    hidden: int
    bottleneck: int


class ObjectiveConfig(Section):
    """DINO + iBOT + KoLeo with an EMA teacher; targets by Sinkhorn-Knopp or softmax centring."""

    prototypes: int = Field(65536, gt=1, description="columns of each head's last layer")
    head_hidden: int = Field(2048, gt=0, description="hidden width of the heads")
    head_bottleneck: int = Field(256, gt=0, description="width of the vectors that are compared with the prototypes")
    ibot_head: Literal["separate", "shared"] = Field(
        "separate", description="whether the masked patches have a head of their own or share the DINO head"
    )
    ibot_prototypes: int | None = Field(None, gt=1, description="of a separate iBOT head; null is the DINO head's")
    ibot_head_hidden: int | None = Field(None, gt=0, description="of a separate iBOT head; null is the DINO head's")
    ibot_head_bottleneck: int | None = Field(None, gt=0, description="of a separate iBOT head; null is the DINO head's")
    prototype_layer: Literal["weight_norm", "linear"] = Field(
        "weight_norm", description="last layer of the heads: weight-normalised (DINOv2) or plain (DINOv3)"
    )
    dino_weight: float = Field(1.0, ge=0, description="weight of the image-level loss")
    ibot_weight: float = Field(1.0, ge=0, description="weight of the masked-patch loss")
    koleo_weight: float = Field(0.1, ge=0, description="weight of the KoLeo regulariser")
    koleo_group: int | None = Field(
        None, gt=1, description="images of a slot among which KoLeo looks for neighbours (DINOv3: 16); null is the slot"
    )
    koleo_neighbours: int = Field(1, ge=1, description="nearest neighbours that KoLeo pushes away from")
    gram: GramConfig = Field(default_factory=lambda: GramConfig.model_validate({}))
    student_temperature: float = Field(0.1, gt=0, description="temperature of the student's softmax")
    teacher_temperature: float = Field(0.07, gt=0, description="temperature of the targets after the warm-up")
    teacher_temperature_start: float = Field(0.04, gt=0, description="temperature of the targets at step 0")
    teacher_temperature_warmup_steps: int = Field(37500, ge=0, description="steps of the linear warm-up")
    centring: Literal["sinkhorn_knopp", "softmax"] = Field(
        "sinkhorn_knopp", description="what keeps targets spread over the prototypes"
    )
    sinkhorn_iterations: int = Field(3, ge=1, description="Sinkhorn-Knopp iterations over the global batch")
    centre_momentum: Share = Field(0.9, description="momentum of the centre of softmax centring")
    mask_probability: Share = Field(0.5, description="share of a slot's global crops that are masked")
    mask_ratio: Range = Field((0.1, 0.5), description="share of a masked crop's patches that is masked: from, to")

    @property
    def anchoring(self) -> GramConfig | None:
        """Gram anchoring; None where it is off."""
        return self.gram if self.gram.weight else None

    @property
    def learning_weights(self) -> dict[str, float]:
        """Weights of the losses of which there has to be one, by key."""
        return {"dino_weight": self.dino_weight, "ibot_weight": self.ibot_weight}

    @property
    def has_heads(self) -> bool:
        """Whether tokens are compared with prototypes; without that, neither student nor teacher has heads."""
        return self.dino_weight > 0 or self.ibot_weight > 0

    @property
    def compares_patches(self) -> bool:
        """Whether patches are compared with a teacher's."""
        return self.has_heads

    @property
    def dino_head_sizes(self) -> HeadSizes:
        """Sizes of the DINO head."""
        return HeadSizes(self.prototypes, self.head_hidden, self.head_bottleneck)

    @property
    def ibot_head_sizes(self) -> HeadSizes:
        """Sizes of the head of the masked patches."""
        return HeadSizes(
            self.ibot_prototypes or self.prototypes,
            self.ibot_head_hidden or self.head_hidden,
            self.ibot_head_bottleneck or self.head_bottleneck,
        )

    @model_validator(mode="after")
    def _something_is_learnt(self) -> Self:
        if not any(self.learning_weights.values()):
            raise InvalidValueError(
                f"objective has {', '.join(self.learning_weights)} of 0: nothing is learnt", "Set one of them to 1"
            )
        return self

    @model_validator(mode="after")
    def _a_shared_head_has_one_size(self) -> Self:
        own = [key for key in ("ibot_prototypes", "ibot_head_hidden", "ibot_head_bottleneck") if getattr(self, key)]
        if self.ibot_head == "shared" and own:
            raise InvalidValueError(
                f"objective.{own[0]} is set, but objective.ibot_head is shared",
                "Leave it out, or set objective.ibot_head to separate",
            )
        return self

    @field_validator("mask_ratio", mode="before")
    @classmethod
    def _pair(cls, value: object) -> object:
        return tuple(value) if isinstance(value, list) else value

    @field_validator("mask_ratio")
    @classmethod
    def _ordered(cls, value: Range) -> Range:
        low, high = value
        if not 0 <= low <= high <= 1:
            raise ValueError("two shares of the patches, 0 <= from <= to <= 1")
        return value
