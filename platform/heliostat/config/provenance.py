"""What a resolved recipe leaves behind: its lock, its differences from another, and what makes two runs the same."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from heliostat.config.keys import values_of
from heliostat.config.kinds import KINDS, Recipe
from heliostat.config.load import ResolvedRecipe
from heliostat.config.pipeline import TAKES, PipelineRecipe, StageConfig
from heliostat.config.yaml_text import show_value
from heliostat.errors import ChangedConfigError

LOCK_SCHEMA_VERSION = 2
_NOT_THE_RUN = (
    *("name", "root", "scaling.", "streaming.", "observe.", "checkpoint."),
    *("training.zero_stage", "training.offload_optimizer", "training.activation_checkpointing"),
    *("training.deterministic", "search.shard_gib", "until", "embedding.gpus", "dedup.embedding.gpus"),
)
"""What may change between two attempts of one run: where it lies, who computes and feeds it and how, how often it
speaks and saves."""


class Difference(NamedTuple):
    """One key whose values differ; None stands for a key that one side does not have."""

    key: str
    left: object
    right: object


def lock(resolved: ResolvedRecipe) -> dict[str, Any]:
    """The content of ``config.lock.json``: every value with its origin."""
    return {
        "schema_version": LOCK_SCHEMA_VERSION,
        "kind": resolved.recipe.kind,
        "values": {
            key: {"value": value, "origin": resolved.origins[key]} for key, value in values_of(resolved.recipe).items()
        },
    }


def unlock(locked: Mapping[str, Any]) -> Recipe:
    """The recipe that ``lock`` recorded; overrides and environments of then are part of it, those of now are not."""
    return recipe_of({key: entry["value"] for key, entry in locked["values"].items()})


def renamed(recipe: Recipe, name: str) -> Recipe:
    """The recipe under another name; the jobs of a pipeline's stages are called after it."""
    if not isinstance(recipe, PipelineRecipe):
        return recipe.model_copy(update={"name": name})
    other = recipe.model_copy(update={"name": name})
    stages = tuple(_renamed_stage(stage, recipe, other) for stage in recipe.expanded)
    return other.model_copy(update={"stages": stages})


def _renamed_stage(stage: StageConfig, old: PipelineRecipe, new: PipelineRecipe) -> StageConfig:
    config = dict(stage.config or {})
    config["name"] = new.job_name(stage.name)
    if stage.source is not None:
        before = stage.source.rpartition(".")[0]
        taken = next(key for key in TAKES.values() if config.get(key) == old.job_name(before))
        config[taken] = new.job_name(before)
    return stage.model_copy(update={"config": config})


def with_values(recipe: Recipe, values: Mapping[str, Any]) -> Recipe:
    """The recipe with other values, by dotted key."""
    return recipe_of({**values_of(recipe), **values})


def recipe_of(values: Mapping[str, Any]) -> Recipe:
    """The recipe whose values, by dotted key, these are: what ``values_of`` gave, after a way through JSON."""
    tree: dict[str, Any] = {}
    for dotted, value in values.items():
        *outer, name = dotted.split(".")
        section = tree
        for part in outer:
            section = section.setdefault(part, {})
        section[name] = value
    return KINDS[tree["kind"]].model_validate(tree)


def relocked(locked: Mapping[str, Any], text: str, root: str) -> ResolvedRecipe:
    """The resolved recipe that ``lock`` recorded, for another process that may know the root by another name.

    Args:
        locked: What ``lock`` gave.
        text: The recipe as it was written.
        root: Where it lies, as this process says it.
    """
    origins = {key: entry["origin"] for key, entry in locked["values"].items()}
    return ResolvedRecipe(unlock(locked).model_copy(update={"root": root}), origins, text)


def identity(recipe: Recipe) -> dict[str, Any]:
    """The values that define a run, by dotted key; two attempts of one run agree in all of them."""
    if isinstance(recipe, PipelineRecipe):
        return {
            f"{stage.name}.{key}": value
            for stage in recipe.stages
            for key, value in _identity_of_stage(stage, recipe).items()
        }
    return {key: value for key, value in values_of(recipe).items() if not _may_change(key)}


def locked_identity(locked: Mapping[str, Any]) -> dict[str, Any]:
    """The same of what ``lock`` recorded; keys that a later version has added are at their defaults."""
    return identity(unlock(locked))


def _identity_of_stage(stage: StageConfig, pipeline: PipelineRecipe) -> dict[str, Any]:
    of_recipe = {} if stage.config is None else identity(recipe_of(stage.config))
    taken = pipeline.job_name("")  # a fork's stages have other names, and are the same otherwise
    own = {
        key: value.replace(taken, "") if isinstance(value, str) and key in TAKES.values() else value
        for key, value in of_recipe.items()
    }
    return {"after": sorted(stage.before), "from": stage.source, **own}


def check_same_run(old_identity: Mapping[str, object], new_identity: Mapping[str, object]) -> None:
    """Refuse to go on with a run under another configuration.

    Args:
        old_identity: Of the run that exists, by its lock file.
        new_identity: Of the recipe that wants to continue it.

    Raises:
        ChangedConfigError: They differ; the message lists every value, old -> new.
    """
    old, new = (
        {key: value for key, value in each.items() if not _may_change(key)} for each in (old_identity, new_identity)
    )
    changes = _differences(old, new)
    if changes:
        listed = ", ".join(f"{key} {_shown(left)} -> {_shown(right)}" for key, left, right in changes)
        raise ChangedConfigError(
            f"a run of this name has another configuration: {listed}",
            "Give this run another name, or put the values back",
        )


def diff_recipes(left: Recipe, right: Recipe) -> list[Difference]:
    """The resolved values that differ, in the order of the models."""
    return _differences(values_of(left), values_of(right))


def _differences(left: Mapping[str, object], right: Mapping[str, object]) -> list[Difference]:
    keys = dict.fromkeys([*left, *right])
    return [Difference(key, left.get(key), right.get(key)) for key in keys if left.get(key) != right.get(key)]


def _may_change(key: str) -> bool:
    return any(key == name or (name.endswith(".") and key.startswith(name)) for name in _NOT_THE_RUN)


def _shown(value: object) -> str:
    return "nothing" if value is None else show_value(value)
