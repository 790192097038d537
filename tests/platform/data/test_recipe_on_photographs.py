"""Is it the same recipe? Every operation on 500 photographs, against Pillow: mean, variance, histogram.

The reference is written here and in ``support.colours``, from Pillow and NumPy alone. Parameters that the product draws
are compared with an independent sampler in ``test_crop_plan``; here strengths are drawn by the test.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from support.colours import (
    BRIGHTNESS,
    CONTRAST,
    HUE,
    SATURATION,
    Pixels,
    blurred,
    enhanced,
    greyed,
    jitter_plan,
    part_of,
    plan_without_changes,
    solarized,
    turned,
)

from heliostat.config.training import AugmentationConfig
from heliostat.data import photometric, photometric_torch
from heliostat.data.crop_plan import PhotometricPlan, plan_crops
from heliostat.data.crops import slot_crops

pytestmark = pytest.mark.data

PHOTOGRAPHS = 500
CONFIG = AugmentationConfig(local_count=1)
KINDS = ("global", "local")
VIEW = {"global": 1, "local": 2}
"""The second global crop, which may be blurred and solarized."""


@dataclass(frozen=True)
class Bound:
    """How far ours may be from Pillow's over all crops of a kind."""

    mean: float
    """Levels of 255."""
    deviation: float
    """Relative difference of the standard deviation."""
    histogram: float
    """Share of the pixels' levels that would have to move by any distance (total variation)."""


BOUNDS = {
    "resize": Bound(mean=0.001, deviation=0.0001, histogram=0.001),
    "brightness": Bound(mean=0.01, deviation=0.0001, histogram=0.004),
    "contrast": Bound(mean=0.02, deviation=0.0001, histogram=0.006),
    "saturation": Bound(mean=0.1, deviation=0.0005, histogram=0.006),
    "hue": Bound(mean=0.3, deviation=0.002, histogram=0.025),
    "grey": Bound(mean=0.01, deviation=0.0001, histogram=0.001),
    "blur": Bound(mean=0.001, deviation=0.0001, histogram=0.001),
    "solarize": Bound(mean=0.0, deviation=0.0, histogram=0.0),
    "everything": Bound(mean=0.2, deviation=0.001, histogram=0.02),
}
"""About twice what was found; hue, which Pillow and OpenCV round to 256 steps each in its own way, is the widest."""


@pytest.fixture(scope="module")
def encoded() -> list[bytes]:
    data = os.environ.get("HELIOSTAT_TEST_DATA")
    paths = sorted((Path(data) / "clothing_cc0").rglob("*.jpg")) if data else []
    if len(paths) < PHOTOGRAPHS:
        pytest.skip("HELIOSTAT_TEST_DATA does not lead to the photographs of clothing_cc0")
    return [path.read_bytes() for path in paths[:: len(paths) // PHOTOGRAPHS][:PHOTOGRAPHS]]


@pytest.fixture(scope="module")
def cut(encoded: list[bytes]) -> dict[str, Pixels]:
    """Crops of either kind by Pillow alone, their colours as they are."""
    images = [Image.open(BytesIO(data)).convert("RGB") for data in encoded]
    boxes = plan_crops(CONFIG, 0, range(PHOTOGRAPHS), [(image.height, image.width) for image in images]).boxes

    def crop(image: Image.Image, view: int, at: int, px: int) -> Pixels:
        left, top = int(boxes.left[view, at]), int(boxes.top[view, at])
        part = image.crop((left, top, left + int(boxes.width[view, at]), top + int(boxes.height[view, at])))
        resized = part.resize((px, px), Image.Resampling.BICUBIC)
        return np.asarray(resized.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if boxes.flip[view, at] else resized)

    sizes = {"global": CONFIG.global_px, "local": CONFIG.local_px}
    return {
        kind: np.stack([crop(image, VIEW[kind], at, sizes[kind]) for at, image in enumerate(images)]) for kind in KINDS
    }


def histogram(pixels: Pixels) -> NDArray[np.float64]:
    """(3, 256): share of each level in each channel."""
    rows = [pixels.reshape(-1, pixels.shape[2], 3)]
    counts = [cv2.calcHist(rows, [channel], None, [256], [0, 256]).reshape(-1) for channel in range(3)]
    return np.stack(counts).astype(np.float64) / (pixels.size / 3)


def assert_alike(ours: Pixels, theirs: Pixels, bound: Bound) -> None:
    assert ours.shape == theirs.shape
    one, other = histogram(ours), histogram(theirs)
    levels = np.arange(256)
    means = [(share * levels).sum(1) for share in (one, other)]
    deviations = [
        np.sqrt((share * (levels - mean[:, None]) ** 2).sum(1)) for share, mean in zip((one, other), means, strict=True)
    ]
    found = Bound(
        mean=float(np.abs(means[0] - means[1]).max()),
        deviation=float(np.abs(deviations[0] / deviations[1] - 1).max()),
        histogram=float(np.abs(one - other).sum(1).max() / 2),
    )
    assert found.mean <= bound.mean, found
    assert found.deviation <= bound.deviation, found
    assert found.histogram <= bound.histogram, found


@pytest.fixture(scope="module")
def ours(encoded: list[bytes]) -> dict[str, tuple[Pixels, PhotometricPlan]]:
    """The product's crops of either kind, their colours as they are, and its plan for those."""
    slot = slot_crops(CONFIG, 0, range(PHOTOGRAPHS), encoded, photometric=False)
    assert slot.photometric is not None
    whole, local = slot.photometric
    return {
        "global": (slot.global_crops[PHOTOGRAPHS:], part_of(whole, slice(PHOTOGRAPHS, None))),
        "local": (slot.local_crops, local),
    }


@pytest.mark.parametrize("kind", KINDS)
def test_slot_crops__decode_and_resize_are_pillows(
    ours: dict[str, tuple[Pixels, PhotometricPlan]], cut: dict[str, Pixels], kind: str
) -> None:
    crops, _ = ours[kind]
    assert_alike(crops, cut[kind], BOUNDS["resize"])
    assert cv2.absdiff(crops, cut[kind]).mean() < 0.05


def only(operation: int, strengths: NDArray[np.float32]) -> PhotometricPlan:
    plan = jitter_plan(operation, strengths)
    return replace(plan, order=np.full((len(strengths), 1), operation, np.int8))


def uniform(low: float, high: float) -> NDArray[np.float32]:
    return np.random.default_rng(3).uniform(low, high, PHOTOGRAPHS).astype(np.float32)


_STILL, _YES = plan_without_changes(PHOTOGRAPHS), np.ones(PHOTOGRAPHS, bool)
_WIDE, _NARROW, _TURNS, _SIGMAS = uniform(0.6, 1.4), uniform(0.8, 1.2), uniform(-0.1, 0.1), uniform(0.1, 2.0)
OPERATIONS: dict[str, tuple[PhotometricPlan, Callable[[Pixels, int], Pixels]]] = {
    "brightness": (only(BRIGHTNESS, _WIDE), lambda crop, at: enhanced(BRIGHTNESS, crop, float(_WIDE[at]))),
    "contrast": (only(CONTRAST, _WIDE), lambda crop, at: enhanced(CONTRAST, crop, float(_WIDE[at]))),
    "saturation": (only(SATURATION, _NARROW), lambda crop, at: enhanced(SATURATION, crop, float(_NARROW[at]))),
    "hue": (only(HUE, _TURNS), lambda crop, at: turned(crop, float(_TURNS[at]))),
    "grey": (replace(_STILL, grey=_YES), lambda crop, _: greyed(crop)),
    "blur": (replace(_STILL, blur_sigma_px=_SIGMAS), lambda crop, at: blurred(crop, float(_SIGMAS[at]))),
    "solarize": (replace(_STILL, solarize=_YES), lambda crop, _: solarized(crop)),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", OPERATIONS)
def test_apply_photometric__each_operation_has_pillows_statistics(cut: dict[str, Pixels], name: str, kind: str) -> None:
    plan, by_pillow = OPERATIONS[name]
    theirs = np.stack([by_pillow(crop, at) for at, crop in enumerate(cut[kind])])
    ours = cut[kind].copy()
    photometric.apply_photometric(ours, plan)
    assert_alike(ours, theirs, BOUNDS[name])
    if kind == "local":  # the batched version takes long on a CPU
        batched = photometric_torch.apply_photometric(torch.from_numpy(cut[kind]), plan).numpy()
        assert_alike(batched, theirs, BOUNDS[name])


def by_pillow(crop: Pixels, plan: PhotometricPlan, at: int) -> Pixels:
    """All that a plan says of one crop."""
    factors = (plan.brightness[at], plan.contrast[at], plan.saturation[at])
    for operation in plan.order[at] if plan.jitter[at] else ():
        if operation == HUE:
            crop = turned(crop, float(plan.hue[at]))
        else:
            crop = enhanced(int(operation), crop, float(factors[operation]))
    if plan.grey[at]:
        crop = greyed(crop)
    if plan.blur_sigma_px[at]:
        crop = blurred(crop, float(plan.blur_sigma_px[at]))
    return solarized(crop) if plan.solarize[at] else crop


@pytest.mark.parametrize("kind", KINDS)
def test_apply_photometric__whole_plans_have_pillows_statistics(
    ours: dict[str, tuple[Pixels, PhotometricPlan]], cut: dict[str, Pixels], kind: str
) -> None:
    crops, plan = ours[kind]
    crops = crops.copy()
    photometric.apply_photometric(crops, plan)
    theirs = np.stack([by_pillow(crop, plan, at) for at, crop in enumerate(cut[kind])])
    assert_alike(crops, theirs, BOUNDS["everything"])


def test_assert_alike__would_see_a_blur_of_another_width(cut: dict[str, Pixels]) -> None:
    """And a jitter that is a tenth stronger, and bytes rounded to nearest instead of down."""
    theirs = np.stack([enhanced(BRIGHTNESS, crop, 0.9) for crop in cut["local"]])
    stronger = np.stack([enhanced(BRIGHTNESS, crop, 0.89) for crop in cut["local"]])
    nearest = np.rint(cut["local"] * 0.9).astype(np.uint8)
    for other in (stronger, nearest):
        with pytest.raises(AssertionError):
            assert_alike(other, theirs, BOUNDS["brightness"])
    narrow, wide = (np.stack([blurred(crop, sigma) for crop in cut["local"]]) for sigma in (1.0, 1.1))
    with pytest.raises(AssertionError):
        assert_alike(wide, narrow, BOUNDS["blur"])
