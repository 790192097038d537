"""The multi-crop augmentation by Pillow, as loaders of the published recipe run it: the peer of bench_ingest.py.

The parameters of every crop are those that the product draws, so both do the same to each image; only pixels are
Pillow's. Legend: P side of a crop, L local crops.
"""

from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from heliostat.config.pretrain import AugmentationConfig
from heliostat.data.augment import GLOBAL_CROPS, CropPlan, Jitter, plan_crop

Pixels = NDArray[np.uint8]

_SOLARIZE_FROM = 128
_ENHANCERS = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)


def decode(data: bytes) -> Image.Image:
    """Pixels of an encoded image, in RGB."""
    with Image.open(BytesIO(data)) as image:
        upright = ImageOps.exif_transpose(image)
        return upright.convert("RGB")


def pillow_crops(config: AugmentationConfig, seed: int, position: int, data: bytes) -> tuple[Pixels, Pixels]:
    """Every crop of one sample: global (2, P, P, 3) and local (L, P, P, 3), uint8."""
    image = decode(data)
    crops = [
        _crop(image, plan_crop(config, seed, position, view, image.height, image.width))
        for view in range(GLOBAL_CROPS + config.local_count)
    ]
    return np.stack(crops[:GLOBAL_CROPS]), np.stack(crops[GLOBAL_CROPS:])


def _crop(image: Image.Image, plan: CropPlan) -> Pixels:
    box = (plan.left, plan.top, plan.left + plan.width, plan.top + plan.height)
    crop = image.resize((plan.px, plan.px), Image.Resampling.BICUBIC, box)
    if plan.flip:
        crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if plan.jitter is not None:
        crop = _jitter(crop, plan.jitter)
    if plan.grey:
        crop = crop.convert("L").convert("RGB")
    if plan.blur_sigma_px is not None:
        crop = crop.filter(ImageFilter.GaussianBlur(plan.blur_sigma_px))
    if plan.solarize:
        crop = ImageOps.solarize(crop, _SOLARIZE_FROM)
    return np.asarray(crop)


def _jitter(crop: Image.Image, jitter: Jitter) -> Image.Image:
    factors = (jitter.brightness, jitter.contrast, jitter.saturation)
    for operation in jitter.order:
        crop = (
            _ENHANCERS[operation](crop).enhance(factors[operation])
            if operation < len(factors)
            else _shift_hue(crop, jitter.hue)
        )
    return crop


def _shift_hue(crop: Image.Image, turns: float) -> Image.Image:
    hue, saturation, value = crop.convert("HSV").split()
    shifted = np.asarray(hue) + np.uint8(round(turns * 256) % 256)  # wraps round, as a hue does
    return Image.merge("HSV", (Image.fromarray(shifted), saturation, value)).convert("RGB")
