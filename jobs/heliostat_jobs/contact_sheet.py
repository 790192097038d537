"""A contact sheet: some images of a dataset on one HTML page that needs nothing else.

What stands in a dataset was chosen by whoever made the images, so all text is escaped, and the page forbids itself to
load or run anything.
"""

import base64
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import cv2
import jinja2
import numpy as np

from heliostat.data.catalogue import list_rows
from heliostat.data.decode import SHRINKS, decode_rgb
from heliostat.data.manifest import DatasetManifest
from heliostat.data.reading import RowPlace, RowReader
from heliostat.data.selection import load_parts
from heliostat.data.shards import read_row_group
from heliostat.errors import InvalidValueError
from heliostat.storage import Store
from heliostat.storage.layout import dataset_store

THUMBNAIL_PX = 192
"""Longer side."""
_JPEG_QUALITY = 82


@dataclass(frozen=True, slots=True)
class Tile:
    """One image of the sheet."""

    id: str
    data_uri: str
    label: str | None
    width: int
    height: int
    size_bytes: int
    source: str


def pick_rows(root: Store, manifest: DatasetManifest, count: int, seed: int, label: str | None = None) -> list[int]:
    """Some rows of a dataset at random, all different, in their order: those of one label if it is given.

    Without a label nothing is read but the rows of a selection; with one, the indexes of the shards.

    Raises:
        InvalidValueError: no image has this label; the labels there are named.
    """
    draws = np.random.default_rng(seed)
    if label is None:
        return sorted(draws.choice(manifest.rows, min(count, manifest.rows), replace=False, shuffle=False).tolist())
    parts = load_parts(root, manifest)
    rows: list[int] = []
    first = 0
    for listed in list_rows(root, manifest, parts):
        names = parts[listed.part].labels
        if label in names:
            rows += (first + np.flatnonzero(listed.index["label"] == names.index(label))).tolist()
        first += len(listed.rows)
    if not rows:
        known = ", ".join(sorted({name for part in parts for name in part.labels})) or "none"
        raise InvalidValueError(
            f"no image of {manifest.name!r} has the label {label!r}", f"Labels there: {known[:400]}"
        )
    return sorted(draws.choice(rows, min(count, len(rows)), replace=False).tolist())


def make_tiles(root: Store, manifest: DatasetManifest, rows: Sequence[int]) -> list[Tile]:
    """Images of a dataset, made small. Reads the row groups that hold them whole, one at a time.

    Raises:
        CorruptShardError: a row group is damaged or gone.
    """
    parts = load_parts(root, manifest)
    places = RowReader(root, manifest).locate(rows)
    by_group: dict[tuple[int, int, int], list[RowPlace]] = {}
    for place in places:
        by_group.setdefault((place.part, place.shard, place.group), []).append(place)
    tiles: dict[RowPlace, Tile] = {}
    for (part, shard, group), wanted in by_group.items():
        table = read_row_group(dataset_store(root, parts[part].name), parts[part], shard, group)
        for place, row in zip(wanted, table.take([place.row for place in wanted]).to_pylist(), strict=True):
            tiles[place] = _tile(row, parts[part].labels)
    return [tiles[place] for place in places]


def contact_sheet(manifest: DatasetManifest, tiles: Sequence[Tile], subtitle: str) -> str:
    """The page."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    source = files("heliostat_jobs").joinpath("contact_sheet.html.j2").read_text(encoding="utf-8")
    return environment.from_string(source).render(manifest=manifest, tiles=tiles, subtitle=subtitle)


def write_page(path: Path, html: str) -> None:
    """Put a page at a path, whole or not at all; what was there is replaced.

    Raises:
        InvalidValueError: nothing can be written there.
    """
    try:
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, delete=False) as file:
            staged = Path(file.name)
            try:
                file.write(html)
                file.flush()
                staged.replace(path)
            except OSError:
                staged.unlink(missing_ok=True)
                raise
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else type(error).__name__
        raise InvalidValueError(f"{path} cannot be written: {reason}", "Choose another --output") from error


def _tile(row: dict[str, Any], labels: Sequence[str]) -> Tile:
    label = row["label"]
    return Tile(
        id=row["id"],
        data_uri=_thumbnail(row["image"], max(row["width"], row["height"])),
        label=None if label is None else labels[label],
        width=row["width"],
        height=row["height"],
        size_bytes=len(row["image"]),
        source=row["source"],
    )


def _thumbnail(image: bytes, longer_px: int) -> str:
    shrink = max(shrink for shrink in SHRINKS if shrink == 1 or longer_px >= 2 * THUMBNAIL_PX * shrink)
    pixels = decode_rgb(image, shrink)
    scale = min(1.0, THUMBNAIL_PX / max(pixels.shape[:2]))
    size = (max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale)))
    small = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    _, encoded = cv2.imencode(".jpg", cv2.cvtColor(small, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    return "data:image/jpeg;base64," + base64.b64encode(encoded.tobytes()).decode()
