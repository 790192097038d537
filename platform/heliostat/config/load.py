"""From a YAML file, the environment and ``--set`` to one validated recipe that knows where each value came from."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath

from pydantic import ValidationError

from heliostat.config.base import Section
from heliostat.config.distill import recipe_of_network
from heliostat.config.evaluate import EvaluateRecipe
from heliostat.config.export import ExportRecipe
from heliostat.config.keys import keys_of, leaves, sections_of, subsection, values_of
from heliostat.config.kinds import KINDS, Recipe, model_of_kind
from heliostat.config.nearest import edit_distance
from heliostat.config.overrides import from_command_line, from_environment
from heliostat.config.pipeline import TAKES, PipelineRecipe, StageConfig, in_order
from heliostat.config.problems import Setting, first_of, not_a_section, translate, unknown_key
from heliostat.config.starts import check_start, start_of
from heliostat.config.training import TrainingRecipe
from heliostat.config.yaml_text import MAX_BYTES, Document, Path, Value, read_mapping, show_value
from heliostat.errors import (
    ConfigError,
    InvalidValueError,
    MissingKeyError,
    RecipeNotFoundError,
    RecipeSyntaxError,
    UnknownKeyError,
)

Written = tuple[str, Setting]
"""A dotted key as somebody wrote it, right or wrong, with its value."""


@dataclass(frozen=True, slots=True)
class ResolvedRecipe:
    """A recipe with the origin of every value."""

    recipe: Recipe
    origins: dict[str, str]
    """By dotted key: default, recipe.yaml:12, environment HELIOSTAT__TRAINING__STEPS, --set, or arch vit_s."""
    text: str
    """The recipe file as it was written."""


def load_recipe(path: str | FilePath, overrides: Sequence[str], environ: Mapping[str, str]) -> ResolvedRecipe:
    """Read, override and validate a recipe. Of default, file, environment and ``--set`` the last that speaks wins.

    Args:
        path: A YAML file.
        overrides: ``training.steps=300``, the values in YAML's notation.
        environ: Where ``HELIOSTAT__TRAINING__STEPS=300`` is looked for.

    Raises:
        ConfigError: Its subclass says what; of several problems the first is raised and the others are counted. Of a
            pipeline it may be a problem of a stage's recipe.
    """
    file = FilePath(path)
    text = _read(file)
    document = read_mapping(text, file.name)
    outside = [*from_environment(environ), *(from_command_line(override) for override in overrides)]
    later = [(override.key, Setting(override.value, override.origin)) for override in outside]
    model = model_of_kind(_kind(document, later, file.name))
    settings, problems = _sort(model, [*_written(model, document.values, document, (), file.name), *later])
    recipe = _validated(model, settings, problems)
    if isinstance(recipe, PipelineRecipe):
        recipe = _with_stages(recipe, file.parent)
    origins = {
        dotted: settings[dotted].origin if dotted in settings else owner.origin_of_unset(name)
        for dotted, owner, name in leaves(recipe)
    }
    return ResolvedRecipe(recipe, origins, text)


def _with_stages(pipeline: PipelineRecipe, folder: FilePath) -> PipelineRecipe:
    """The pipeline with the recipes of its stages in it, so that it can be carried out where their files are not."""
    stages: dict[str, StageConfig] = {}
    made: dict[str, Recipe] = {}
    for stage in in_order(pipeline.expanded):
        recipe = _stage_recipe(pipeline, stage, stages, folder)
        _check_pair(recipe, made)
        made[recipe.name] = recipe
        stages[stage.name] = stage.model_copy(update={"config": values_of(recipe)})
    return pipeline.model_copy(update={"stages": tuple(stages[stage.name] for stage in pipeline.expanded)})


def _check_pair(recipe: Recipe, made: Mapping[str, Recipe]) -> None:
    """Refuse a stage that does not fit the one whose run it takes, before that is trained."""
    start = start_of(recipe)
    if start is not None:
        trained = made.get(start.run)
        if isinstance(trained, TrainingRecipe):
            check_start(recipe, trained)
    elif isinstance(recipe, EvaluateRecipe | ExportRecipe):
        run = made.get(recipe.run)
        if isinstance(run, TrainingRecipe):
            recipe_of_network(run, recipe.student)


def _stage_recipe(
    pipeline: PipelineRecipe, stage: StageConfig, earlier: Mapping[str, StageConfig], folder: FilePath
) -> Recipe:
    fixed = {"name": pipeline.job_name(stage.name), "root": pipeline.root}
    kind = _kind_of(folder / stage.recipe)
    if stage.source is not None:
        before = earlier[stage.source.rpartition(".")[0]]
        key = TAKES.get(((before.config or {})["kind"], kind))
        if key is None:
            raise InvalidValueError(
                f"stage {stage.name} is of kind {kind}, which cannot start from {stage.source}",
                f"Leave from out; what can: {', '.join(f'{taker} from {giver}' for giver, taker in TAKES)}",
            )
        fixed[key] = pipeline.job_name(before.name)
    if kind == "pipeline":
        raise InvalidValueError(f"stage {stage.name} is a pipeline itself", "Put its stages into this one")
    overrides = [*stage.set, *(f"{key}={show_value(value)}" for key, value in fixed.items())]
    try:
        return load_recipe(folder / stage.recipe, overrides, {}).recipe
    except ConfigError as error:
        raise type(error)(f"stage {stage.name}: {error.fact}", error.next_step) from error


def _kind_of(file: FilePath) -> str:
    return str(_kind(read_mapping(_read(file), file.name), (), file.name).value)


def _read(file: FilePath) -> str:
    try:
        with file.open("rb") as stream:
            return stream.read(MAX_BYTES + 1).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RecipeSyntaxError(f"{file} is not UTF-8 text", "Check that it is a recipe") from error
    except FileNotFoundError as error:
        raise RecipeNotFoundError(f"recipe {file} does not exist", "Check its path") from error
    except IsADirectoryError as error:
        raise RecipeNotFoundError(f"recipe {file} is a folder", "Name a YAML file in it") from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise RecipeNotFoundError(f"recipe {str(file)!r} cannot be read: {reason}", "Check its rights") from error


def _kind(document: Document, later: Iterable[Written], source: str) -> Setting:
    found = [setting for key, setting in later if key == "kind"]
    if found:
        return found[-1]
    if "kind" in document.values:
        return Setting(document.values["kind"], f"{source}:{document.lines['kind',]}")
    for key in document.values:
        if edit_distance(key[:10], "kind") == 1:
            raise UnknownKeyError(f"unknown key {key} ({source}:{document.lines[key,]})", "The nearest key is kind")
    raise MissingKeyError(f"{source} does not say its kind", f"Begin it with 'kind: …', one of {', '.join(KINDS)}")


def _written(
    section: type[Section], values: Mapping[str, Value], document: Document, outer: Path, source: str
) -> Iterator[Written]:
    """What the file says, one entry per value; of an unknown mapping its first value stands for all."""
    for name, value in values.items():
        path = (*outer, name)
        known = name in section.model_fields
        inner = subsection(section, name) if known else None
        if inner and isinstance(value, dict):
            yield from _written(inner, value, document, path, source)
        else:
            whole = path if known else (*path, *_first_path(value))
            yield ".".join(whole), Setting(value, f"{source}:{document.lines[path]}")


def _first_path(value: Value) -> Path:
    if not isinstance(value, dict) or not value:
        return ()
    name, inner = next(iter(value.items()))
    return (name, *_first_path(inner))


def _sort(model: type[Section], written: Iterable[Written]) -> tuple[dict[str, Setting], list[ConfigError]]:
    """Values of keys that exist, the last of each winning, and the problems with the others."""
    keys, sections = keys_of(model), sections_of(model)
    settings: dict[str, Setting] = {}
    problems: list[ConfigError] = []
    for dotted, setting in written:
        if dotted in keys:
            settings[dotted] = setting
        elif dotted not in sections:
            problems.append(unknown_key(model, dotted, setting.origin))
        elif setting.value is not None:  # a section whose keys are all commented out is null
            problems.append(not_a_section(model, dotted, setting))
    return settings, problems


def _validated(model: type[Recipe], settings: Mapping[str, Setting], problems: list[ConfigError]) -> Recipe:
    try:
        recipe = model.model_validate(_nested(model, settings))
    except ValidationError as error:
        found = translate(model, error, settings)
        # A required key that is misspelt would be reported twice, as unknown and as missing.
        problems += [problem for problem in found if not (problems and isinstance(problem, MissingKeyError))]
    except ConfigError as error:
        problems.append(error)
    if problems:
        raise first_of(problems)
    return recipe


def _nested(model: type[Section], settings: Mapping[str, Setting]) -> dict[str, object]:
    """The settings as the model wants them. All sections are there: what is missing is a key, never a section."""
    tree: dict[str, object] = {}
    sections: dict[str, dict[str, object]] = {"": tree}
    for dotted in sections_of(model):
        outer, _, name = dotted.rpartition(".")
        sections[dotted] = sections[outer][name] = {}
    for dotted, setting in settings.items():
        outer, _, name = dotted.rpartition(".")
        sections[outer][name] = setting.value
    return tree
