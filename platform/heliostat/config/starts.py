"""What a run starts from: the finished run or the backbone that a recipe names, whatever its kind calls it."""

from dataclasses import dataclass

from heliostat.config.adapt import AdaptRecipe, InitFromConfig, check_backbone, check_init_from
from heliostat.config.distill import DistillRecipe, TeacherConfig, check_teacher, check_teacher_backbone
from heliostat.config.kinds import Recipe
from heliostat.config.network import BackboneConfig
from heliostat.config.pretrain import PretrainRecipe
from heliostat.config.training import TrainingRecipe
from heliostat.errors import InvalidValueError


@dataclass(frozen=True, slots=True)
class Start:
    """The trained networks that a run needs before its first step."""

    key: str
    """Of the recipe, which names the run."""
    run: str
    step: int | None
    """Of the checkpoint; None is the newest."""


def start_of(recipe: Recipe | TrainingRecipe) -> Start | None:
    """The finished run that a recipe names; None where networks are drawn, and where none are trained."""
    match recipe:
        case DistillRecipe(teacher=TeacherConfig(run=str(run))):
            return Start("teacher.run", run, recipe.teacher.step)
        case AdaptRecipe(init_from=InitFromConfig(run=str(run))):
            return Start("init_from.run", run, recipe.init_from.step)
        case _:
            return None


def weights_of(recipe: Recipe | TrainingRecipe) -> tuple[str, str] | None:
    """The key of a recipe that names a backbone from elsewhere, and its name or path; None where nothing does."""
    match recipe:
        case DistillRecipe(teacher=TeacherConfig(weights=str(weights))):
            return "teacher.weights", weights
        case AdaptRecipe(init_from=InitFromConfig(weights=str(weights))):
            return "init_from.weights", weights
        case _:
            return None


def check_weights(recipe: TrainingRecipe, backbone: BackboneConfig) -> None:
    """Refuse a backbone from elsewhere that the recipe cannot start from.

    Raises:
        InvalidValueError: it does not fit; says what differs.
    """
    match recipe:
        case DistillRecipe():
            check_teacher_backbone(recipe, backbone, f"backbone {recipe.teacher.weights}")
        case AdaptRecipe():
            check_backbone(recipe, backbone)


def check_start(recipe: Recipe | TrainingRecipe, trained: TrainingRecipe) -> None:
    """Refuse a run that the recipe cannot start from.

    Args:
        recipe: That names it.
        trained: Of the run that is named.

    Raises:
        InvalidValueError: it does not fit; says what differs.
    """
    match recipe:
        case DistillRecipe():
            if not isinstance(trained, PretrainRecipe):
                raise InvalidValueError(
                    f"teacher.run {trained.name} is a run of kind {trained.kind}",
                    "Name a run of kind pretrain or adapt, which has heads",
                )
            check_teacher(recipe, trained)
        case AdaptRecipe():
            check_init_from(recipe, trained)
