"""The parameters of all crops of a slot: multi-crop augmentation as in DINOv2 (its ``data/augmentations.py``).

Parameters first, pixels second: what is drawn here says everything that happens to a crop. One stream of draws belongs
to each (seed, position in the run); view v takes its ``_WORDS`` numbers from v · ``_WORDS`` on, one for each parameter
whether it is used or not. So a draw is a function of (seed, position, view), and all views of all images of a slot are
planned by a few array operations.

Legend: V views (2 global, then L local), B images of the slot, T tries, N crops of one size, crop-major.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from heliostat.config.training import AugmentationConfig
from heliostat.data.draws import units

GLOBAL_CROPS = 2

Floats = NDArray[np.float64]

_TRIES = 10
_ASPECT = (3 / 4, 4 / 3)
_BRIGHTNESS, _CONTRAST, _SATURATION, _HUE = 0.4, 0.4, 0.2, 0.1
_BLUR_SIGMA_PX = (0.1, 2.0)
_BLUR_PROBABILITY = {"paper": (1.0, 0.1, 0.5), "official": (0.0, 0.9, 0.5), "none": (0.0, 0.0, 0.0)}
"""Of global crop 1, global crop 2, local crops. The official code passes 1 - p (facebookresearch/dinov2 PR #411),
and the released weights were trained with that."""
_ORDERS = np.array(list(permutations(range(4))), np.int8)

# What each of a view's numbers decides.
_AREA, _SHAPE = slice(0, _TRIES), slice(_TRIES, 2 * _TRIES)
_SINGLE = 2 * _TRIES
(
    _TOP_AT,
    _LEFT_AT,
    _FLIP_AT,
    _JITTER_AT,
    _ORDER_AT,
    _BRIGHTNESS_AT,
    _CONTRAST_AT,
    _SATURATION_AT,
    _HUE_AT,
    _GREY_AT,
    _BLUR_AT,
    _SIGMA_AT,
    _SOLARIZE_AT,
) = range(_SINGLE, _SINGLE + 13)
_WORDS = _SINGLE + 13


@dataclass(frozen=True, slots=True)
class Boxes:
    """What each crop shows: parts of the upright image in pixels of its full size; arrays of shape (V, B)."""

    top: NDArray[np.int64]
    left: NDArray[np.int64]
    height: NDArray[np.int64]
    width: NDArray[np.int64]
    flip: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class PhotometricPlan:
    """What happens to the colours of N crops, in this order: jitter, grey, blur, solarize; arrays of shape (N,)."""

    jitter: NDArray[np.bool_]
    order: NDArray[np.int8]
    """(N, 4): the order in which jitter changes brightness 0, contrast 1, saturation 2, hue 3."""
    brightness: NDArray[np.float32]
    contrast: NDArray[np.float32]
    saturation: NDArray[np.float32]
    hue: NDArray[np.float32]
    """Shift of the hue circle, in turns."""
    grey: NDArray[np.bool_]
    blur_sigma_px: NDArray[np.float32]
    """0 where nothing is blurred."""
    solarize: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class CropPlans:
    """Everything that happens to the crops of a slot."""

    boxes: Boxes
    global_photometric: PhotometricPlan
    """N = 2 B."""
    local_photometric: PhotometricPlan
    """N = L B."""


def plan_crops(
    config: AugmentationConfig, seed: int, positions: Sequence[int], sizes: Sequence[tuple[int, int]]
) -> CropPlans:
    """Draw the crops of the images at ``positions`` of the run, whose (height, width) are ``sizes``."""
    views = GLOBAL_CROPS + config.local_count
    draws_BW = np.stack([units(views * _WORDS, seed, "crop", position) for position in positions])
    draws_VBW = draws_BW.reshape(len(positions), views, _WORDS).transpose(1, 0, 2)
    return CropPlans(
        boxes=_draw_boxes(config, draws_VBW, np.array(sizes, np.float64)),
        global_photometric=_draw_photometric(config, draws_VBW[:GLOBAL_CROPS], first_view=0),
        local_photometric=_draw_photometric(config, draws_VBW[GLOBAL_CROPS:], first_view=GLOBAL_CROPS),
    )


def _draw_boxes(config: AugmentationConfig, draws_VBW: Floats, sizes_B2: Floats) -> Boxes:
    """The first of ten tries that lies within the image, or the largest central part of a legal shape."""
    views = len(draws_VBW)
    scales = np.array([config.global_scale] * GLOBAL_CROPS + [config.local_scale] * (views - GLOBAL_CROPS))
    tall_B, wide_B = sizes_B2.T
    target_VBT = (tall_B * wide_B)[:, None] * _between(
        draws_VBW[..., _AREA], scales[:, 0, None, None], scales[:, 1, None, None]
    )
    aspect_VBT = _exp(_between(draws_VBW[..., _SHAPE], math.log(_ASPECT[0]), math.log(_ASPECT[1])))
    widths_VBT, heights_VBT = np.rint(np.sqrt(target_VBT * aspect_VBT)), np.rint(np.sqrt(target_VBT / aspect_VBT))
    fits_VBT = (widths_VBT > 0) & (widths_VBT <= wide_B[:, None]) & (heights_VBT > 0) & (heights_VBT <= tall_B[:, None])
    first_VB1 = fits_VBT.argmax(-1)[..., None]
    found_VB = np.take_along_axis(fits_VBT, first_VB1, -1)[..., 0]
    height_VB = np.where(
        found_VB,
        np.take_along_axis(heights_VBT, first_VB1, -1)[..., 0],
        np.minimum(tall_B, np.rint(wide_B / _ASPECT[0])),
    )
    width_VB = np.where(
        found_VB,
        np.take_along_axis(widths_VBT, first_VB1, -1)[..., 0],
        np.minimum(wide_B, np.rint(tall_B * _ASPECT[1])),
    )
    return Boxes(
        top=_offset(draws_VBW[..., _TOP_AT], tall_B - height_VB, found_VB),
        left=_offset(draws_VBW[..., _LEFT_AT], wide_B - width_VB, found_VB),
        height=height_VB.astype(np.int64),
        width=width_VB.astype(np.int64),
        flip=draws_VBW[..., _FLIP_AT] < config.flip,
    )


def _offset(draws_VB: Floats, room_VB: Floats, found_VB: NDArray[np.bool_]) -> NDArray[np.int64]:
    return np.where(found_VB, np.floor(draws_VB * (room_VB + 1)), room_VB // 2).astype(np.int64)


def _draw_photometric(config: AugmentationConfig, draws_VBW: Floats, first_view: int) -> PhotometricPlan:
    draws_NW = draws_VBW.reshape(-1, _WORDS)
    view_N = first_view + np.arange(len(draws_NW)) // draws_VBW.shape[1]
    blur_probability_N = np.array(_BLUR_PROBABILITY[config.blur])[np.minimum(view_N, GLOBAL_CROPS)]
    blurred_N = draws_NW[:, _BLUR_AT] < blur_probability_N
    return PhotometricPlan(
        jitter=draws_NW[:, _JITTER_AT] < config.jitter,
        order=_ORDERS[(draws_NW[:, _ORDER_AT] * len(_ORDERS)).astype(np.int64)],
        brightness=_single(_between(draws_NW[:, _BRIGHTNESS_AT], 1 - _BRIGHTNESS, 1 + _BRIGHTNESS)),
        contrast=_single(_between(draws_NW[:, _CONTRAST_AT], 1 - _CONTRAST, 1 + _CONTRAST)),
        saturation=_single(_between(draws_NW[:, _SATURATION_AT], 1 - _SATURATION, 1 + _SATURATION)),
        hue=_single(_between(draws_NW[:, _HUE_AT], -_HUE, _HUE)),
        grey=draws_NW[:, _GREY_AT] < config.grey,
        blur_sigma_px=_single(np.where(blurred_N, _between(draws_NW[:, _SIGMA_AT], *_BLUR_SIGMA_PX), 0)),
        solarize=(view_N == 1) & (draws_NW[:, _SOLARIZE_AT] < config.solarize),
    )


def _between(draws: Floats, low: Any, high: Any) -> Floats:
    between: Floats = low + (high - low) * draws
    return between


def _single(values: Floats) -> NDArray[np.float32]:
    return values.astype(np.float32)


def _exp(x: Floats) -> Floats:
    """e^x for |x| < 0.3, by a series of products and sums, which are the same on every machine.

    The last bit of NumPy's own depends on the processor, and it may move the edge of a crop by a pixel.
    """
    series = [1 / math.factorial(power) for power in range(13)]
    return np.asarray(np.polynomial.polynomial.polyval(x, series), np.float64)
