"""What can be said of an image without knowing what it shows, and which images that leaves out."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from heliostat.config.curate import FilterConfig
from heliostat.curation.image_maps import Compute
from heliostat.data.decode import RgbImage

_SIDE_PX = 256
"""Sharpness depends on the size at which it is measured: images are brought to this shorter side."""
_VERSION = "1"

SHARPNESS, ENTROPY, DEVIATION = "sharpness", "entropy_bits", "deviation"


@dataclass(frozen=True, slots=True)
class Quality:
    """The image map of measures."""

    name: str = "quality"
    fingerprint: str = _VERSION
    short_side_px: int = _SIDE_PX
    gpus: float = 0.0

    def open(self) -> Compute:
        """See ``ImageMap``."""
        return measure


def measure(images: Sequence[RgbImage]) -> pa.Table:
    """Measures of images, one row each: variance of the Laplacian, bits of entropy and standard deviation of greys."""
    found = [_of_one(image) for image in images]
    names = (SHARPNESS, ENTROPY, DEVIATION)
    return pa.table({name: pa.array([each[place] for each in found], pa.float32()) for place, name in enumerate(names)})


def _of_one(image: RgbImage) -> tuple[float, float, float]:
    height, width = image.shape[:2]
    scale = _SIDE_PX / min(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    resized = cv2.resize(grey, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    shares = np.bincount(grey.reshape(-1), minlength=256) / grey.size
    shares = shares[shares > 0]
    entropy = float(-(shares * np.log2(shares)).sum())
    return float(cv2.Laplacian(resized, cv2.CV_64F).var()), abs(entropy), float(grey.std())


@dataclass(frozen=True, slots=True)
class Measures:
    """Of N images, (N,) each.

    Attributes:
        width, height: Pixels.
        sharpness, entropy_bits, deviation: As ``measure`` gives them.
    """

    width: npt.NDArray[np.int32]
    height: npt.NDArray[np.int32]
    sharpness: npt.NDArray[np.float32]
    entropy_bits: npt.NDArray[np.float32]
    deviation: npt.NDArray[np.float32]


REASONS = ("too small", "extreme ratio", "near-constant", "low entropy", "blurred")


def refused(measures: Measures, config: FilterConfig) -> npt.NDArray[np.int8]:
    """Which of ``REASONS`` applies to each image first, -1 where none does."""
    short = np.minimum(measures.width, measures.height)
    long = np.maximum(measures.width, measures.height)
    tests = (
        short < config.min_side_px,
        long > config.max_ratio * short,
        measures.deviation < config.min_deviation,
        measures.entropy_bits < config.min_entropy_bits,
        measures.sharpness < config.min_sharpness,
    )
    found = np.full(len(short), -1, np.int8)
    for number in reversed(range(len(tests))):
        found[tests[number]] = number
    return found
