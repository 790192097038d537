"""``heliostat dataset ingest``: from images to datasets."""

import os
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from heliostat.config.yaml_text import show_value
from heliostat.errors import InvalidValueError
from heliostat.storage import open_store
from heliostat_jobs.cli.options import DebugOption, JsonOption
from heliostat_jobs.cli.output import print_json
from heliostat_jobs.extras import require_extra
from heliostat_jobs.ingest import show_ingest

if TYPE_CHECKING:
    from heliostat.data.images import ImageLimits
    from heliostat.data.ingest import IngestResult

app = typer.Typer(help="Datasets: images in shards that a run can read exactly.")


@app.command()
def ingest(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SRC",
            help="A folder of images (folders in it are labels), a .tar or .parquet file or a folder of such, "
            "or a .txt or .csv list of s3:// keys or https URLs.",
            show_default=False,
        ),
    ],
    destination: Annotated[
        str,
        typer.Argument(
            metavar="DST",
            help="ROOT/NAME: the dataset NAME below a folder or s3://bucket/prefix. New images are added to it.",
            show_default=False,
        ),
    ],
    labels: Annotated[
        Path | None,
        typer.Option(metavar="CSV", help="A file with the columns path and label, instead of folder names."),
    ] = None,
    resize_px: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Shrink images whose shorter side is longer than N pixels to it."),
    ] = None,
    edit: Annotated[
        str | None,
        typer.Option(
            metavar="PACKAGE.MODULE:FUNCTION",
            help="Change images before they are stored, for example blur faces: see heliostat.data.edits.",
        ),
    ] = None,
    allow_format: Annotated[
        list[str] | None,
        typer.Option(metavar="FORMAT", help="Accept TIFF, GIF, BMP or AVIF too, besides JPEG, PNG, WEBP. Repeatable."),
    ] = None,
    allow_urls: Annotated[
        bool, typer.Option("--allow-urls", help="Fetch images from the https URLs of a list.", show_default=False)
    ] = False,
    max_quarantined_share: Annotated[
        float,
        typer.Option(
            min=0.0,
            max=1.0,
            metavar="SHARE",
            help="Stop when more than this share of the items checked so far is refused, judged from the 1,000th item "
            "on: smaller sources are never stopped.",
        ),
    ] = 0.5,
    json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Check images and store each once. Broken ones are listed in the quarantine, with the reason.

    An image in folders of different labels has no label; if the copies are some 250,000 items apart, that of the first.

    The same command started again goes on where one that was stopped or killed was.
    """
    require_extra("train", "PIL", "ray")
    from heliostat.data.edits import open_edit
    from heliostat.data.ingest import IngestOptions, prepare
    from heliostat.data.ingest import ingest as run_ingest
    from heliostat_cluster.local import local_ray

    root_url, name = split_destination(destination)
    root = open_store(root_url)
    options = IngestOptions(
        limits=limits_with(allow_format or []),
        resize_px=resize_px,
        edit=edit,
        max_quarantined_share=max_quarantined_share,
    )
    if edit is not None:
        open_edit(edit)  # what is wrong with it shows before Ray starts
    opened = prepare(source, root, name, labels=labels, allow_urls=allow_urls)
    with local_ray(num_cpus=os.cpu_count() or 1), show_ingest() as report:
        result = run_ingest(opened, root, name, options, report=report)
    if json:
        print_json({"dataset": name, "root": root_url, **asdict(result)})
    else:
        typer.echo("\n".join(summary(root_url, name, result)))


def limits_with(formats: list[str]) -> "ImageLimits":
    """The limits of images with more formats than usual.

    Raises:
        InvalidValueError: there is no codec for one of them.
    """
    from heliostat.data.codecs import DEFAULT_FORMATS, KNOWN_FORMATS
    from heliostat.data.images import ImageLimits

    named = {name.upper() for name in formats}
    if unknown := named - KNOWN_FORMATS:
        raise InvalidValueError(
            f"--allow-format {min(unknown)}: there is no codec for it",
            f"Formats are {', '.join(sorted(KNOWN_FORMATS))}",
        )
    return ImageLimits(formats=DEFAULT_FORMATS | named)


def split_destination(destination: str) -> tuple[str, str]:
    """``ROOT/NAME`` as root and name.

    Raises:
        InvalidValueError: one of the two is missing.
    """
    root, _, name = destination.rstrip("/").rpartition("/")
    if not root or root in ("s3:", "s3:/"):
        raise InvalidValueError(
            f"the destination {destination!r} is not ROOT/NAME",
            "Name a root and a dataset in it, for example heliostat-root/photos or s3://bucket/prefix/photos",
        )
    return root, name


def summary(root: str, name: str, result: "IngestResult") -> list[str]:
    """What an ingest did and what to do next, line by line."""
    lines = [
        f"{name}: {result.images:,} images added, {result.dataset_images:,} in all "
        f"({result.size_bytes / 2**20:,.1f} MiB written in {result.duration_s:.1f} s)",
        f"left out: {result.duplicates:,} duplicates, {result.quarantined:,} in quarantine, "
        f"{result.skipped:,} hidden files and companions",
    ]
    if result.quarantined:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in result.reasons.items())
        lines.append(f"quarantine: {reasons}; every file is named in {root}/datasets/{name}/quarantine/*.jsonl")
    if result.resumed:
        lines.append(f"resumed: {result.resumed:,} items had been checked by an earlier start")
    settings = " ".join(
        f"--set {shlex.quote(f'{key}={show_value(value)}')}" for key, value in (("root", root), ("dataset.name", name))
    )
    return [*lines, f"manifest: {result.manifest_sha256}", f"next: heliostat run RECIPE.yaml {settings}"]
