"""What students learn from a frozen teacher: its prototypes, as in pre-training, and also its features, and labels."""

from typing import Literal, Self

from pydantic import Field, model_validator

from heliostat.config.base import Section, Share
from heliostat.config.objective import ObjectiveConfig
from heliostat.errors import InvalidValueError


class FeaturesConfig(Section):
    """Feature distillation (arXiv 2205.14141): the student's tokens, projected, against the teacher's, whitened."""

    weight: float = Field(0.0, ge=0, description="weight of the smooth L1 loss on patch tokens; 0 is off, 1 is usual")
    class_weight: float = Field(
        1.0, ge=0, description="weight of the same loss on class tokens over that on patches; 0 compares patches alone"
    )
    beta: float = Field(2.0, gt=0, description="difference up to which the loss is quadratic, and linear beyond")


class LabelsConfig(Section):
    """Labels of the dataset, and what the teacher makes of them (DeiT, arXiv 2012.12877).

    A linear layer on the frozen teacher's class token learns the labels; what it says of an image, labelled or not, is
    what the student's distillation token, its first register, learns.
    """

    weight: float = Field(
        0.0, ge=0, description="weight of the cross-entropy of the class token with the labels; 0 is off, 1 is usual"
    )
    classes: int | None = Field(None, gt=1, description="number of the datasets' labels; needed where weight is set")
    smoothing: Share = Field(0.1, lt=1, description="share of a label that is spread evenly over all classes")
    teacher: Literal["none", "hard", "soft"] = Field(
        "hard",
        description="what the distillation token learns: the teacher's most likely label, its distribution, or nothing",
    )
    token_weight: float = Field(1.0, gt=0, description="weight of the distillation token's loss")
    temperature: float = Field(3.0, gt=0, description="of both distributions, with teacher soft")


class DistillObjectiveConfig(ObjectiveConfig):
    """As of pre-training; with dino_weight and ibot_weight 0 there are no prototypes, and no heads of the teacher."""

    features: FeaturesConfig = Field(default_factory=lambda: FeaturesConfig.model_validate({}))
    labels: LabelsConfig = Field(default_factory=lambda: LabelsConfig.model_validate({}))
    teacher_width: int | None = Field(
        None, gt=0, description="the teacher's model.embed_dim; needed where features, or labels of the teacher, are on"
    )

    @property
    def learning_weights(self) -> dict[str, float]:
        """Those of features and labels too."""
        own = {"features.weight": self.features.weight, "labels.weight": self.labels.weight}
        return {**super().learning_weights, **own}

    @property
    def compares_patches(self) -> bool:
        """Those that learn features do too."""
        return super().compares_patches or self.features.weight > 0

    @property
    def has_label_token(self) -> bool:
        """Whether a distillation token learns what the teacher makes of the labels."""
        return self.labels.weight > 0 and self.labels.teacher != "none"

    @property
    def compares_tokens(self) -> bool:
        """Whether something is computed from the teacher's own tokens, besides its heads' vectors."""
        return self.features.weight > 0 or self.has_label_token

    @property
    def without_students(self) -> ObjectiveConfig:
        """That of a network which learns none of what only students learn."""
        return ObjectiveConfig.model_construct(**{name: getattr(self, name) for name in ObjectiveConfig.model_fields})

    @model_validator(mode="after")
    def _sizes_are_known(self) -> Self:
        if self.compares_tokens and self.teacher_width is None:
            what = "features" if self.features.weight else "labels"
            raise InvalidValueError(
                f"objective.{what}.weight is set, but objective.teacher_width is not",
                "Set it to the teacher's model.embed_dim",
            )
        if self.labels.weight and self.labels.classes is None:
            raise InvalidValueError(
                "objective.labels.weight is set, but objective.labels.classes is not",
                "Set it to the number of labels that heliostat dataset show tells",
            )
        return self
