"""Secrets stay out of everything that is written down: logs, events and messages pass through here.

What counts as a secret: the value of any environment variable whose name says so, or that is filled by a reference
(``heliostat.config.secrets``), and the user part of any URL.
"""

import json
import os
import re
from collections.abc import Mapping

from heliostat.config.secrets import VARIABLE

REDACTED = "***"
_SECRET_NAME = re.compile(r"KEY|SECRET|TOKEN|PASSWORD|PASSWD", re.IGNORECASE)
_URL_USER = re.compile(r"(?<=://)(?:[^/\s:@]+:\S*@|[^/\s]*@)")
"""User and password before an address; a password may hold slashes, and a path may hold an '@'."""
_MIN_SECRET_CHARS = 6
"""Shorter values ("1", "true") are switches rather than secrets; removing them would make every log unreadable."""


def secret_values(environ: Mapping[str, str]) -> list[str]:
    """Values to hide, longest first, so that a secret which contains another one disappears as a whole."""
    referred = _referred(environ)
    found = [value for name, value in environ.items() if name in referred or _SECRET_NAME.search(name)]
    # A key of several lines may be printed line by line.
    values = {part for value in found for part in (value, *value.splitlines()) if len(part) >= _MIN_SECRET_CHARS}
    return sorted(values, key=lambda value: (-len(value), value))


def _referred(environ: Mapping[str, str]) -> frozenset[str]:
    """Variables that a job's references fill, and those that they are filled from, whatever their names say."""
    try:
        references: dict[str, str] = json.loads(environ.get(VARIABLE, "{}"))
        sources = {where.removeprefix("env:") for where in references.values() if where.startswith("env:")}
        return frozenset({*references, *sources})
    except (ValueError, AttributeError):
        return frozenset()


def redact(text: str, environ: Mapping[str, str] | None = None) -> str:
    """The text without secrets. The environment is read at each call: credentials may arrive after start-up."""
    for value in secret_values(os.environ if environ is None else environ):
        text = text.replace(value, REDACTED)
    return _URL_USER.sub(f"{REDACTED}@", text)


def redact_value(value: object, environ: Mapping[str, str] | None = None) -> object:
    """The same for a structure: strings, mappings and sequences inside out; other objects by their ``repr``."""
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, str):
        return redact(value, environ)
    if isinstance(value, Mapping):
        return {redact(str(key), environ): redact_value(item, environ) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [redact_value(item, environ) for item in value]
    return redact(repr(value), environ)
