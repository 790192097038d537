"""The published recipe's changes of colour, by Pillow and NumPy, and plans that do one thing to every crop."""

from dataclasses import fields, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps

from heliostat.data.crop_plan import PhotometricPlan

Pixels = NDArray[np.uint8]

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)


def plan_without_changes(crops: int) -> PhotometricPlan:
    """A plan that leaves N crops as they are."""
    never, one = np.zeros(crops, bool), np.ones(crops, np.float32)
    return PhotometricPlan(
        jitter=never,
        order=np.tile(np.arange(4, dtype=np.int8), (crops, 1)),
        brightness=one,
        contrast=one,
        saturation=one,
        hue=np.zeros(crops, np.float32),
        grey=never,
        blur_sigma_px=np.zeros(crops, np.float32),
        solarize=never,
    )


def jitter_plan(operation: int, strengths: NDArray[np.float32]) -> PhotometricPlan:
    """One jitter of every crop, each at its own strength."""
    still = replace(plan_without_changes(len(strengths)), jitter=np.ones(len(strengths), bool))
    if operation == BRIGHTNESS:
        return replace(still, brightness=strengths)
    if operation == CONTRAST:
        return replace(still, contrast=strengths)
    if operation == SATURATION:
        return replace(still, saturation=strengths)
    return replace(still, hue=strengths)


def part_of(plan: PhotometricPlan, part: slice) -> PhotometricPlan:
    """The plan of some of the crops."""
    return PhotometricPlan(**{field.name: getattr(plan, field.name)[part] for field in fields(plan)})


def enhanced(operation: int, crop: Pixels, factor: float) -> Pixels:
    """Brightness, contrast or saturation by Pillow."""
    enhancer = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)[operation]
    return np.asarray(enhancer(Image.fromarray(crop)).enhance(factor))


def turned(crop: Pixels, turns: float) -> Pixels:
    """The hue circle turned as torchvision does: in Pillow's 256 steps, which wrap round."""
    hue, saturation, value = Image.fromarray(crop).convert("HSV").split()
    shifted = np.asarray(hue) + np.uint8(round(turns * 255) % 256)
    return np.asarray(Image.merge("HSV", (Image.fromarray(shifted), saturation, value)).convert("RGB"))


def greyed(crop: Pixels) -> Pixels:
    """Grey by Pillow."""
    return np.asarray(Image.fromarray(crop).convert("L").convert("RGB"))


def blurred(crop: Pixels, sigma: float) -> Pixels:
    """A Gaussian of nine taps along each axis, the border mirrored, rounded once."""
    side = len(crop)
    taps = np.exp(-(np.arange(-4, 5) ** 2) / (2 * sigma**2))
    taps /= taps.sum()
    padded = np.pad(crop.astype(float), ((4, 4), (4, 4), (0, 0)), mode="reflect")
    rows = np.sum([tap * padded[at : at + side] for at, tap in enumerate(taps)], axis=0)
    both = np.sum([tap * rows[:, at : at + side] for at, tap in enumerate(taps)], axis=0)
    return np.asarray(np.rint(both), np.uint8)


def solarized(crop: Pixels) -> Pixels:
    """Solarize by Pillow."""
    return np.asarray(ImageOps.solarize(Image.fromarray(crop), 128))
