"""Pictures for curations: each a scene of coloured shapes, and copies of them as the web makes them."""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from heliostat.curation.columns import vector_column
from heliostat.curation.image_maps import Compute
from heliostat.curation.kmeans import normalised
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


@dataclass(frozen=True, slots=True)
class Plugin:
    """What all plug-ins of tests have."""

    name: str
    fingerprint: str = "1"
    short_side_px: int = 16
    gpus: float = 0.0


@dataclass(frozen=True, slots=True)
class Raising(Plugin):
    """Raises at every image."""

    name: str = "raising"

    def open(self) -> Compute:
        return _raise


def _raise(images: Sequence[Pixels]) -> pa.Table:
    raise RuntimeError("out of luck")


@dataclass(frozen=True, slots=True)
class Short(Plugin):
    """Gives one row, whatever it gets."""

    name: str = "short"

    def open(self) -> Compute:
        return _one_row


def _one_row(images: Sequence[Pixels]) -> pa.Table:
    return pa.table({"score": [0.0]})


@dataclass(frozen=True, slots=True)
class WithoutScore(Plugin):
    """Calls its column something else."""

    name: str = "without-score"

    def open(self) -> Compute:
        return _badness


def _badness(images: Sequence[Pixels]) -> pa.Table:
    return pa.table({"badness": [0.0] * len(images)})


@dataclass(frozen=True, slots=True)
class Hue(Plugin):
    """A score that black has not."""

    name: str = "hue"

    def open(self) -> Compute:
        return _hue


def _hue(images: Sequence[Pixels]) -> pa.Table:
    sums = [float(image.sum()) for image in images]
    return pa.table({"score": [0.1 if total else float("nan") for total in sums]})


@dataclass(frozen=True, slots=True)
class Direction(Plugin):
    """The direction of the mean colour from black, which black has not."""

    name: str = "direction"

    def open(self) -> Compute:
        return _directions


def _directions(images: Sequence[Pixels]) -> pa.Table:
    means = np.stack([image.reshape(-1, 3).mean(axis=0) for image in images])
    return pa.table({VECTOR: vector_column(normalised(means).astype(np.float16))})


@dataclass(frozen=True, slots=True)
class Long(Plugin):
    """Vectors of length 2."""

    name: str = "long"

    def open(self) -> Compute:
        return _long


def _long(images: Sequence[Pixels]) -> pa.Table:
    return pa.table({VECTOR: vector_column(np.tile(np.array([[0, 2]], np.float16), (len(images), 1)))})


@dataclass(frozen=True, slots=True)
class NeverOpens(Plugin):
    """Cannot be opened on workers."""

    name: str = "never-opens"

    def open(self) -> Compute:
        raise OSError("no weights")
