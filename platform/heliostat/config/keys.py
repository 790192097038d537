"""The dotted keys of recipe models, and their values."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import Tag

from heliostat.config.base import Section


@dataclass(frozen=True, slots=True)
class Key:
    """A key that holds a value, its name in the section that declares it."""

    section: type[Section]
    name: str

    @property
    def description(self) -> str:
        """What the key means, as its model says it."""
        return self.section.model_fields[self.name].description or self.name

    @property
    def rule(self) -> str:
        """What a value must be, in words."""
        written = self.section.model_fields[self.name].alias or self.name
        return describe_schema(self.section.model_json_schema()["properties"][written])


def subsection(section: type[Section], name: str) -> type[Section] | None:
    """The section that a field holds; None for a field that holds a value."""
    annotation = section.model_fields[name].annotation
    return annotation if isinstance(annotation, type) and issubclass(annotation, Section) else None


def variants(section: type[Section], name: str) -> dict[str, type[Section]]:
    """The sections of which a field holds one, by the tags that tell them apart; none for any other field."""
    held = [get_args(each) for each in get_args(section.model_fields[name].annotation)]
    return {args[1].tag: args[0] for args in held if len(args) == 2 and isinstance(args[1], Tag)}


def keys_of(section: type[Section], prefix: str = "") -> dict[str, Key]:
    """All keys that hold values, by dotted name, in the order of the model."""
    found: dict[str, Key] = {}
    for name in section.model_fields:
        inner = subsection(section, name)
        found |= keys_of(inner, f"{prefix}{name}.") if inner else {f"{prefix}{name}": Key(section, name)}
    return found


def sections_of(section: type[Section], prefix: str = "") -> list[str]:
    """Dotted names of all sections."""
    found: list[str] = []
    for name in section.model_fields:
        if inner := subsection(section, name):
            found += [f"{prefix}{name}", *sections_of(inner, f"{prefix}{name}.")]
    return found


def leaves(section: Section, prefix: str = "") -> Iterator[tuple[str, Section, str]]:
    """Every value of a recipe: its dotted key, the section that holds it, its name there."""
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, Section):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", section, name


def values_of(section: Section) -> dict[str, Any]:
    """Every value by dotted key, as JSON knows it (a tuple is a list)."""
    return {dotted: owner.model_dump(mode="json", include={name})[name] for dotted, owner, name in leaves(section)}


def describe_schema(schema: dict[str, Any]) -> str:
    """A JSON schema of a value in words: "a whole number greater than 0"."""
    if "anyOf" in schema:  # of a value that may be left out
        return " or ".join("null" if part == {"type": "null"} else describe_schema(part) for part in schema["anyOf"])
    if "$ref" in schema:
        return "a mapping"
    if "const" in schema:
        return f"{schema['const']}"
    if "enum" in schema:
        return f"one of {', '.join(str(choice) for choice in schema['enum'])}"
    if schema["type"] == "array":
        return _describe_list(schema)
    words = {
        "integer": "a whole number",
        "number": "a number",
        "string": "text",
        "boolean": "true or false",
        "object": "a mapping",
    }
    return " ".join([words[schema["type"]], *_bounds(schema)])


def _describe_list(schema: dict[str, Any]) -> str:
    items = schema["prefixItems"][0] if "prefixItems" in schema else schema["items"]
    least, most = schema.get("minItems"), schema.get("maxItems")
    count = f" of {least} values" if least == most and least else f" of at least {least} values" if least else ""
    return f"a list{count.replace('1 values', '1 value')}, each {describe_schema(items)}"


def _bounds(schema: dict[str, Any]) -> list[str]:
    low = _limit(schema, {"exclusiveMinimum": "greater than", "minimum": "of at least"})
    high = _limit(schema, {"exclusiveMaximum": "less than", "maximum": "of at most"})
    limits = " and ".join(limit for limit in (low, high) if limit)
    shape = f"that matches {schema['pattern']}" if "pattern" in schema else ""
    filled = "that is not empty" if "minLength" in schema else ""
    return [part for part in (limits, shape, filled) if part]


def _limit(schema: dict[str, Any], words: dict[str, str]) -> str:
    """The first of the limits that the schema has: of two on one side the exclusive one is the stricter here."""
    return next((f"{word} {schema[name]:g}" for name, word in words.items() if name in schema), "")
