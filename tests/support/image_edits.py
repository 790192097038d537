"""Plug-ins that change images while they are ingested, good and bad ones."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from heliostat.data.edits import Edit

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class BlackenRed:
    """Sees a person in every image whose red outweighs its blue, and blackens the upper half, in place."""

    fingerprint: str = "1"

    def open(self) -> Edit:
        return _blacken


def _blacken(image: Pixels) -> Pixels:
    if image[..., 0].mean() > image[..., 2].mean():
        image[: len(image) // 2] = 0
    return image


@dataclass(frozen=True, slots=True)
class Failing:
    """Raises at every image."""

    fingerprint: str = "1"

    def open(self) -> Edit:
        return _fail


def _fail(image: Pixels) -> Pixels:
    raise ZeroDivisionError("no face")


@dataclass(frozen=True, slots=True)
class Greying:
    """Gives what is no image of three channels."""

    fingerprint: str = "1"

    def open(self) -> Edit:
        return _grey


def _grey(image: Pixels) -> Pixels:
    return image[..., 0]
