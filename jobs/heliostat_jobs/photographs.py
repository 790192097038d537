"""The demo's images: the photographs that ship with scikit-image, cut into tiles labelled with their photograph."""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from heliostat.data.draws import permutation
from heliostat_jobs.extras import require_extra

Pixels = NDArray[np.uint8]

PHOTOGRAPHS = (
    "astronaut.png",
    "brick.png",
    "camera.png",
    "cell.png",
    "chelsea.png",
    "clock_motion.png",
    "coffee.png",
    "coins.png",
    "grass.png",
    "gravel.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "moon.png",
    "motorcycle_left.png",
    "page.png",
    "retina.jpg",
    "rocket.jpg",
    "text.png",
)
PICTURED = ("astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "rocket.jpg", "coins.png")
"""Shown whole in the report; each at least 300 pixels high and 384 wide."""
TILE_PX = 64
_MOST_TILES = 150
"""Per photograph, so that the largest ones do not make up most of the set."""


def write_tiles(folder: Path) -> Path:
    """Cut the photographs into tiles ``folder/<photograph>/<row>-<column>.png``; returns the folder.

    Raises:
        MissingExtraError: scikit-image is not installed.
    """
    for name in PHOTOGRAPHS:
        label = folder / Path(name).stem
        label.mkdir(parents=True, exist_ok=True)
        for row, column, tile in _tiles(name):
            path = label / f"{row:02d}-{column:02d}.png"
            if not path.exists():
                half = path.with_suffix(".part")  # a demo that is killed here must not leave half a tile
                Image.fromarray(tile).save(half, "PNG")
                half.replace(path)
    return folder


def pictured(height: int, width: int) -> Pixels:
    """The centres of some whole photographs, shape (len(PICTURED), height, width, 3)."""
    crops = []
    for name in PICTURED:
        photograph = _photograph(name)
        top, left = (photograph.shape[0] - height) // 2, (photograph.shape[1] - width) // 2
        crops.append(photograph[top : top + height, left : left + width])
    return np.stack(crops)


def _tiles(name: str) -> Iterator[tuple[int, int, Pixels]]:
    photograph = _photograph(name)
    rows, columns = photograph.shape[0] // TILE_PX, photograph.shape[1] // TILE_PX
    for index in permutation(rows * columns, 0, f"tiles:{name}")[:_MOST_TILES].tolist():
        row, column = divmod(index, columns)
        top, left = row * TILE_PX, column * TILE_PX
        yield row, column, photograph[top : top + TILE_PX, left : left + TILE_PX]


def _photograph(name: str) -> Pixels:
    require_extra("demo", "skimage")
    package = find_spec("skimage")
    assert package is not None and package.origin is not None  # noqa: S101 -- found just above
    with Image.open(Path(package.origin).parent / "data" / name) as image:
        return np.asarray(image.convert("RGB"))
