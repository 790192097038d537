"""Options that several commands share, each spelt once. Every command takes ``json`` and ``debug``.

``debug`` is acted on in ``app.py``, which prints the traceback; a command only declares it, so that its help shows it.
"""

from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from heliostat_jobs.submission.access import ADDRESS_VARIABLE

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
AddressOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--address",
        envvar=ADDRESS_VARIABLE,
        help="Of the cluster's dashboard, like http://head:8265.",
        show_default=False,
    ),
]
InsecureOption: TypeAlias = Annotated[
    bool,
    typer.Option("--insecure", help="Use a cluster beyond this machine without token or TLS.", show_default=False),
]
SecretOption: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--secret",
        metavar="NAME=REFERENCE",
        help="A variable that processes of the job get, from where nodes have it: NAME=file:/path or NAME=env:OTHER. "
        "Repeatable.",
    ),
]
