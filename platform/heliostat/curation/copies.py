"""Copies of images as people make them: saved again, smaller, cut, recoloured, marked, mirrored.

They train the copy-detection net, calibrate its threshold, and plant the truth that deduplication is judged by.
"""

from collections.abc import Callable, Mapping

import cv2
import numpy as np
from numpy.typing import NDArray

from heliostat.data.decode import RgbImage
from heliostat.data.draws import Draws

Copy = Callable[[RgbImage, Draws], RgbImage]


def recompressed(image: RgbImage, draws: Draws) -> RgbImage:
    """JPEG at a quality of 40 to 90."""
    return _through_jpeg(image, draws.randint(40, 90))


def resized(image: RgbImage, draws: Draws) -> RgbImage:
    """Half to nine tenths of each side."""
    scale = draws.uniform(0.5, 0.9)
    return _sized(image, max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))


def slightly_cropped(image: RgbImage, draws: Draws) -> RgbImage:
    """Without 5 % of each side."""
    return _cropped(image, 0.95, draws)


def recoloured(image: RgbImage, draws: Draws) -> RgbImage:
    """Brightness, contrast and saturation by up to a fifth."""
    brightness, contrast, saturation = (draws.uniform(0.8, 1.2) for _ in range(3))
    floats = image.astype(np.float32) * brightness
    mean = float(floats.mean())
    floats = mean + (floats - mean) * contrast
    grey = floats @ np.array([0.299, 0.587, 0.114], np.float32)
    floats = grey[..., None] + (floats - grey[..., None]) * saturation
    return np.clip(np.rint(floats), 0, 255).astype(np.uint8)


def watermarked(image: RgbImage, draws: Draws) -> RgbImage:
    """A line of text somewhere, half transparent, a third of the width."""
    height, width = image.shape[:2]
    text = "".join(chr(draws.randint(ord("a"), ord("z"))) for _ in range(10))
    scale = width / 3 / 10 / 18
    thickness = max(1, round(2 * scale))
    marked = np.ascontiguousarray(image)
    place = (draws.randint(0, max(0, 2 * width // 3)), draws.randint(height // 10, height - 1))
    value = 255 * draws.randint(0, 1)
    over = cv2.putText(marked.copy(), text, place, cv2.FONT_HERSHEY_SIMPLEX, scale, (value,) * 3, thickness)
    return np.asarray(cv2.addWeighted(over, 0.6, marked, 0.4, 0), np.uint8)


def mirrored(image: RgbImage, draws: Draws) -> RgbImage:
    """Left and right exchanged."""
    return np.ascontiguousarray(image[:, ::-1])


def strongly_cropped(image: RgbImage, draws: Draws) -> RgbImage:
    """Without 25 % of the area."""
    return _cropped(image, 0.75**0.5, draws)


COPIES: Mapping[str, Copy] = {
    "recompressed": recompressed,
    "resized": resized,
    "cropped by 5 %": slightly_cropped,
    "recoloured": recoloured,
    "watermarked": watermarked,
}
"""What every deduplication has to find."""
HARD_COPIES: Mapping[str, Copy] = {"mirrored": mirrored, "cropped by 25 %": strongly_cropped}
"""A class of its own."""


def training_view(image: RgbImage, side_px: int, draws: Draws) -> RgbImage:
    """A copy with several changes at once, stronger than any that has to be found, as a square.

    The square is squeezed, not cut: what has to be compared is the whole image.
    """
    view = _cropped(image, draws.uniform(0.45, 1.0) ** 0.5, draws) if draws.chance(0.75) else image
    view = _sized(view, side_px, side_px)
    if draws.chance(0.5):
        view = np.ascontiguousarray(view[:, ::-1])
    if draws.chance(0.7):
        view = recoloured(view, draws)
    if draws.chance(0.15):
        view = np.repeat(cv2.cvtColor(view, cv2.COLOR_RGB2GRAY)[..., None], 3, axis=2)
    if draws.chance(0.3):
        view = watermarked(view, draws)
    if draws.chance(0.2):
        view = np.asarray(cv2.GaussianBlur(view, (0, 0), draws.uniform(0.5, 2.0)), np.uint8)
    if draws.chance(0.5):
        view = _through_jpeg(view, draws.randint(20, 90))
    return view


def _cropped(image: RgbImage, share: float, draws: Draws) -> RgbImage:
    """A part somewhere, ``share`` of each side."""
    height, width = image.shape[:2]
    high, wide = max(1, round(height * share)), max(1, round(width * share))
    top, left = draws.randint(0, height - high), draws.randint(0, width - wide)
    return np.ascontiguousarray(image[top : top + high, left : left + wide])


def _sized(image: NDArray[np.uint8], width: int, height: int) -> RgbImage:
    shrinks = width < image.shape[1] or height < image.shape[0]
    interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(image, (width, height), interpolation=interpolation), np.uint8)


def _through_jpeg(image: RgbImage, quality: int) -> RgbImage:
    _, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
    return np.asarray(cv2.cvtColor(cv2.imdecode(data, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB), np.uint8)
