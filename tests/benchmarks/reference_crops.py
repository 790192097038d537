"""The multi-crop augmentation by Pillow, as loaders of the published recipe run it: the peer of bench_ingest.py.

The parameters of every crop are those that the product draws, so both do the same to each image; only pixels are
Pillow's. Wherever a shorter way leads to the same pixels, it is taken: no copies that change nothing, blending without
``ImageEnhance``'s detours, and the blur (which torchvision convolves in torch, 9 x 9, in more than twice the time, and
Pillow's own filter approximates in twice the time) as two convolutions of 9 taps in NumPy.

Legend: P side of a crop, L local crops, B images.
"""

import math
from collections.abc import Sequence
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, ImageStat

from heliostat.config.training import AugmentationConfig
from heliostat.data.crop_plan import GLOBAL_CROPS, Boxes, PhotometricPlan, plan_crops

Pixels = NDArray[np.uint8]

_SOLARIZE_FROM = 128
_BLUR_RADIUS_PX = 4


def decode(data: bytes) -> Image.Image:
    """Pixels of an encoded image, upright, in RGB."""
    image: Image.Image = Image.open(BytesIO(data))
    ImageOps.exif_transpose(image, in_place=True)
    image.load()
    return image if image.mode == "RGB" else image.convert("RGB")


def pillow_crops(
    config: AugmentationConfig, seed: int, positions: Sequence[int], encoded: Sequence[bytes]
) -> tuple[Pixels, Pixels]:
    """Every crop of B samples, crop-major: global (2 B, P, P, 3) and local (L B, P, P, 3), uint8."""
    images = [decode(data) for data in encoded]
    plans = plan_crops(config, seed, positions, [(image.height, image.width) for image in images])

    def crops(views: range, px: int, colours: PhotometricPlan) -> Pixels:
        parts = [cut(image, plans.boxes, view, at, px) for view in views for at, image in enumerate(images)]
        return np.stack([np.asarray(change_colours(part, colours, index)) for index, part in enumerate(parts)])

    return (
        crops(range(GLOBAL_CROPS), config.global_px, plans.global_photometric),
        crops(range(GLOBAL_CROPS, len(plans.boxes.top)), config.local_px, plans.local_photometric),
    )


def cut(image: Image.Image, boxes: Boxes, view: int, at: int, px: int) -> Image.Image:
    """The resized part of the image that the crop (view, at) shows."""
    left, top = int(boxes.left[view, at]), int(boxes.top[view, at])
    part = image.crop((left, top, left + int(boxes.width[view, at]), top + int(boxes.height[view, at])))
    crop = part.resize((px, px), Image.Resampling.BICUBIC)
    return crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if boxes.flip[view, at] else crop


def change_colours(crop: Image.Image, plan: PhotometricPlan, index: int) -> Image.Image:
    """Jitter, grey, blur and solarize one crop of a plan."""
    if plan.jitter[index]:
        factors = (plan.brightness[index], plan.contrast[index], plan.saturation[index], plan.hue[index])
        for operation in plan.order[index]:
            crop = JITTER[operation](crop, float(factors[operation]))
    if plan.grey[index]:
        crop = crop.convert("L").convert("RGB")
    if plan.blur_sigma_px[index]:
        crop = blur(crop, float(plan.blur_sigma_px[index]))
    if plan.solarize[index]:
        crop = ImageOps.solarize(crop, _SOLARIZE_FROM)
    return crop


def brighten(crop: Image.Image, factor: float) -> Image.Image:
    """As ``ImageEnhance.Brightness``."""
    return Image.blend(Image.new("RGB", crop.size), crop, factor)


def contrast(crop: Image.Image, factor: float) -> Image.Image:
    """As ``ImageEnhance.Contrast``."""
    mean = int(ImageStat.Stat(crop.convert("L")).mean[0] + 0.5)
    return Image.blend(Image.new("RGB", crop.size, (mean, mean, mean)), crop, factor)


def saturate(crop: Image.Image, factor: float) -> Image.Image:
    """As ``ImageEnhance.Color``."""
    return Image.blend(crop.convert("L").convert("RGB"), crop, factor)


def shift_hue(crop: Image.Image, turns: float) -> Image.Image:
    """Turn the hue circle, of which Pillow has 256 steps."""
    hue, saturation, value = crop.convert("HSV").split()
    shifted = np.asarray(hue) + np.uint8(round(turns * 256) % 256)  # wraps round, as a hue does
    return Image.merge("HSV", (Image.fromarray(shifted), saturation, value)).convert("RGB")


def blur(crop: Image.Image, sigma_px: float) -> Image.Image:
    """As torchvision's ``GaussianBlur(9)``."""
    side = crop.width
    radius = min(_BLUR_RADIUS_PX, math.ceil(3 * sigma_px))  # what lies beyond weighs less than a tenth of a level
    taps = np.exp(-((np.arange(radius + 1, dtype=np.float32) / sigma_px) ** 2) / 2)
    taps /= taps[0] + 2 * taps[1:].sum()
    padded = np.pad(np.asarray(crop, np.float32), ((radius, radius), (radius, radius), (0, 0)), mode="reflect")
    rows = taps[0] * padded[radius : radius + side]
    for step in range(1, radius + 1):
        rows += taps[step] * (padded[radius - step :][:side] + padded[radius + step :][:side])
    both = taps[0] * rows[:, radius : radius + side]
    for step in range(1, radius + 1):
        both += taps[step] * (rows[:, radius - step :][:, :side] + rows[:, radius + step :][:, :side])
    both += np.float32(0.5)
    return Image.fromarray(both.astype(np.uint8))


JITTER = (brighten, contrast, saturate, shift_hue)
