"""Code of the user's own, named in recipes and commands as ``package.module:function``."""

import importlib
from collections.abc import Sequence
from typing import Any

from heliostat.errors import InvalidValueError


def open_plugin(source: str, attributes: Sequence[str], interface: str) -> Any:
    """What the function gives, called without arguments.

    Args:
        source: ``package.module:function``; a class will do. The module must be importable on all machines that work.
        attributes: Which the result has to have.
        interface: Name of the protocol that describes it, for the error.

    Raises:
        InvalidValueError: it is not there, or gives something else.
    """
    module, _, function = source.partition(":")
    try:
        found = getattr(importlib.import_module(module), function)()
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise InvalidValueError(
            f"there is no plug-in {source!r} ({type(error).__name__}: {error})",
            "Name package.module:function, with the module where Python finds it, for example on PYTHONPATH",
        ) from error
    missing = [name for name in attributes if not hasattr(found, name)]
    if missing:
        raise InvalidValueError(
            f"{source!r} gives {type(found).__name__}, which has no {missing[0]}",
            f"Give an object as {interface} describes",
        )
    return found
