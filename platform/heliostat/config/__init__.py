"""One recipe is one YAML file is one pydantic model: the same names in YAML, Python and ``--set a.b=c``."""

from heliostat.config.evaluate import EvaluateRecipe
from heliostat.config.kinds import KINDS, Recipe, recipe_json_schema
from heliostat.config.load import ResolvedRecipe, load_recipe
from heliostat.config.pretrain import PretrainRecipe
from heliostat.config.provenance import (
    Difference,
    check_same_run,
    diff_recipes,
    identity,
    lock,
    locked_identity,
    relocked,
    renamed,
    unlock,
)

__all__ = [
    "KINDS",
    "Difference",
    "EvaluateRecipe",
    "PretrainRecipe",
    "Recipe",
    "ResolvedRecipe",
    "check_same_run",
    "diff_recipes",
    "identity",
    "load_recipe",
    "lock",
    "locked_identity",
    "recipe_json_schema",
    "relocked",
    "renamed",
    "unlock",
]
