"""Pictures for curations: each a scene of coloured shapes, and copies of them as the web makes them."""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from heliostat.curation.image_maps import Compute
from heliostat.curation.kmeans import normalised
from heliostat.curation.results import vector_column
from heliostat.curation.vectors import VECTOR

Pixels = NDArray[np.uint8]


def scene(number: int, side: int = 96) -> Pixels:
    """A picture of its own for every number."""
    rng = np.random.default_rng(number)
    image = np.full((side, side, 3), rng.integers(0, 255, 3), np.uint8)
    for _ in range(12):
        colour = tuple(int(value) for value in rng.integers(0, 255, 3))
        a, b = (tuple(int(value) for value in rng.integers(0, side, 2)) for _ in range(2))
        cv2.rectangle(image, a, b, colour, -1)
    return image


def encoded(image: Pixels, kind: str = "JPEG", quality: int = 92) -> bytes:
    """As a file."""
    sink = io.BytesIO()
    Image.fromarray(image).save(sink, kind, **({"quality": quality} if kind == "JPEG" else {}))
    return sink.getvalue()


def recompressed(number: int) -> bytes:
    """The same scene at another quality and size."""
    smaller = np.asarray(cv2.resize(scene(number), (80, 80), interpolation=cv2.INTER_AREA), np.uint8)
    return encoded(smaller, quality=70)


@dataclass(frozen=True, slots=True)
class MeanColour:
    """A plug-in: the mean colour of an image as its embedding."""

    name: str = "mean-colour"
    fingerprint: str = "1"
    short_side_px: int = 16
    gpus: float = 0.0

    def open(self) -> Compute:
        return _mean_colours


def _mean_colours(images: Sequence[Pixels]) -> pa.Table:
    means = np.stack([image.reshape(-1, 3).mean(axis=0) - 127.5 for image in images])
    return pa.table({VECTOR: vector_column(normalised(means).astype(np.float16))})


@dataclass(frozen=True, slots=True)
class Darkness:
    """A plug-in of the filter: scores how dark an image is."""

    name: str = "darkness"
    fingerprint: str = "1"
    short_side_px: int = 16
    gpus: float = 0.0

    def open(self) -> Compute:
        return _darkness


def _darkness(images: Sequence[Pixels]) -> pa.Table:
    return pa.table({"score": [1 - float(image.mean()) / 255 for image in images]})
