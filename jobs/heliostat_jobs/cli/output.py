"""How commands speak: results on standard output, everything else on standard error."""

import json
import sys
from typing import Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

_WIDTH_OF_FILES = 200
"""Columns where no terminal sets them, so that tables in files and pipes are not folded at 80."""


def print_json(value: dict[str, Any], *, indent: int | None = None) -> None:
    """One JSON object, on one line unless ``indent`` is given."""
    typer.echo(json.dumps(value, indent=indent))


class _Console(Console):
    """Leaves it to ``app.py`` what a closed pipe means, where rich would end the process."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def print_table(table: Table) -> None:
    """A table as wide as the terminal; in files and pipes without colours, and as wide as it needs."""
    console = _Console() if sys.stdout.isatty() else _Console(width=_WIDTH_OF_FILES)
    console.print(table)


def plain(text: str) -> Text:
    """Text of others: rich would obey markup in it, and a terminal escape sequences."""
    return Text("".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text))
