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
    json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Say whether an image is in the curated dataset, byte for byte. Exit status 1 if it is not."""
    fate = _fate(curation, image)
    found = fate is not None and fate.is_kept
    if json:
        print_json({"id": _id_of(image), "contains": found, "fate": None if fate is None else asdict(fate)})
    else:
        typer.echo(_in_words(fate) if fate is not None else f"{_id_of(image)} is not in the pool")
    if not found:
        raise typer.Exit(ExitCode.FAILED)


def _fate(curation: str, image: str) -> "Fate | None":
    require_extra("train", "pyarrow", "ray", "cv2")
    from heliostat.curation.curate import fates_folder, load_result
    from heliostat.curation.fates import find_fate

    root_url, name = split_destination(curation)
    root = open_store(root_url)
    if load_result(root, name) is None:
        raise UnknownImageError(
            f"there is no finished curation {name!r} under {root.url}",
            "Check the name, or finish it with heliostat run RECIPE.yaml",
        )
    return find_fate(fates_folder(root, name), _id_of(image))


def _id_of(image: str) -> str:
    if re.fullmatch(r"[0-9a-f]{64}", image):
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
