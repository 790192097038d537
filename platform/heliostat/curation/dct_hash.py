"""A perceptual hash: signs of the lowest frequencies of an image, the classical pHash (Zauner 2010), as unit vectors.

Needs no weights. Two hashes that differ in b of 64 bits have the similarity 1 - b / 32.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import pyarrow as pa

from heliostat.curation.columns import vector_column
from heliostat.curation.image_maps import Compute
from heliostat.curation.kmeans import Vectors
from heliostat.curation.vectors import VECTOR
from heliostat.data.decode import RgbImage

_SIDE_PX = 32
_LOWEST = 8
_VERSION = "1"


@dataclass(frozen=True, slots=True)
class DctHash:
    """The image map of hashes, 64 signs each."""

    name: str = "dct-hash"
    fingerprint: str = _VERSION
    short_side_px: int = 2 * _SIDE_PX
    gpus: float = 0.0

    def open(self) -> Compute:
        """See ``ImageMap``."""
        return _table


def dct_hashes(images: Sequence[RgbImage]) -> Vectors:
    """(N, 64), each entry 1/8 or -1/8."""
    found = np.empty((len(images), _LOWEST**2), np.float16)
    for number, image in enumerate(images):
        grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        small = cv2.resize(grey, (_SIDE_PX, _SIDE_PX), interpolation=cv2.INTER_AREA).astype(np.float32)
        lowest = cv2.dct(small)[:_LOWEST, :_LOWEST].reshape(-1)
        found[number] = np.where(lowest > np.median(lowest[1:]), 1.0, -1.0) / _LOWEST
    return found


def _table(images: Sequence[RgbImage]) -> pa.Table:
    return pa.table({VECTOR: vector_column(dct_hashes(images))})
