"""YAML as text: the one place that turns it into values, and values back into it.

Only what a recipe needs is read: mappings, lists, text, numbers, booleans and null, by the rules of YAML 1.2. PyYAML's
own rules are those of YAML 1.1, in which ``1e-3`` is text, ``no`` is false and ``1:30`` is ninety. Tags make no
objects. The text is untrusted: nesting is limited before it is composed (which recurses in C, and would end the
process), and so is what aliases expand to.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import yaml

from heliostat.errors import RecipeSyntaxError

Scalar: TypeAlias = str | int | float | bool | None
Value: TypeAlias = "Scalar | list[Value] | dict[str, Value]"
Path: TypeAlias = tuple[str, ...]

MAX_BYTES = 1 << 20
MAX_DEPTH = 32
MAX_VALUES = 10_000
"""Values after aliases are expanded. The longest recipe has a hundred; "billion laughs" reach this at once."""

_PREFIX = "tag:yaml.org,2002:"
_PATTERNS = {
    "null": r"~|null|Null|NULL|",
    "bool": r"true|True|TRUE|false|False|FALSE",
    "int": r"[-+]?[0-9]+",
    "float": r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
}


class _Loader(yaml.CSafeLoader):
    """PyYAML's safe loader with the scalars of YAML 1.2; only its parser and composer are used, never a constructor."""


_Loader.yaml_implicit_resolvers = {
    None: [(_PREFIX + name, re.compile(rf"(?:{pattern})\Z")) for name, pattern in _PATTERNS.items()]
}


@dataclass(frozen=True, slots=True)
class Document:
    """A YAML mapping and the line (from 1) of each of its keys, nested ones under their path."""

    values: dict[str, Value]
    lines: Mapping[Path, int]


def read_mapping(text: str, source: str) -> Document:
    """The values of a recipe.

    Args:
        text: YAML.
        source: What errors call it: the file's name.

    Raises:
        RecipeSyntaxError: Not YAML, not a mapping, a key twice, nested too deeply or too large.
    """
    node = _composed(text, source)
    if not isinstance(node, yaml.MappingNode):
        found = "nothing" if node is None else "a list" if isinstance(node, yaml.SequenceNode) else "a single value"
        raise RecipeSyntaxError(
            f"{source} holds {found}, but a recipe is a mapping",
            "Write keys and values, the first of them 'kind: pretrain'",
        )
    reader = _Reader(source)
    return Document(reader.mapping(node, ()), reader.lines)


def read_value(text: str, source: str) -> Value:
    """One value in YAML's notation: ``3``, ``1e-3``, ``[1, 2]``, ``s3://bucket/prefix``; empty text is null.

    Raises:
        RecipeSyntaxError: Not YAML.
    """
    node = _composed(text, source)
    return None if node is None else _Reader(source).value(node, ())


def show_value(value: object) -> str:
    """The shortest one-line YAML that ``read_value`` reads as the same value."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, float):
        return repr(value) if value - value == 0 else f"{'-' if value < 0 else ''}.{'nan' if value != value else 'inf'}"
    if isinstance(value, int):
        return _show_int(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(show_value(item) for item in value)}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{show_value(key)}: {show_value(item)}' for key, item in value.items())}}}"
    return _show_text(str(value))


def _show_int(value: int) -> str:
    # Python refuses to print integers of more than 4,300 digits; the error message about one must not fail on that.
    return str(value) if abs(value) < 10**100 else "a number of more than 100 digits"


def _show_text(text: str) -> str:
    plain = re.fullmatch(r"[A-Za-z/][A-Za-z0-9_./~+-]*(:[A-Za-z0-9_./~+-]+)*", text)
    if plain and not any(re.fullmatch(pattern, text) for pattern in _PATTERNS.values()):
        return text
    escapes = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\t": "\\t", "\r": "\\r"}
    return '"' + "".join(escapes.get(char) or (char if char.isprintable() else _escape(char)) for char in text) + '"'


def _escape(char: str) -> str:
    return f"\\U{ord(char):08X}" if ord(char) > 0xFFFF else f"\\u{ord(char):04X}"


def _composed(text: str, source: str) -> yaml.Node | None:
    if len(text) > MAX_BYTES:
        raise RecipeSyntaxError(f"{source} is larger than {MAX_BYTES} bytes", "Check that it is a recipe")
    try:
        _check_depth(text, source)
        node: yaml.Node | None = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"{source}:{mark.line + 1}" if mark else source
        where = f"Correct line {mark.line + 1}, near column {mark.column + 1}" if mark else "Correct it"
        problem = " ".join(part for part in (error.context, error.problem) if part)
        if "nesting depth" in problem:  # from PyYAML 6.0.4 on the scanner gives up at 1,000, before it tells of any
            raise _too_deep(place) from error
        raise RecipeSyntaxError(f"{place} is not valid YAML: {problem}", where) from error
    except (yaml.YAMLError, UnicodeError) as error:
        raise RecipeSyntaxError(
            f"{source} holds a character that YAML does not allow", "Save it as UTF-8 text without control characters"
        ) from error
    return node


def _check_depth(text: str, source: str) -> None:
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > MAX_DEPTH:
            raise _too_deep(f"{source}:{_line(event)}")


def _too_deep(place: str) -> RecipeSyntaxError:
    return RecipeSyntaxError(f"{place} is nested more than {MAX_DEPTH} levels deep", "Flatten it")


@dataclass(slots=True)
class _Reader:
    """Turns the nodes of one document into values and remembers the lines of keys."""

    source: str
    lines: dict[Path, int] = field(default_factory=dict)
    _values: int = 0

    def value(self, node: yaml.Node, path: Path, depth: int = 0) -> Value:
        """The value of a node; aliases are met as the node that they stand for, again and again."""
        self._values += 1
        if self._values > MAX_VALUES or depth > MAX_DEPTH:
            raise self._error(node, f"expands to over {MAX_VALUES} values or {MAX_DEPTH} levels", "Use fewer aliases")
        if isinstance(node, yaml.MappingNode):
            return self.mapping(node, path, depth)
        if isinstance(node, yaml.SequenceNode):
            self._check_tag(node, "seq")
            return [self.value(item, path, depth + 1) for item in node.value]
        return self._scalar(node)

    def mapping(self, node: yaml.MappingNode, path: Path, depth: int = 0) -> dict[str, Value]:
        """The values of a mapping, each key once."""
        self._check_tag(node, "map")
        values: dict[str, Value] = {}
        for key_node, value_node in node.value:
            key = self._key(key_node)
            if key in values:
                dotted = show_value(".".join((*path, key)))
                raise self._error(key_node, f"sets {dotted} a second time", "Remove one of the two lines")
            self.lines[*path, key] = _line(key_node)
            values[key] = self.value(value_node, (*path, key), depth + 1)
        return values

    def _key(self, node: yaml.Node) -> str:
        if not isinstance(node, yaml.ScalarNode):
            raise self._error(node, "has a list or a mapping as a key", "Use words as keys")
        key: str = node.value
        if "." in key:
            section, _, rest = key.partition(".")
            raise self._error(
                node,
                f"has the dotted key {show_value(key)}, which only --set knows",
                f"Write {show_value(rest)} indented below {show_value(section)}",
            )
        return key

    def _scalar(self, node: yaml.Node) -> Scalar:
        text: str = node.value
        kind = node.tag.removeprefix(_PREFIX)
        try:
            match kind:
                case "str":
                    return text
                case "int":
                    return int(text)
                case "float":
                    return float(re.sub(r"\.(?=[a-zA-Z])", "", text))
                case "bool":
                    return {"true": True, "false": False}[text.lower()]
                case "null":
                    return None
        except (KeyError, ValueError) as error:
            raise self._error(
                node, f"has {show_value(text[:40])}, which cannot be read as {kind}", "Correct it"
            ) from error
        raise self._tag_error(node)

    def _check_tag(self, node: yaml.Node, expected: str) -> None:
        if node.tag != _PREFIX + expected:
            raise self._tag_error(node)

    def _tag_error(self, node: yaml.Node) -> RecipeSyntaxError:
        return self._error(node, f"has the tag {show_value(node.tag[:80])}", "Remove it; recipes hold plain values")

    def _error(self, node: yaml.Node, what: str, next_step: str) -> RecipeSyntaxError:
        return RecipeSyntaxError(f"{self.source}:{_line(node)} {what}", next_step)


def _line(node: yaml.Node | yaml.Event) -> int:
    return node.start_mark.line + 1 if node.start_mark else 1
