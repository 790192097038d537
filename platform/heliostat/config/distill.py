"""``kind: distill``: smaller networks that learn from a trained, frozen one (DINOv2, arXiv 2304.07193, section 5)."""

import math
from typing import Annotated, Literal, Self, TypeAlias

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from heliostat.config.base import Name, Section, Share, check_run_or_weights
from heliostat.config.convnext import ConvNextConfig
from heliostat.config.distill_objective import DistillObjectiveConfig
from heliostat.config.model import ModelConfig, RopeConfig
from heliostat.config.network import BackboneConfig, NetworkRecipe, family_of
from heliostat.config.objective import ObjectiveConfig
from heliostat.config.pretrain import PretrainRecipe
from heliostat.config.training import TrainingConfig, TrainingRecipe, nearest_multiple
from heliostat.errors import InvalidValueError

TEACHER = "teacher"


class TeacherConfig(Section):
    """The trained network: its backbone and the heads that it was trained with, or a backbone from elsewhere."""

    run: Name | None = Field(None, description="the run of kind pretrain or adapt whose teacher it is")
    step: int | None = Field(None, ge=0, description="of the checkpoint; null is the newest when this run is created")
    weights: str | None = Field(
        None,
        min_length=1,
        description="instead of run, a backbone alone, as heliostat.load_backbone takes it: dinov2_vitg14, a file, a "
        "folder; students then learn its features (objective.features), since it has no prototypes",
    )
    cache: bool = Field(
        False,
        description="compute once what the teacher says of each image and keep it under ROOT/teacher_views, for this "
        "run and all others of the same teacher, dataset, seed and augmentation; needs augmentation.fixed",
    )

    @model_validator(mode="after")
    def _is_one_of_both(self) -> Self:
        check_run_or_weights("teacher", self.run, self.weights)
        if self.run is None and self.step is not None:
            raise InvalidValueError("teacher.step is of a run, and teacher.weights is set", "Leave it out")
        return self


class StudentModelConfig(ModelConfig):
    """The transformer of a student: without stochastic depth."""

    drop_path: Share = Field(0.0, le=0.0, description="stochastic depth: students have none")
    rope: RopeConfig = Field(default_factory=lambda: RopeConfig.model_validate({"rescale": None}))


StudentBackbone: TypeAlias = Annotated[
    Annotated[StudentModelConfig, Tag("vit")] | Annotated[ConvNextConfig, Tag("convnext")], Discriminator(family_of)
]
"""A vision transformer, or a convolutional network where the arch names one."""


class StudentConfig(Section):
    """One network that learns from the teacher."""

    name: Name = Field(description="of the student, in metrics, checkpoints and exports")
    model: StudentBackbone = Field(default_factory=lambda: StudentModelConfig.model_validate({}))
    base_lr: float | None = Field(None, gt=0, description="learning rate as training.base_lr, which null takes")

    @field_validator("name")
    @classmethod
    def _is_no_path(cls, value: str) -> str:
        if "." in value or value == TEACHER:
            raise ValueError(f"without a dot, for parameters are called STUDENT.NAME, and not {TEACHER}")
        return value


class DistillTrainingConfig(TrainingConfig):
    """Steps, batches and the optimizer; the defaults are those of the paper's distillation."""

    base_lr: float = Field(
        7.07e-4, gt=0, description="learning rate at a global batch of 1024; scaled by sqrt(global_batch/1024)"
    )
    warmup_steps: int = Field(100_000, ge=0, description="steps of linear learning-rate warm-up from 0")
    weight_decay_end: float = Field(0.2, ge=0, description="weight decay at the end of the cosine")
    ema_momentum: float = Field(
        0.994, ge=0, le=1, description="momentum at step 0 of a student's moving average; a cosine brings it to 1"
    )


class DistillRecipe(TrainingRecipe):
    """Train students from the frozen teacher of a run, all of them from one pass of it."""

    kind: Literal["distill"]
    teacher: TeacherConfig
    students: tuple[StudentConfig, ...] = Field(min_length=1, description="one or several, trained side by side")
    objective: DistillObjectiveConfig = Field(default_factory=lambda: DistillObjectiveConfig.model_validate({}))
    training: DistillTrainingConfig

    @field_validator("students", mode="before")
    @classmethod
    def _listed(cls, value: object) -> object:
        return tuple(value) if isinstance(value, list) else value

    @model_validator(mode="after")
    def _students_have_names_of_their_own(self) -> Self:
        names = [student.name for student in self.students]
        for name in names:
            if names.count(name) > 1:
                raise InvalidValueError(
                    f"students has the name {name!r} {names.count(name)} times", "Give each student a name of its own"
                )
        return self

    @model_validator(mode="after")
    def _what_is_kept_stays_true(self) -> Self:
        if self.teacher.cache and not self.augmentation.fixed:
            raise InvalidValueError(
                "teacher.cache is on, but crops are drawn anew wherever an image stands in the run: what the teacher "
                "says of one would be needed once",
                "Set augmentation.fixed to true, or leave teacher.cache out",
            )
        return self

    @model_validator(mode="after")
    def _a_backbone_alone_has_no_prototypes(self) -> Self:
        if self.teacher.weights is not None and self.objective.has_heads:
            raise InvalidValueError(
                f"teacher.weights {self.teacher.weights} is a backbone without heads, and objective.dino_weight or "
                "ibot_weight compares with its prototypes",
                "Set both to 0 and objective.features.weight to 1, or train heads on it first: kind adapt with "
                "init_from.weights and training.freeze_backbone_steps as many as steps",
            )
        return self

    @model_validator(mode="after")
    def _distillation_tokens_are_there(self) -> Self:
        for student in self.students if self.objective.has_label_token else ():
            if not isinstance(student.model, ModelConfig):
                raise InvalidValueError(
                    f"student {student.name} is a convolutional network, which has no registers, the first of which "
                    "would be its distillation token",
                    "Set objective.labels.teacher to none, or train it in a run of its own",
                )
            if not student.model.registers:
                raise InvalidValueError(
                    f"student {student.name} has no registers, the first of which would be its distillation token",
                    "Set its model.registers to 1 or more, or objective.labels.teacher to none",
                )
        return self

    @model_validator(mode="after")
    def _is_not_anchored(self) -> Self:
        if self.objective.anchoring is not None:
            raise InvalidValueError(
                f"objective.gram.weight is {self.objective.gram.weight:g}, but a frozen teacher needs no anchor",
                "Leave objective.gram out",
            )
        return self

    @model_validator(mode="after")
    def _positions_are_not_jittered(self) -> Self:
        for student in self.students:
            rope = student.model.rotary if isinstance(student.model, ModelConfig) else None
            if rope is not None and any(each is not None for each in (rope.rescale, rope.shift, rope.stretch)):
                raise InvalidValueError(
                    f"student {student.name} has a jitter of rotary positions, which is drawn in pre-training only",
                    "Set rescale, shift and stretch of its model.rope to null",
                )
        return self

    @model_validator(mode="after")
    def _crops_are_whole_patches_of_all(self) -> Self:
        # Patches of local crops are compared with nothing: a convolutional network takes them of any size.
        of_local = [student for student in self.students if isinstance(student.model, ModelConfig)]
        for key, students in (("global_px", self.students), ("local_px", of_local)):
            side = getattr(self.augmentation, key)
            common = math.lcm(*(student.model.patch_px for student in students))
            if side % common:
                sizes = ", ".join(f"{student.name} {student.model.patch_px}" for student in students)
                raise InvalidValueError(
                    f"augmentation.{key} {side} is not made of whole patches of all students (patch_px: {sizes})",
                    f"Set augmentation.{key} to {nearest_multiple(side, common)}",
                )
        return self

    @model_validator(mode="after")
    def _is_not_masked(self) -> Self:
        unused = {"mask_probability", "mask_ratio"} & self.objective.model_fields_set
        defaults = ObjectiveConfig()
        for name in sorted(unused):
            if getattr(self.objective, name) != getattr(defaults, name):
                raise InvalidValueError(
                    f"objective.{name} is set, but students see whole crops, and all of their patches are compared",
                    "Leave it out",
                )
        return self

    @model_validator(mode="after")
    def _students_are_valid(self) -> Self:
        for student in self.students:
            self.of_student(student)
        return self

    @property
    def patch_sizes(self) -> tuple[int, ...]:
        """Of the students' patches, in pixels, each once."""
        return tuple(dict.fromkeys(student.model.patch_px for student in self.students))

    def of_student(self, student: StudentConfig) -> NetworkRecipe:
        """What a student's network, optimizer and costs are made of: the recipe as if it were trained alone."""
        training = (
            self.training if student.base_lr is None else self.training.model_copy(update={"base_lr": student.base_lr})
        )
        # Students see whole crops, and all patches are compared: for whoever plans, all of them count as masked.
        objective = self.objective.model_copy(update={"mask_probability": 1.0, "mask_ratio": (1.0, 1.0)})
        own = {
            "kind": "pretrain",
            "name": student.name,
            "model": student.model,
            "objective": objective,
            "training": training,
        }
        return NetworkRecipe(**{name: getattr(self, name) for name in TrainingRecipe.model_fields} | own)


def run_as_teacher(recipe: DistillRecipe, trained: PretrainRecipe) -> PretrainRecipe:
    """What the frozen network of a run is made of: with its heads, where students are compared with prototypes.

    Args:
        recipe: Of the distillation.
        trained: Of the run that trained the network.
    """
    objective = trained.objective
    if not recipe.objective.has_heads:
        objective = objective.model_copy(update={"dino_weight": 0.0, "ibot_weight": 0.0})
    return trained.model_copy(update={"training": recipe.training, "objective": objective})


def backbone_as_teacher(recipe: DistillRecipe, model: ModelConfig, grid: int) -> PretrainRecipe:
    """What a frozen backbone without heads is made of.

    Args:
        recipe: Of the distillation, which compares with no prototypes.
        model: The backbone's.
        grid: Patches along a side for which its position embedding is stored.
    """
    of_student = recipe.of_student(recipe.students[0])
    own = {
        "name": "teacher",
        "model": model,
        "objective": recipe.objective.without_students,
        "augmentation": recipe.augmentation.model_copy(update={"global_px": grid * model.patch_px}),
    }
    return PretrainRecipe.model_construct(
        **{name: getattr(of_student, name) for name in TrainingRecipe.model_fields} | own
    )


def check_teacher(recipe: DistillRecipe, teacher: PretrainRecipe) -> None:
    """Refuse a teacher that its students cannot be compared with.

    Raises:
        InvalidValueError: numbers of prototypes, width or sizes of patches do not fit; says which.
    """
    if recipe.objective.has_heads:
        _check_heads(recipe, teacher)
    check_teacher_backbone(recipe, teacher.model, f"run {teacher.name}")


def check_teacher_backbone(recipe: DistillRecipe, backbone: BackboneConfig, whose: str) -> None:
    """Refuse a teacher's backbone whose tokens cannot be compared with those of the students.

    Args:
        recipe: Of the distillation.
        backbone: The teacher's.
        whose: For the message.

    Raises:
        InvalidValueError: its width or the size of its patches does not fit, or it is convolutional.
    """
    if not isinstance(backbone, ModelConfig):
        raise InvalidValueError(
            f"{whose} is a convolutional network ({backbone.arch}), which can learn and not teach",
            "Name a vision transformer",
        )
    width = recipe.objective.teacher_width
    if recipe.objective.compares_tokens and width != backbone.embed_dim:
        raise InvalidValueError(
            f"{whose} does not fit: its model.embed_dim is {backbone.embed_dim}, objective.teacher_width is {width}",
            f"Set objective.teacher_width to {backbone.embed_dim}",
        )
    side, patch = recipe.augmentation.global_px, backbone.patch_px
    if side % patch:
        raise InvalidValueError(
            f"augmentation.global_px {side} is not a multiple of {patch}, the patch_px of the teacher in {whose}",
            f"Set augmentation.global_px to {nearest_multiple(side, patch)}",
        )


def _check_heads(recipe: DistillRecipe, teacher: PretrainRecipe) -> None:
    own, taught = recipe.objective, teacher.objective
    if not taught.has_heads:
        raise InvalidValueError(
            f"run {teacher.name} does not fit: it was trained without heads, and objective.dino_weight or ibot_weight "
            "compares with prototypes",
            "Set both to 0 and objective.features.weight to 1",
        )
    if own.ibot_head != taught.ibot_head:
        raise InvalidValueError(
            f"run {teacher.name} does not fit: its patches have a {taught.ibot_head} head, those of the students a "
            f"{own.ibot_head} one",
            f"Set objective.ibot_head to {taught.ibot_head}",
        )
    heads = {
        "prototypes": (taught.dino_head_sizes.prototypes, own.dino_head_sizes.prototypes),
        "ibot_prototypes": (taught.ibot_head_sizes.prototypes, own.ibot_head_sizes.prototypes),
    }
    wrong = {name: (theirs, ours) for name, (theirs, ours) in heads.items() if theirs != ours}
    if wrong:
        counts = "; ".join(
            f"{theirs:,} {name} in the teacher and {ours:,} here" for name, (theirs, ours) in wrong.items()
        )
        wanted = heads if own.ibot_head == "separate" else {"prototypes": heads["prototypes"]}
        raise InvalidValueError(
            f"run {teacher.name} does not fit: {counts}",
            "Set " + " and ".join(f"objective.{name} to {theirs}" for name, (theirs, _) in wanted.items()),
        )


def prefix_of(recipe: TrainingRecipe, network: NetworkRecipe) -> str:
    """What the names of a network's parameters begin with in a checkpoint of the run."""
    return "" if isinstance(recipe, PretrainRecipe) else f"{network.name}."


def recipe_of_network(recipe: TrainingRecipe, student: str | None) -> NetworkRecipe:
    """What a network that a run delivers is made of.

    Args:
        recipe: Of the run.
        student: Of a distillation; None is its only one.

    Raises:
        InvalidValueError: no such student; says which there are.
    """
    if isinstance(recipe, PretrainRecipe):
        if student is not None:
            raise InvalidValueError(
                f"student {student} was asked for, but {recipe.name} is a run of kind {recipe.kind}",
                "Leave student out",
            )
        return recipe
    assert isinstance(recipe, DistillRecipe)  # noqa: S101 -- the only other kind that trains
    found = [each for each in recipe.students if student in (None, each.name)]
    if len(found) != 1:
        names = ", ".join(each.name for each in recipe.students)
        asked = "no student was named" if student is None else f"student {student} was asked for"
        raise InvalidValueError(f"{asked}, but run {recipe.name} has {names}", "Set student to one of them")
    return recipe.of_student(found[0])
