"""The kinds of recipes."""

from typing import Annotated, Any, TypeAlias

from pydantic import Field, TypeAdapter

from heliostat.config.adapt import AdaptRecipe
from heliostat.config.curate import CurateRecipe
from heliostat.config.distill import DistillRecipe
from heliostat.config.evaluate import EvaluateRecipe
from heliostat.config.export import ExportRecipe
from heliostat.config.pipeline import PipelineRecipe
from heliostat.config.pretrain import PretrainRecipe
from heliostat.config.problems import Setting, invalid_value

Recipe: TypeAlias = (
    PretrainRecipe | AdaptRecipe | DistillRecipe | EvaluateRecipe | CurateRecipe | ExportRecipe | PipelineRecipe
)

KINDS: dict[str, type[Recipe]] = {
    "pretrain": PretrainRecipe,
    "adapt": AdaptRecipe,
    "distill": DistillRecipe,
    "evaluate": EvaluateRecipe,
    "curate": CurateRecipe,
    "export": ExportRecipe,
    "pipeline": PipelineRecipe,
}

_ANY_KIND: TypeAdapter[Recipe] = TypeAdapter(Annotated[Recipe, Field(discriminator="kind")])


def model_of_kind(kind: Setting) -> type[Recipe]:
    """The model of a recipe's ``kind``.

    Raises:
        InvalidValueError: No such kind; the message lists all.
    """
    model = KINDS.get(kind.value) if isinstance(kind.value, str) else None
    if model is None:
        raise invalid_value("kind", kind, f"one of {', '.join(KINDS)}")
    return model


def recipe_json_schema(kind: str | None = None) -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of one kind of recipe, or of any: editors complete and check with it.

    Raises:
        InvalidValueError: No such kind.
    """
    if kind is None:
        schema = _ANY_KIND.json_schema()
    else:
        schema = model_of_kind(Setting(kind, "the command line")).model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
