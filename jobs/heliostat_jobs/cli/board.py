"""``heliostat board ROOT``: the page of a root, served to this machine until Control-C."""

import asyncio
from contextlib import suppress
from typing import Annotated

import typer

from heliostat.storage import open_store
from heliostat_jobs.cli.options import DebugOption, JsonOption
from heliostat_jobs.cli.output import print_json


def board(
    root: Annotated[str, typer.Argument(help="Folder or s3://bucket/prefix that holds datasets and runs.")],
    port: Annotated[int, typer.Option(min=0, max=65535, help="Of 127.0.0.1; 0 takes a free one.")] = 0,
    json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Serve a page of all runs and pipelines below a root to this machine, read only; Control-C ends it."""
    from heliostat_jobs.board.server import Board

    page = Board(open_store(root), port)

    def ready(url: str) -> None:
        if json:
            print_json({"url": url, "root": page.root.url})
        else:
            typer.echo(f"{page.root.url} is shown at {url}")

    async def serve() -> None:
        await page.serve(ready, asyncio.Event().wait())

    with suppress(KeyboardInterrupt):
        asyncio.run(serve())
