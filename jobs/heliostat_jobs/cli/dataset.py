"""``heliostat dataset ingest``: from images to datasets."""

import os
import shlex
from dataclasses import asdict
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
    from heliostat.data.ingest import IngestResult

app = typer.Typer(help="Datasets: images in shards that a run can read exactly.")


@app.command()
def ingest(
    source: Annotated[
        str, typer.Argument(metavar="SRC", help="A folder of images; folders in it are labels.", show_default=False)
    ],
    destination: Annotated[
        str,
        typer.Argument(
            metavar="DST",
            help="ROOT/NAME: the dataset NAME below a folder or s3://bucket/prefix. New images are added to it.",
            show_default=False,
        ),
    ],
    json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Check the images of a folder and store each once. Broken ones are listed in the quarantine, with the reason."""
    require_extra("train", "PIL", "ray")
    from heliostat.data.ingest import ingest as run_ingest
    from heliostat.data.ingest import prepare
    from heliostat_cluster.local import local_ray

    root_url, name = split_destination(destination)
    root = open_store(root_url)
    listing = prepare(source, root, name)
    with local_ray(num_cpus=os.cpu_count() or 1), show_ingest() as report:
        result = run_ingest(listing, root, name, report=report)
    if json:
        print_json({"dataset": name, "root": root_url, **asdict(result)})
    else:
        typer.echo("\n".join(summary(root_url, name, result)))


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
        listed = f"{root}/datasets/{name}/quarantine/{result.manifest_sha256}.jsonl"
        lines.append(f"quarantine: {reasons}; every file is named in {listed}")
    settings = " ".join(
        f"--set {shlex.quote(f'{key}={show_value(value)}')}" for key, value in (("root", root), ("dataset.name", name))
    )
    return [*lines, f"manifest: {result.manifest_sha256}", f"next: heliostat run RECIPE.yaml {settings}"]
