"""Multi-crop augmentation as in DINOv2 (its code, ``data/augmentations.py``): parameters first, pixels second.

``plan_crop`` draws every parameter of a crop from one stream of draws; ``apply_crop`` is a function of pixels and plan.
Order per crop: resized crop, flip, colour jitter, grey, blur, solarize; normalisation happens on the whole batch.

Legend: H, W, C of an image; P side of a crop.
"""

import math
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from heliostat.config.pretrain import AugmentationConfig
from heliostat.data.draws import Draws

cv2.setNumThreads(1)  # workers are processes: a second thread per crop costs a fifth more CPU time and saves none

Pixels = NDArray[np.uint8]

GLOBAL_CROPS = 2
_ASPECT = (3 / 4, 4 / 3)
_BRIGHTNESS, _CONTRAST, _SATURATION, _HUE = 0.4, 0.4, 0.2, 0.1
_BLUR_KERNEL_PX, _BLUR_SIGMA_PX = 9, (0.1, 2.0)
_SOLARIZE_FROM = 128
_BLUR_PROBABILITY = {"paper": (1.0, 0.1, 0.5), "official": (0.0, 0.9, 0.5), "none": (0.0, 0.0, 0.0)}
"""Of global crop 1, global crop 2, local crops. The official code passes 1 - p (facebookresearch/dinov2 PR #411),
and the released weights were trained with that."""
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


@dataclass(frozen=True, slots=True)
class Jitter:
    """Colour jitter; ``order`` is the order in which the four are applied (0 brightness … 3 hue)."""

    order: tuple[int, ...]
    brightness: float
    contrast: float
    saturation: float
    hue: float
    """Shift of the hue circle, in turns."""


@dataclass(frozen=True, slots=True)
class CropPlan:
    """Everything that happens to one crop."""

    px: int
    top: int
    left: int
    height: int
    width: int
    flip: bool
    jitter: Jitter | None
    grey: bool
    blur_sigma_px: float | None
    solarize: bool


def plan_crop(config: AugmentationConfig, seed: int, position: int, view: int, height: int, width: int) -> CropPlan:
    """Draw the parameters of one view of the sample at ``position`` of the run; views 0 and 1 are the global crops."""
    draws = Draws(seed, "crop", position, view)
    is_global = view < GLOBAL_CROPS
    scale = config.global_scale if is_global else config.local_scale
    top, left, crop_height, crop_width = _resized_crop(draws, scale, height, width)
    return CropPlan(
        px=config.global_px if is_global else config.local_px,
        top=top,
        left=left,
        height=crop_height,
        width=crop_width,
        flip=draws.chance(config.flip),
        jitter=_jitter(draws) if draws.chance(config.jitter) else None,
        grey=draws.chance(config.grey),
        blur_sigma_px=(
            draws.uniform(*_BLUR_SIGMA_PX) if draws.chance(_BLUR_PROBABILITY[config.blur][min(view, 2)]) else None
        ),
        solarize=view == 1 and draws.chance(config.solarize),
    )


def _resized_crop(draws: Draws, scale: tuple[float, float], height: int, width: int) -> tuple[int, int, int, int]:
    area = height * width
    for _ in range(10):
        target = area * draws.uniform(*scale)
        aspect = math.exp(draws.uniform(math.log(_ASPECT[0]), math.log(_ASPECT[1])))
        crop_width, crop_height = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            return (
                draws.randint(0, height - crop_height),
                draws.randint(0, width - crop_width),
                crop_height,
                crop_width,
            )
    # No crop of a legal shape fits (very long images): the largest central one that does.
    crop_width = min(width, round(height * _ASPECT[1]))
    crop_height = min(height, round(width / _ASPECT[0]))
    return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width


def _jitter(draws: Draws) -> Jitter:
    order = [0, 1, 2, 3]
    draws.shuffle(order)
    return Jitter(
        order=tuple(order),
        brightness=draws.uniform(1 - _BRIGHTNESS, 1 + _BRIGHTNESS),
        contrast=draws.uniform(1 - _CONTRAST, 1 + _CONTRAST),
        saturation=draws.uniform(1 - _SATURATION, 1 + _SATURATION),
        hue=draws.uniform(-_HUE, _HUE),
    )


def apply_crop(image_HWC: Pixels, plan: CropPlan) -> Pixels:
    """Pixels of one crop, shape (P, P, 3), uint8."""
    crop = image_HWC[plan.top : plan.top + plan.height, plan.left : plan.left + plan.width]
    shrinks = plan.height > plan.px or plan.width > plan.px
    # OpenCV's cubic filter is not antialiased; averaging is, and is the better of the two wherever a crop shrinks.
    crop = cv2.resize(crop, (plan.px, plan.px), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)
    if plan.flip:
        crop = crop[:, ::-1]
    if plan.jitter is not None:
        crop = _apply_jitter(crop, plan.jitter)
    if plan.grey:
        crop = np.repeat(_to_uint8(_luma(crop))[..., None], 3, axis=2)
    if plan.blur_sigma_px is not None:
        crop = cv2.GaussianBlur(crop, (_BLUR_KERNEL_PX, _BLUR_KERNEL_PX), plan.blur_sigma_px)
    if plan.solarize:
        crop = np.where(crop >= _SOLARIZE_FROM, 255 - crop, crop)
    return np.ascontiguousarray(crop, dtype=np.uint8)


def _apply_jitter(crop_PPC: Pixels, jitter: Jitter) -> Pixels:
    for operation in jitter.order:
        if operation == 0:
            crop_PPC = _to_uint8(crop_PPC * np.float32(jitter.brightness))
        elif operation == 1:
            mean = np.float32(_luma(crop_PPC).mean())
            crop_PPC = _to_uint8(mean + (crop_PPC - mean) * np.float32(jitter.contrast))
        elif operation == 2:
            grey = _luma(crop_PPC)[..., None]
            crop_PPC = _to_uint8(grey + (crop_PPC - grey) * np.float32(jitter.saturation))
        else:
            crop_PPC = _shift_hue(crop_PPC, jitter.hue)
    return crop_PPC


def _shift_hue(crop_PPC: Pixels, turns: float) -> Pixels:
    hsv = cv2.cvtColor(np.ascontiguousarray(crop_PPC), cv2.COLOR_RGB2HSV_FULL)
    # OpenCV writes a hue as 256 steps of the circle and reads it as 255.
    shifted = np.rint((np.arange(256) / 256 + turns) % 1 * 255).astype(np.uint8)
    cv2.insertChannel(cv2.LUT(cv2.extractChannel(hsv, 0), shifted), hsv, 0)
    return np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL), np.uint8)


def _luma(crop_PPC: Pixels) -> NDArray[np.float32]:
    return np.asarray(crop_PPC @ _LUMA, np.float32)


def _to_uint8(values: NDArray[np.float32]) -> Pixels:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def all_crops(config: AugmentationConfig, seed: int, position: int, image_HWC: Pixels) -> tuple[Pixels, Pixels]:
    """Every crop of one sample: global (2, P, P, 3) and local (L, P, P, 3), uint8."""
    height, width = image_HWC.shape[:2]
    crops = [
        apply_crop(image_HWC, plan_crop(config, seed, position, view, height, width))
        for view in range(GLOBAL_CROPS + config.local_count)
    ]
    return np.stack(crops[:GLOBAL_CROPS]), np.stack(crops[GLOBAL_CROPS:])


def undistorted_crops(config: AugmentationConfig, seed: int, position: int, image_HWC: Pixels, px: int) -> Pixels:
    """The global crops of one sample at another size, flipped alike, their colours as they are, (2, P, P, 3)."""
    height, width = image_HWC.shape[:2]
    plans = [plan_crop(config, seed, position, view, height, width) for view in range(GLOBAL_CROPS)]
    plans = [replace(plan, px=px, jitter=None, grey=False, blur_sigma_px=None, solarize=False) for plan in plans]
    return np.stack([apply_crop(image_HWC, plan) for plan in plans])
