"""Tiles of real photographs, for bench_distill.py: which photograph is a tile from?

About a hundred photographs of clothing_cc0, or the 18 of the demo where those are not there. A third of the tiles, by a
hash of their bytes, is asked, the others train and vote; a tile that two photographs have answers nothing and is left
out.

Legend: H, W sides of a photograph.
"""

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from heliostat.data.ingest import ingest
from heliostat.storage import open_store
from heliostat_cluster.local import local_ray
from heliostat_jobs.photographs import TILE_PX, write_tiles

TRAIN, ASKED = "tiles", "tiles-asked"
_ASKED_OF = 3
_PHOTOGRAPH_OF, _QUICK_PHOTOGRAPH_OF = 8, 40
_SHORT_SIDE_PX = 384
_CLOTHING = Path("clothing_cc0") / "train"

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Tiles:
    """What is measured on."""

    images_from: str
    photographs: int
    """Classes."""
    train: int
    asked: int
    left_out: int
    """Tiles that several photographs have."""

    def to_json(self) -> dict[str, Any]:
        """All of it."""
        return asdict(self)


def write_datasets(root: str, folder: Path, quick: bool) -> Tiles:
    """Both sides of the tiles, as datasets of the root; files are written to ``folder``."""
    images_from = write_files(folder / "all", _QUICK_PHOTOGRAPH_OF if quick else _PHOTOGRAPH_OF)
    left_out = divide(folder / "all", folder)
    with local_ray(num_cpus=2):
        train, asked = (ingest(folder / name, open_store(root), name).images for name in (TRAIN, ASKED))
    photographs = sum(1 for each in (folder / TRAIN).iterdir())
    return Tiles(images_from, photographs, train, asked, left_out)


def write_files(folder: Path, photograph_of: int = _PHOTOGRAPH_OF) -> str:
    """All tiles as ``folder/<photograph>/<row>-<column>.png``; what photographs they are cut from.

    Args:
        folder: Not there yet.
        photograph_of: One of so many photographs of clothing_cc0 is taken: as many as a bench has time for, of all
            kinds of clothes. Those of the demo are few, and all taken.
    """
    data = os.environ.get("HELIOSTAT_TEST_DATA")
    found = sorted((Path(data) / _CLOTHING).rglob("*.jpg"))[::photograph_of] if data else []
    if not found:
        write_tiles(folder)
        return "the demo's photographs: HELIOSTAT_TEST_DATA does not lead to clothing_cc0"
    for source in found:
        image_HW3 = cv2.imread(str(source))
        if image_HW3 is None:
            raise ValueError(f"{source} cannot be decoded")
        place = folder / source.stem
        place.mkdir(parents=True)  # two photographs of a name would be one class
        for row, column, tile_HW3 in cut(at_short_side(np.asarray(image_HW3, np.uint8))):
            tile = Image.fromarray(cv2.cvtColor(tile_HW3, cv2.COLOR_BGR2RGB))
            tile.save(place / f"{row:02d}-{column:02d}.png")
    return "clothing_cc0"


def at_short_side(image_HW3: Pixels) -> Pixels:
    """A photograph of 384 pixels on its short side, so that its tiles show as much of it as those of any other."""
    height, width = image_HW3.shape[:2]
    scale = _SHORT_SIDE_PX / min(height, width)
    resized = cv2.resize(image_HW3, (round(width * scale), round(height * scale)), interpolation=cv2.INTER_AREA)
    return np.asarray(resized, np.uint8)


def cut(image_HW3: Pixels) -> Iterator[tuple[int, int, Pixels]]:
    """Row, column and pixels of all whole tiles, which do not overlap."""
    height, width = image_HW3.shape[:2]
    for row in range(height // TILE_PX):
        for column in range(width // TILE_PX):
            top, left = row * TILE_PX, column * TILE_PX
            yield row, column, image_HW3[top : top + TILE_PX, left : left + TILE_PX]


def divide(tiles: Path, folder: Path) -> int:
    """Move tiles to ``folder/<side>/<photograph>/``; how many were left out because several photographs have them."""
    by_content: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(tiles.rglob("*.png")):
        by_content[hashlib.sha256(path.read_bytes()).hexdigest()].append(path)
    left_out = 0
    for content, paths in by_content.items():
        if len({path.parent for path in paths}) > 1:
            left_out += len(paths)
            continue
        for path in paths:
            target = folder / side_of(content) / path.parent.name / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            path.rename(target)
    return left_out


def side_of(content: str) -> str:
    """Whether a tile is asked or trains, by the SHA-256 of its file: equal tiles are never on both sides."""
    return ASKED if int(content[:2], 16) % _ASKED_OF == 0 else TRAIN
