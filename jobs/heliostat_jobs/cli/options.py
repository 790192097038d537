"""Options that several commands share, each spelt once. Every command takes ``json`` and ``debug``.

``debug`` is acted on in ``app.py``, which prints the traceback; a command only declares it, so that its help shows it.
"""

from pathlib import Path
from typing import Annotated, TypeAlias

import typer

JsonOption: TypeAlias = Annotated[
    bool, typer.Option("--json", help="Print one JSON object on standard output, an error too.", show_default=False)
]
DebugOption: TypeAlias = Annotated[
    bool, typer.Option("--debug", help="Print the traceback of an error.", show_default=False)
]
RecipeArgument: TypeAlias = Annotated[Path, typer.Argument(help="A recipe: a YAML file.", show_default=False)]
SetOption: TypeAlias = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override one value, such as training.steps=300. Repeatable."),
]
