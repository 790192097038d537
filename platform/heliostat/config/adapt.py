"""``kind: adapt``: a trained run goes on at a higher resolution (DINOv2, arXiv 2304.07193, section 3 and appendix B.2).

Student, teacher and heads go on; position embeddings are resized to the new grid; the optimizer and all schedules begin
anew, compressed into the few steps of this stage.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from heliostat.config.base import Name, Section, check_run_or_weights
from heliostat.config.distill import recipe_of_network
from heliostat.config.model import ModelConfig
from heliostat.config.network import BackboneConfig, NetworkRecipe
from heliostat.config.objective import ObjectiveConfig
from heliostat.config.pretrain import PretrainRecipe
from heliostat.config.training import TrainingConfig, TrainingRecipe, nearest_multiple
from heliostat.errors import InvalidValueError

COMPRESSED: Mapping[tuple[str, str], int] = MappingProxyType(
    {
        ("training", "warmup_steps"): 10,
        ("training", "freeze_prototypes_steps"): 1,
        ("objective", "teacher_temperature_warmup_steps"): 30,
    }
)
"""Percent of all steps that a schedule takes where the recipe does not say, as in official training of 100 epochs."""
HEADLESS: Mapping[tuple[str, str], int] = MappingProxyType(
    {("training", "freeze_backbone_steps"): 10, ("training", "unfreeze_steps"): 10}
)
"""The same, where there are no trained heads."""

_FREE_OF_MODEL = {"arch", "drop_path", "rope", "layer_scale", "position_resize"}
"""What shapes no tensor: how it is trained, or begins, or how its positions are resized."""


def _origin_of_unset(section: str, key: str, otherwise: str) -> str:
    """Where a value comes from that nobody has set: the steps, of schedules."""
    return "a share of training.steps" if (section, key) in {**COMPRESSED, **HEADLESS} else otherwise


class InitFromConfig(Section):
    """The trained networks that a run begins with: those of a run, or a backbone from elsewhere."""

    run: Name | None = Field(None, description="the finished run whose student, teacher and heads go on")
    step: int | None = Field(None, ge=0, description="of the checkpoint; null is the newest when this run is created")
    student: Name | None = Field(None, description="which one goes on, where the run is a distillation of several")
    weights: str | None = Field(
        None,
        min_length=1,
        description="a backbone alone, as heliostat.load_backbone takes it: dinov2_vits14, a file, a folder; heads are "
        "drawn, and learn first (training.freeze_backbone_steps)",
    )

    @model_validator(mode="after")
    def _is_one_of_both(self) -> Self:
        check_run_or_weights("init_from", self.run, self.weights)
        if self.run is None and (self.step is not None or self.student is not None):
            raise InvalidValueError(
                "init_from.step and init_from.student are of a run, and init_from.weights is set", "Leave them out"
            )
        return self


class AdaptObjectiveConfig(ObjectiveConfig):
    """As of pre-training; schedules that are not set are compressed into the steps."""

    def origin_of_unset(self, key: str) -> str:
        """The steps, of the schedule that they set."""
        return _origin_of_unset("objective", key, super().origin_of_unset(key))


class AdaptTrainingConfig(TrainingConfig):
    """Steps, batches and the optimizer; schedules that are not set are compressed into the steps."""

    base_lr: float = Field(
        4e-4,
        gt=0,
        description="learning rate at a global batch of 1024; scaled by sqrt(global_batch/1024). The paper has reduced "
        "it and does not say how far; this is a tenth of that of pre-training",
    )
    freeze_backbone_steps: int = Field(
        0,
        ge=0,
        description="steps in which the heads learn alone; where init_from.weights gives no heads, a tenth of all "
        "steps unless set",
    )
    unfreeze_steps: int = Field(
        0,
        ge=0,
        description="steps after those in which the backbone begins to learn block by block, from the last one; where "
        "init_from.weights gives no heads, a tenth of all steps unless set",
    )

    @model_validator(mode="after")
    def _the_backbone_learns_in_time(self) -> Self:
        frozen = self.freeze_backbone_steps + self.unfreeze_steps
        if frozen > self.steps:
            raise InvalidValueError(
                f"training.freeze_backbone_steps and training.unfreeze_steps are {frozen:,} together, more than "
                f"training.steps {self.steps:,}",
                "Lower them",
            )
        return self

    def origin_of_unset(self, key: str) -> str:
        """The steps, of the schedules that they set; of a run with heads nothing is frozen, which is the default."""
        default = super().origin_of_unset(key)
        if ("training", key) in HEADLESS and not getattr(self, key):
            return default
        return _origin_of_unset("training", key, default)

    @property
    def unfreezes_by_block(self) -> bool:
        """Whether parts of the backbone begin to learn one after the other."""
        return self.unfreeze_steps > 0

    @property
    def learns_by_heads_alone(self) -> bool:
        """Whether the backbone learns in no step."""
        return self.freeze_backbone_steps == self.steps

    def frozen_depth(self, step: int) -> float:
        """Share of the backbone's depth, from the first layer, that does not learn at a step."""
        if step < self.freeze_backbone_steps:
            return 1.0
        learning = step - self.freeze_backbone_steps + 1
        return max(0.0, 1 - learning / (self.unfreeze_steps + 1))


class CropSizesConfig(Section):
    """Sizes of the crops of some of the steps."""

    global_px: int = Field(gt=0, description="side of a global crop")
    local_px: int = Field(gt=0, description="side of a local crop")
    gram_px: int | None = Field(
        None, gt=0, description="side of the Gram teacher's crops; null is objective.gram.crop_px, or twice global_px"
    )
    weight: float = Field(gt=0, description="share of the steps, in proportion to the other weights")


class AdaptRecipe(PretrainRecipe):
    """Go on with a finished run at another resolution, or at several."""

    kind: Literal["adapt"]  # type: ignore[assignment]  # of the kinds that train one backbone, each has its word
    init_from: InitFromConfig
    objective: AdaptObjectiveConfig = Field(default_factory=lambda: AdaptObjectiveConfig.model_validate({}))
    training: AdaptTrainingConfig
    crop_sizes: tuple[CropSizesConfig, ...] = Field(
        (),
        description="several resolutions, one of them drawn for each step, as DINOv3 does; position embeddings are "
        "stored for augmentation.global_px, which alone is taken where this is empty",
    )

    @field_validator("crop_sizes", mode="before")
    @classmethod
    def _listed(cls, value: object) -> object:
        return tuple(value) if isinstance(value, list) else value

    @model_validator(mode="before")
    @classmethod
    def _compress(cls, values: Any) -> Any:
        """Schedules that nobody has set end in proportion to the steps."""
        training = values.get("training") if isinstance(values, dict) else None
        steps = training.get("steps") if isinstance(training, dict) else None
        if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
            return values  # one of the fields says what is wrong
        filled = dict(values)
        init_from = values.get("init_from")
        has_heads = isinstance(init_from, dict) and init_from.get("weights") is None
        for (section, key), share in {**COMPRESSED, **({} if has_heads else HEADLESS)}.items():
            own = filled.get(section, {})
            if isinstance(own, dict):
                filled[section] = {key: steps * share // 100, **own}
        return filled

    @model_validator(mode="after")
    def _all_sizes_are_whole_patches(self) -> Self:
        patch = self.model.patch_px
        for index, sizes in enumerate(self.crop_sizes):
            for key in ("global_px", "local_px", "gram_px"):
                side = getattr(sizes, key)
                if side is not None and side % patch:
                    raise InvalidValueError(
                        f"crop_sizes[{index}].{key} {side} is not a multiple of model.patch_px {patch}",
                        f"Set it to {nearest_multiple(side, patch)}",
                    )
        return self

    @model_validator(mode="after")
    def _sizes_are_used(self) -> Self:
        side, sides = self.augmentation.global_px, [sizes.global_px for sizes in self.crop_sizes]
        if sides and side not in sides:
            raise InvalidValueError(
                f"augmentation.global_px {side}, for which positions are stored and the network is judged, is none of "
                f"those of crop_sizes: {', '.join(map(str, sides))}",
                f"Set augmentation.global_px to {max(sides)}, or add a size",
            )
        if self.objective.anchoring is None and any(sizes.gram_px is not None for sizes in self.crop_sizes):
            raise InvalidValueError(
                "crop_sizes has a gram_px, but objective.gram.weight is 0", "Leave it out, or set objective.gram.weight"
            )
        return self

    def at_sizes(self, sizes: CropSizesConfig) -> "AdaptRecipe":
        """This recipe as if all its steps had these sizes of crops."""
        sides = {"global_px": sizes.global_px, "local_px": sizes.local_px}
        update: dict[str, object] = {"augmentation": self.augmentation.model_copy(update=sides), "crop_sizes": ()}
        if sizes.gram_px is not None:
            gram = self.objective.gram.model_copy(update={"crop_px": sizes.gram_px})
            update["objective"] = self.objective.model_copy(update={"gram": gram})
        return self.model_copy(update=update)


def check_init_from(recipe: AdaptRecipe, trained: TrainingRecipe) -> None:
    """Refuse a run whose networks this one cannot go on with.

    Raises:
        InvalidValueError: they have other shapes, or no such student; says what differs.
    """
    network = recipe_of_network(trained, recipe.init_from.student)
    if not network.objective.has_heads:
        raise InvalidValueError(
            f"run {trained.name} does not fit: its students have no heads, since they learnt features alone",
            "Export the student (heliostat checkpoint export) and set init_from.weights to the file: heads learn first",
        )
    theirs = {**_model_shapes(_transformer(network.model, f"run {trained.name}")), **_head_shapes(network)}
    _compare(f"run {trained.name}", {**_model_shapes(recipe.model), **_head_shapes(recipe)}, theirs)


def check_backbone(recipe: AdaptRecipe, backbone: BackboneConfig) -> None:
    """Refuse weights that this run's backbone is not made of.

    Raises:
        InvalidValueError: they have other shapes; says what differs.
    """
    what = f"backbone {recipe.init_from.weights}"
    _compare(what, _model_shapes(recipe.model), _model_shapes(_transformer(backbone, what)))


def _transformer(model: BackboneConfig, what: str) -> ModelConfig:
    if isinstance(model, ModelConfig):
        return model
    raise InvalidValueError(
        f"{what} does not fit: its network is convolutional ({model.arch}), which learns from a teacher only",
        "Name one of a vision transformer",
    )


def _compare(what: str, mine: Mapping[str, object], theirs: Mapping[str, object]) -> None:
    differing = [key for key in {**mine, **theirs} if mine.get(key) != theirs.get(key)]
    if differing:
        told = "; ".join(f"{key} is {theirs.get(key)} there and {mine.get(key)} here" for key in differing)
        raise InvalidValueError(
            f"{what} does not fit: {told}",
            "Set " + " and ".join(f"{key} to {theirs.get(key)}" for key in differing),
        )


def _model_shapes(model: ModelConfig) -> dict[str, object]:
    """What the tensors of a backbone, and what they mean, follow from, by key of the recipe."""
    found: dict[str, object] = {f"model.{key}": value for key, value in model if key not in _FREE_OF_MODEL}
    if model.rotary is not None:
        found |= {f"model.rope.{key}": getattr(model.rope, key) for key in ("base", "normalise")}
    return found


def _head_shapes(recipe: NetworkRecipe) -> dict[str, object]:
    """The same of its heads."""
    objective = recipe.objective
    found: dict[str, object] = {f"objective.{key}": getattr(objective, key) for key in ("ibot_head", "prototype_layer")}
    heads = {"": objective.dino_head_sizes}
    if objective.ibot_head == "separate":
        heads["ibot_"] = objective.ibot_head_sizes
    for prefix, sizes in heads.items():
        found |= {
            f"objective.{prefix}prototypes": sizes.prototypes,
            f"objective.{prefix}head_hidden": sizes.hidden,
            f"objective.{prefix}head_bottleneck": sizes.bottleneck,
        }
    return found
