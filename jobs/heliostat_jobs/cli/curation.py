"""``heliostat curation explain | contains``: why an image is in a curated dataset, or is not, and whether it is."""

import hashlib
import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from heliostat.errors import InvalidValueError, SourceNotFoundError, UnknownImageError
from heliostat.storage import open_store
from heliostat_jobs.cli.dataset import split_destination
from heliostat_jobs.cli.exit_codes import ExitCode
from heliostat_jobs.cli.options import DebugOption, JsonOption
from heliostat_jobs.cli.output import print_json
from heliostat_jobs.extras import require_extra

if TYPE_CHECKING:
    from heliostat.curation.fates import Fate
    from heliostat.curation.lookup import Nearest

app = typer.Typer(help="Curations: why images are in a dataset, and why others are not.")

CurationArgument = Annotated[
    str,
    typer.Argument(metavar="ROOT/NAME", help="A curation NAME below a folder or s3://bucket/prefix."),
]


@app.command()
def explain(
    curation: CurationArgument,
    image: Annotated[str, typer.Argument(metavar="ID", help="Hash of an image, or the path of a file with it.")],
    json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Say which stage left an image out, and for which other image, or why it was taken."""
    fate = _fate(curation, image)
    if fate is None:
        raise UnknownImageError(f"the pool of {curation} has no image {_id_of(image)}", "Check the id, or the curation")
    if json:
        print_json(asdict(fate))
        return
    typer.echo(_in_words(fate))


@app.command()
def contains(
    curation: CurationArgument,
    image: Annotated[str, typer.Argument(metavar="IMAGE", help="Path of a file, or hash of an image.")],
    near: Annotated[
        bool,
        typer.Option(
            "--near", help="Look for copies too: saved again, smaller, cut. Needs a file.", show_default=False
        ),
    ] = False,
    json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Say whether an image is in the curated dataset, itself or, with --near, as a copy. Exit status 1 if it is not."""
    fate = _fate(curation, image)
    found = fate is not None and fate.is_kept
    nearest = _nearest(curation, image) if near and not found else None
    if json:
        answer = {"id": _id_of(image), "contains": found, "fate": None if fate is None else asdict(fate)}
        copy = {"is_copy": nearest.is_copy, **asdict(nearest)} if nearest else None
        print_json({**answer, "nearest": copy} if near else answer)
    else:
        typer.echo(_in_words(fate) if fate is not None else f"{_id_of(image)} is not in the pool")
        if nearest:
            typer.echo(_nearest_in_words(nearest))
    if not found and not (nearest and nearest.is_copy):
        raise typer.Exit(ExitCode.FAILED)


def _fate(curation: str, image: str) -> "Fate | None":
    require_extra("train", "pyarrow", "ray", "cv2")
    from heliostat.curation.curate import fates_folder
    from heliostat.curation.fates import find_fate
    from heliostat_jobs.curate import load_curation

    root_url, name = split_destination(curation)
    root = open_store(root_url)
    load_curation(root, name)  # refuses one that is not finished
    return find_fate(fates_folder(root, name), _id_of(image))


def _nearest(curation: str, image: str) -> "Nearest":
    from heliostat.curation.lookup import find_nearest
    from heliostat_jobs.curate import load_curation

    root_url, name = split_destination(curation)
    root = open_store(root_url)
    if _is_id(image):
        raise InvalidValueError(f"--near cannot compare the id {image}", "Give the path of a file")
    return find_nearest(root, *load_curation(root, name), Path(image).expanduser().read_bytes())


def _nearest_in_words(nearest: "Nearest") -> str:
    if nearest.id is None:
        return f"none of its {nearest.images:,} images was ever embedded: no copy can be found"
    verdict = "a copy of it is in" if nearest.is_copy else "no copy of it is in"
    return (
        f"{verdict}: the nearest of {nearest.compared:,} of {nearest.images:,} images is {nearest.id}, similarity "
        f"{nearest.similarity:.3f} (the same from {nearest.threshold:g} on)"
    )


def _is_id(image: str) -> bool:
    return re.fullmatch(r"[0-9a-f]{64}", image) is not None


def _id_of(image: str) -> str:
    if _is_id(image):
        return image
    path = Path(image).expanduser()
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError as error:
        raise SourceNotFoundError(
            f"{image!r} is neither a file nor an id of 64 hexadecimal digits", "Give one of the two"
        ) from error
    except OSError as error:
        raise InvalidValueError(f"{image!r} cannot be read: {error.strerror}", "Give a file or an id") from error


def _in_words(fate: "Fate") -> str:
    because = f" {fate.because_of}" if fate.because_of else ""
    verdict = "is in" if fate.is_kept else "is out"
    return f"{fate.id} ({fate.dataset}, row {fate.row:,}) {verdict}: {fate.reason}{because} (stage {fate.stage})"
