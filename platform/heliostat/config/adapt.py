"""``kind: adapt``: a trained run goes on at a higher resolution (DINOv2, arXiv 2304.07193, section 3 and appendix B.2).

Student, teacher and heads go on; position embeddings are resized to the new grid; the optimizer and all schedules begin
anew, compressed into the few steps of this stage.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from heliostat.config.base import Name, Section
from heliostat.config.distill import recipe_of_network
from heliostat.config.pretrain import PretrainRecipe
from heliostat.config.training import TrainingConfig, TrainingRecipe, nearest_multiple
from heliostat.errors import InvalidValueError

COMPRESSED: Mapping[tuple[str, str], float] = MappingProxyType(
    {
        ("training", "warmup_steps"): 0.1,
        ("training", "freeze_prototypes_steps"): 0.01,
        ("objective", "teacher_temperature_warmup_steps"): 0.3,
    }
)
"""Share of all steps that a schedule takes where the recipe does not say: as in the official training of 100 epochs."""

_FREE_OF_MODEL = {"arch", "drop_path", "rope", "layer_scale", "position_resize"}
"""What shapes no tensor: how it is trained, or begins, or how its positions are resized."""


class InitFromConfig(Section):
    """The trained networks that a run begins with."""

    run: Name = Field(description="the finished run whose student, teacher and heads go on")
    step: int | None = Field(None, ge=0, description="of the checkpoint; null is the newest when this run is created")
    student: Name | None = Field(None, description="which one goes on, where the run is a distillation of several")


class AdaptTrainingConfig(TrainingConfig):
    """Steps, batches and the optimizer; schedules that are not set are compressed into the steps."""

    base_lr: float = Field(
        4e-4,
        gt=0,
        description="learning rate at a global batch of 1024; scaled by sqrt(global_batch/1024). The paper has reduced "
        "it and does not say how far; this is a tenth of that of pre-training",
    )


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
        if not isinstance(steps, int):
            return values  # one of the fields says what is wrong
        filled = dict(values)
        for (section, key), share in COMPRESSED.items():
            own = filled.get(section, {})
            if isinstance(own, dict):
                filled[section] = {key: int(steps * share), **own}
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
    mine = _shapes(recipe)
    theirs = _shapes(recipe_of_network(trained, recipe.init_from.student))
    differing = [key for key in {**mine, **theirs} if mine.get(key) != theirs.get(key)]
    if differing:
        told = "; ".join(f"{key} is {theirs.get(key)} there and {mine.get(key)} here" for key in differing)
        raise InvalidValueError(
            f"run {trained.name} does not fit: {told}",
            "Set " + " and ".join(f"{key} to {theirs.get(key)}" for key in differing),
        )


def _shapes(recipe: PretrainRecipe) -> dict[str, object]:
    """What the tensors of a network, and what they mean, follow from, by key of the recipe."""
    model, objective = recipe.model, recipe.objective
    found: dict[str, object] = {f"model.{key}": value for key, value in model if key not in _FREE_OF_MODEL}
    if model.rotary is not None:
        found |= {f"model.rope.{key}": getattr(model.rope, key) for key in ("base", "normalise")}
    found |= {f"objective.{key}": getattr(objective, key) for key in ("ibot_head", "prototype_layer")}
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
