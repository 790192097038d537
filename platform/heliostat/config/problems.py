"""What is wrong with a recipe, in one line: pydantic's findings and unknown keys as our errors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import get_args

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from heliostat.config.base import Section
from heliostat.config.keys import Key, keys_of, sections_of
from heliostat.config.nearest import nearest_key
from heliostat.config.overrides import COMMAND_LINE
from heliostat.config.yaml_text import Value, show_value
from heliostat.errors import ConfigError, InvalidValueError, MissingKeyError, UnknownKeyError

_SHOWN_CHARS = 80


@dataclass(frozen=True, slots=True)
class Setting:
    """A value that somebody wrote, and where."""

    value: Value
    origin: str


def first_of(problems: Sequence[ConfigError]) -> ConfigError:
    """The first problem, which also says how many more there are."""
    first, more = problems[0], len(problems) - 1
    if not more:
        return first
    return type(first)(f"{first.fact} (and {more} more {'problem' if more == 1 else 'problems'})", first.next_step)


def unknown_key(model: type[Section], dotted: str, origin: str) -> UnknownKeyError:
    """``dotted`` is no key of the model; names the nearest one that is, or the keys that are there."""
    keys, sections = list(keys_of(model)), sections_of(model)
    nearest = nearest_key(dotted, [*keys, *sections])
    if nearest:
        next_step = f"The nearest key is {nearest}"
    else:
        section = dotted.rpartition(".")[0]
        prefix = f"{section}." if section in sections else ""
        names = dict.fromkeys(key.removeprefix(prefix).partition(".")[0] for key in keys if key.startswith(prefix))
        next_step = f"The keys {f'of {section}' if prefix else 'of a recipe'} are {', '.join(names)}"
    return UnknownKeyError(f"unknown key {_key(dotted)} ({origin})", next_step)


def not_a_section(model: type[Section], dotted: str, setting: Setting) -> InvalidValueError:
    """A single value or a list stands where a section is."""
    example = next(key for key in keys_of(model) if key.startswith(f"{dotted}."))
    return InvalidValueError(
        f"{dotted} is {_shown(setting.value)} ({setting.origin}), but it is a section of keys",
        f"Set its keys, such as {example}",
    )


def invalid_value(dotted: str, setting: Setting, rule: str) -> InvalidValueError:
    """A value that breaks its key's rule."""
    return InvalidValueError(
        f"{dotted} is {_shown(setting.value)} ({setting.origin}), but must be {rule}", _remedy(dotted, setting.origin)
    )


def translate(model: type[Section], error: ValidationError, settings: Mapping[str, Setting]) -> list[ConfigError]:
    """Pydantic's findings in its order but unknown keys first, at most one per key."""
    found: dict[str, ConfigError] = {}
    for details in error.errors(include_url=False, include_input=False):
        outer = list(takewhile(lambda part: isinstance(part, str), details["loc"]))
        dotted = ".".join(map(str, outer))
        inner = details["loc"][len(outer) :]
        if len(inner) > 1 and (section := _section_of_list(keys_of(model)[dotted])):
            where = f"{dotted}[{inner[0]}]"
            found.setdefault(f"{where}.{inner[1]}", _in_list(section, where, str(inner[1]), details, settings[dotted]))
        else:
            found.setdefault(dotted, _translate(model, dotted, details, settings))
    # A required key that is misspelt is reported twice, as unknown and as missing.
    return sorted(found.values(), key=lambda problem: not isinstance(problem, UnknownKeyError))


def _section_of_list(key: Key) -> type[Section] | None:
    """The section that a list holds; None for a list of plain values."""
    held = get_args(key.section.model_fields[key.name].annotation)
    return held[0] if held and isinstance(held[0], type) and issubclass(held[0], Section) else None


def _in_list(section: type[Section], where: str, name: str, details: ErrorDetails, setting: Setting) -> ConfigError:
    """What is wrong with one entry of a list of sections."""
    own = next((own for own, field in section.model_fields.items() if field.alias == name), name)
    if own not in section.model_fields:
        problem = unknown_key(section, name, setting.origin)
        return UnknownKeyError(f"unknown key {where}.{name} ({setting.origin})", problem.next_step)
    key = keys_of(section)[own]
    if details["type"] == "missing":
        return MissingKeyError(f"{where}.{name} is not set: {key.description}", f"Write it ({setting.origin})")
    return InvalidValueError(f"{where}.{name} ({setting.origin}) must be {key.rule}", _remedy(where, setting.origin))


def _translate(
    model: type[Section], dotted: str, details: ErrorDetails, settings: Mapping[str, Setting]
) -> ConfigError:
    key = keys_of(model)[dotted]
    if dotted not in settings:
        return MissingKeyError(
            f"{dotted} is not set: {key.description}", f"Write it in the recipe or give --set {dotted}=…"
        )
    match details["type"]:
        case "value_error":  # a validator of ours, which says the rule
            rule = str(details["ctx"]["error"])
        case "finite_number":
            rule = "a finite number"
        case _:
            rule = key.rule
    return invalid_value(dotted, settings[dotted], rule)


def _remedy(dotted: str, origin: str) -> str:
    if origin == COMMAND_LINE:
        return f"Correct --set {dotted}=…"
    name = origin.removeprefix("environment ")
    return f"Correct or unset {name}" if name != origin else f"Correct it in {origin}"


def _shown(value: Value) -> str:
    return _shortened(show_value(value))


def _key(dotted: str) -> str:
    return _shortened(dotted if dotted.isprintable() and dotted.strip() == dotted != "" else show_value(dotted))


def _shortened(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}…"
