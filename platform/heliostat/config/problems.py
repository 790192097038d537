"""What is wrong with a recipe, in one line: pydantic's findings and unknown keys as our errors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import get_args

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from heliostat.config.base import Section
from heliostat.config.keys import Key, keys_of, sections_of, subsection, variants
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


def unknown_key(model: type[Section], dotted: str, origin: str, where: str = "") -> UnknownKeyError:
    """``dotted`` is no key of the model; names the nearest one that is, or the keys that are there.

    Args:
        model: Of a recipe, or of a section in a list.
        dotted: As it was written.
        origin: Who wrote it.
        where: The section in a list.
    """
    keys, sections = list(keys_of(model)), sections_of(model)
    nearest = nearest_key(dotted, [*keys, *sections])
    if nearest:
        next_step = f"The nearest key is {nearest}"
    else:
        section = dotted.rpartition(".")[0]
        prefix = f"{section}." if section in sections else ""
        names = dict.fromkeys(key.removeprefix(prefix).partition(".")[0] for key in keys if key.startswith(prefix))
        next_step = f"The keys of {section if prefix else where or 'a recipe'} are {', '.join(names)}"
    written = f"{where}.{dotted}" if where else dotted
    return UnknownKeyError(f"unknown key {_key(written)} ({origin})", next_step)


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
            place = _place(section, f"{dotted}[{inner[0]}]", inner[1:])
            found.setdefault(f"{place.where}.{place.name}", _in_list(place, details, settings[dotted]))
        elif not any(key.startswith(f"{dotted}[") for key in found):  # without its broken entries a list is too short
            found.setdefault(dotted, _translate(model, dotted, details, settings))
    # A required key that is misspelt is reported twice, as unknown and as missing.
    return sorted(found.values(), key=lambda problem: not isinstance(problem, UnknownKeyError))


def _section_of_list(key: Key) -> type[Section] | None:
    """The section that a list holds; None for a list of plain values."""
    held = get_args(key.section.model_fields[key.name].annotation)
    return held[0] if held and isinstance(held[0], type) and issubclass(held[0], Section) else None


@dataclass(frozen=True, slots=True)
class _Place:
    """A key of a section that lies in an entry of a list."""

    section: type[Section]
    where: str
    """The section's own place."""
    name: str
    variants: tuple[type[Section], ...] = ()
    """What the section is one of, told apart by a key that all of them have."""


def _place(
    section: type[Section], where: str, path: Sequence[int | str], among: tuple[type[Section], ...] = ()
) -> _Place:
    """The innermost section on a path of pydantic's, which has a tag wherever a field holds one of several sections."""
    name, rest = str(path[0]), path[1:]
    here = _Place(section, where, name, among)
    if name not in section.model_fields:
        return here
    of_name = variants(section, name)
    inner = subsection(section, name)
    if of_name and rest:
        inner, rest = of_name[str(rest[0])], rest[1:]
    return _place(inner, f"{where}.{name}", rest, tuple(of_name.values())) if inner and rest else here


def _in_list(place: _Place, details: ErrorDetails, setting: Setting) -> ConfigError:
    """What is wrong with one entry of a list of sections."""
    section, name = place.section, place.name
    dotted = f"{place.where}.{name}"
    own = next((own for own, field in section.model_fields.items() if field.alias == name), name)
    if own not in section.model_fields:
        return unknown_key(section, name, setting.origin, place.where)
    if subsection(section, own) or variants(section, own):
        rule = "a section of keys"
    elif details["type"] == "missing" and details["loc"][-1] == name:
        description = Key(section, own).description
        return MissingKeyError(f"{dotted} is not set: {description}", f"Write it ({setting.origin})")
    else:
        # What tells variants apart may be any of theirs; all else is a matter of the one that it is.
        sections = place.variants if details["type"] == "literal_error" and place.variants else (section,)
        rule = " or ".join(_rule(Key(each, own), details) for each in sections if own in each.model_fields)
    return InvalidValueError(f"{dotted} ({setting.origin}) must be {rule}", _remedy(place.where, setting.origin))


def _rule(key: Key, details: ErrorDetails) -> str:
    match details["type"]:
        case "value_error":  # a validator of ours, which says the rule
            return str(details["ctx"]["error"])
        case "finite_number":
            return "a finite number"
        case _:
            return key.rule


def _translate(
    model: type[Section], dotted: str, details: ErrorDetails, settings: Mapping[str, Setting]
) -> ConfigError:
    key = keys_of(model)[dotted]
    if dotted not in settings:
        return MissingKeyError(
            f"{dotted} is not set: {key.description}", f"Write it in the recipe or give --set {dotted}=…"
        )
    return invalid_value(dotted, settings[dotted], _rule(key, details))


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
