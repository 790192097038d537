"""Values from outside the recipe file: ``--set a.b=value`` and environment variables ``HELIOSTAT__A__B=value``."""

from collections.abc import Mapping
from dataclasses import dataclass

from heliostat.config.yaml_text import Value, read_value, show_value
from heliostat.errors import OverrideSyntaxError, RecipeSyntaxError

ENVIRONMENT_PREFIX = "HELIOSTAT__"
COMMAND_LINE = "--set"
_SHOWN_CHARS = 80


@dataclass(frozen=True, slots=True)
class Override:
    """One value for one dotted key."""

    key: str
    value: Value
    origin: str


def from_command_line(text: str) -> Override:
    """``training.steps=300``; the value is YAML: a single value or a list.

    Raises:
        OverrideSyntaxError: No key, no ``=``, or a value that is neither.
    """
    key, equals, value = text.partition("=")
    if not (equals and key.strip()):
        raise OverrideSyntaxError(f"--set {show_value(text)} is not key=value", "Write it as --set training.steps=300")
    return Override(key.strip(), _value(value, f"--set {_word(key.strip())}"), COMMAND_LINE)


def from_environment(environ: Mapping[str, str]) -> list[Override]:
    """All variables that begin with ``HELIOSTAT__``, sorted by name; two underscores stand for a dot.

    Raises:
        OverrideSyntaxError: A value that is neither a single value nor a list.
    """
    names = sorted(name for name in environ if name.startswith(ENVIRONMENT_PREFIX))
    return [
        Override(
            name.removeprefix(ENVIRONMENT_PREFIX).lower().replace("__", "."),
            _value(environ[name], f"environment {_word(name)}"),
            f"environment {_word(name)}",
        )
        for name in names
    ]


def _value(text: str, source: str) -> Value:
    try:
        value = read_value(text, source)
    except RecipeSyntaxError as error:
        raise OverrideSyntaxError(
            f"{source} has the value {show_value(text[:_SHOWN_CHARS])}, which is not YAML",
            "Write a number, a word or a list such as [1, 2]; quote other text",
        ) from error
    if isinstance(value, dict):
        raise OverrideSyntaxError(f"{source} holds a mapping", "Set its keys one by one; quote text that holds ': '")
    return value


def _word(text: str) -> str:
    return text if text.isprintable() else show_value(text)
