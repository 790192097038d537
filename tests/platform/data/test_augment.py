"""Parameters against the stated distributions, pixels against Pillow, ``colorsys`` and filters written out here."""

import colorsys
import math
from collections import Counter
from dataclasses import replace
from itertools import permutations
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps

from heliostat.config.pretrain import AugmentationConfig
from heliostat.data.augment import CropPlan, Jitter, Pixels, all_crops, apply_crop, plan_crop, undistorted_crops

CONFIG = AugmentationConfig()
PLANS = 4000
SIDE = 24
UNTOUCHED = CropPlan(
    px=SIDE,
    top=0,
    left=0,
    height=SIDE,
    width=SIDE,
    flip=False,
    jitter=None,
    grey=False,
    blur_sigma_px=None,
    solarize=False,
)
STILL = Jitter(order=(), brightness=1, contrast=1, saturation=1, hue=0)


def noise(height: int, width: int, seed: int = 0) -> Pixels:
    """Colours from black to white with fine and coarse structure."""
    rng = np.random.default_rng(seed)
    coarse = np.kron(rng.integers(0, 256, (-(-height // 4), -(-width // 4), 3)), np.ones((4, 4, 1)))[:height, :width]
    fine = rng.integers(-60, 60, (height, width, 3))
    pixels: Pixels = np.clip(coarse + fine, 0, 255).astype(np.uint8)
    return pixels


IMAGE = noise(SIDE, SIDE)


def worst(a: NDArray[Any], b: NDArray[Any]) -> int:
    return int(np.abs(a.astype(int) - b.astype(int)).max())


# Parameters


def assert_frequency(hits: int, probability: float, trials: int = PLANS) -> None:
    """Within four standard deviations."""
    assert abs(hits - probability * trials) <= 4 * math.sqrt(probability * (1 - probability) * trials)


@pytest.mark.parametrize(
    ("blur", "probabilities"),
    [("paper", (1.0, 0.1, 0.5)), ("official", (0.0, 0.9, 0.5)), ("none", (0.0, 0.0, 0.0))],
)
def test_plan_crop__happens_as_often_as_stated(blur: str, probabilities: tuple[float, ...]) -> None:
    config = AugmentationConfig.model_validate({"blur": blur, "flip": 0.4, "grey": 0.3})
    for view, probability in enumerate(probabilities):
        plans = [plan_crop(config, 3, position, view, 300, 400) for position in range(PLANS)]
        assert_frequency(sum(plan.blur_sigma_px is not None for plan in plans), probability)
        assert_frequency(sum(plan.flip for plan in plans), 0.4)
        assert_frequency(sum(plan.jitter is not None for plan in plans), 0.8)
        assert_frequency(sum(plan.grey for plan in plans), 0.3)
        assert_frequency(sum(plan.solarize for plan in plans), 0.2 if view == 1 else 0.0)
        assert {plan.px for plan in plans} == {224 if view < 2 else 98}


def assert_uniform(values: list[float], low: float, high: float) -> None:
    assert min(values) >= low
    assert max(values) <= high
    scaled = (np.array(values) - low) / (high - low)
    assert abs(scaled.mean() - 1 / 2) < 4 / math.sqrt(12 * len(values))
    # The variance of a squared uniform number around 1/2 is 1/180.
    assert abs(((scaled - 1 / 2) ** 2).mean() - 1 / 12) < 4 / math.sqrt(180 * len(values))


def test_plan_crop__strengths_are_uniform_over_their_ranges() -> None:
    plans = [plan_crop(CONFIG, 5, position, 2, 2000, 2000) for position in range(PLANS)]
    jitters = [plan.jitter for plan in plans if plan.jitter is not None]
    assert_uniform([jitter.brightness for jitter in jitters], 0.6, 1.4)
    assert_uniform([jitter.contrast for jitter in jitters], 0.6, 1.4)
    assert_uniform([jitter.saturation for jitter in jitters], 0.8, 1.2)
    assert_uniform([jitter.hue for jitter in jitters], -0.1, 0.1)
    assert_uniform([plan.blur_sigma_px for plan in plans if plan.blur_sigma_px is not None], 0.1, 2.0)
    orders = Counter(jitter.order for jitter in jitters)
    assert set(orders) == set(permutations(range(4)))
    for count in orders.values():
        assert_frequency(count, 1 / 24, len(jitters))


def test_plan_crop__area_and_shape_of_a_local_crop() -> None:
    # No local crop of this image is refused, so the draws show as they are; rounding to pixels moves them by 0.1 %.
    plans = [plan_crop(CONFIG, 5, position, 2, 2000, 2000) for position in range(PLANS)]
    assert_uniform([plan.height * plan.width / 2000**2 for plan in plans], 0.0499, 0.3201)
    assert_uniform([math.log(plan.width / plan.height) for plan in plans], math.log(0.749), math.log(1.335))
    assert_uniform([plan.top / (2000 - plan.height) for plan in plans], 0, 1)
    assert_uniform([plan.left / (2000 - plan.width) for plan in plans], 0, 1)


def test_plan_crop__reaches_every_side_of_the_image() -> None:
    plans = [plan_crop(CONFIG, 5, position, 2, 9, 8) for position in range(500)]
    for gaps in (
        [plan.top for plan in plans],
        [plan.left for plan in plans],
        [9 - plan.top - plan.height for plan in plans],
        [8 - plan.left - plan.width for plan in plans],
    ):
        # Offsets are drawn from both ends alike; of the at most 9 places, each end gets a ninth or more.
        assert min(gaps) == 0
        assert gaps.count(0) > 500 / 9 - 4 * math.sqrt(500 / 9)


@given(
    height=st.integers(1, 500),
    width=st.integers(1, 500) | st.sampled_from([1, 16384]),
    swap=st.booleans(),
    seed=st.integers(0, 10**6),
    view=st.integers(0, 4),
)
def test_plan_crop__lies_within_the_image(height: int, width: int, swap: bool, seed: int, view: int) -> None:
    if swap:
        height, width = width, height
    plan = plan_crop(CONFIG, seed, 0, view, height, width)
    assert plan.height >= 1
    assert plan.width >= 1
    assert 0 <= plan.top <= height - plan.height
    assert 0 <= plan.left <= width - plan.width
    # A shape between 3:4 and 4:3, up to the rounding of each side to whole pixels.
    assert plan.width - 0.5 <= 4 / 3 * (plan.height + 0.5)
    assert plan.height - 0.5 <= 4 / 3 * (plan.width + 0.5)


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [(10, 1000, (0, 493, 10, 13)), (1000, 10, (493, 0, 13, 10)), (1, 50, (0, 24, 1, 1)), (60, 30, (10, 0, 40, 30))],
)
def test_plan_crop__where_nothing_legal_fits_takes_the_largest_central_crop(
    height: int, width: int, expected: tuple[int, int, int, int]
) -> None:
    whole = AugmentationConfig(global_scale=(1.0, 1.0))
    plan = plan_crop(whole, 0, 0, 0, height, width)
    assert (plan.top, plan.left, plan.height, plan.width) == expected


def test_plan_crop__is_frozen_for_ever() -> None:
    assert plan_crop(CONFIG, 7, 1000, 5, 375, 500) == CropPlan(
        px=98,
        top=158,
        left=197,
        height=194,
        width=212,
        flip=False,
        jitter=Jitter((2, 1, 3, 0), 1.1524617493939822, 1.356981570567911, 1.1639962909148178, 0.014680749711879826),
        grey=True,
        blur_sigma_px=None,
        solarize=False,
    )


@given(seed=st.integers(0, 100), position=st.integers(0, 10**9), view=st.integers(0, 9))
def test_plan_crop__differs_with_seed_position_and_view(seed: int, position: int, view: int) -> None:
    plans = {
        replace(plan_crop(CONFIG, seed + a, position + b, view + c, 400, 300), px=0)
        for a, b, c in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
    }
    assert len(plans) == 4


# Pixels


def jittered(jitter: Jitter) -> Pixels:
    return apply_crop(IMAGE, replace(UNTOUCHED, jitter=jitter))


def test_apply_crop__of_the_same_size_changes_nothing() -> None:
    np.testing.assert_array_equal(apply_crop(IMAGE, UNTOUCHED), IMAGE)
    np.testing.assert_array_equal(jittered(replace(STILL, order=(2, 0, 1))), IMAGE)


def test_apply_crop__takes_the_planned_part_and_flips_it() -> None:
    image = noise(60, 50)
    plan = replace(UNTOUCHED, top=31, left=20)
    np.testing.assert_array_equal(apply_crop(image, plan), image[31 : 31 + SIDE, 20 : 20 + SIDE])
    np.testing.assert_array_equal(
        apply_crop(image, replace(plan, flip=True)), image[31 : 31 + SIDE, 20 : 20 + SIDE][:, ::-1]
    )


@pytest.mark.parametrize("factor", [0.6, 0.93, 1.0, 1.21, 1.4])
def test_apply_crop__brightness_contrast_and_saturation_equal_pillow(factor: float) -> None:
    image = Image.fromarray(IMAGE)
    brightness = np.asarray(ImageEnhance.Brightness(image).enhance(factor))
    assert worst(jittered(replace(STILL, order=(0,), brightness=factor)), brightness) <= 1
    contrast = np.asarray(ImageEnhance.Contrast(image).enhance(factor))
    assert worst(jittered(replace(STILL, order=(1,), contrast=factor)), contrast) <= 1
    saturation = np.asarray(ImageEnhance.Color(image).enhance(factor))
    assert worst(jittered(replace(STILL, order=(2,), saturation=factor)), saturation) <= 1


@pytest.mark.parametrize("turns", [-0.1, -0.037, 0.0, 0.05, 0.1])
def test_apply_crop__hue_turns_the_colours(turns: float) -> None:
    def turned(pixel: Pixels) -> list[float]:
        hue, saturation, value = colorsys.rgb_to_hsv(*(pixel / 255))
        return [255 * channel for channel in colorsys.hsv_to_rgb((hue + turns) % 1, saturation, value)]

    expected = np.array([[turned(pixel) for pixel in row] for row in IMAGE])
    error = np.abs(jittered(replace(STILL, order=(3,), hue=turns)) - expected)
    # Hue has 256 steps of 6 levels each, and is rounded twice.
    assert error.max() <= 6.5
    assert error.mean() < 0.5


def test_apply_crop__grey_and_solarize_equal_pillow() -> None:
    image = Image.fromarray(IMAGE)
    grey = apply_crop(IMAGE, replace(UNTOUCHED, grey=True))
    assert worst(grey, np.asarray(image.convert("L").convert("RGB"))) <= 1
    assert (grey == grey[..., :1]).all()
    solarized = apply_crop(IMAGE, replace(UNTOUCHED, solarize=True))
    np.testing.assert_array_equal(solarized, np.asarray(ImageOps.solarize(image, 128)))


@pytest.mark.parametrize("sigma", [0.1, 0.5, 1.0, 2.0])
def test_apply_crop__blur_is_a_gaussian_of_nine_taps(sigma: float) -> None:
    taps = np.exp(-(np.arange(-4, 5) ** 2) / (2 * sigma**2))
    taps /= taps.sum()
    padded = np.pad(IMAGE.astype(float), ((4, 4), (4, 4), (0, 0)), mode="reflect")
    rows = sum(tap * padded[at : at + SIDE] for at, tap in enumerate(taps))
    expected = sum(tap * rows[:, at : at + SIDE] for at, tap in enumerate(taps))
    blurred = apply_crop(IMAGE, replace(UNTOUCHED, blur_sigma_px=sigma))
    assert worst(blurred, np.rint(expected)) <= 1


def averaging(size: int, out: int) -> NDArray[np.float64]:
    """Weights (out, size) by which each output pixel averages the stretch of the input that it covers."""
    edges = np.arange(out + 1) * size / out
    cells = np.arange(size)
    overlap = np.minimum(edges[1:, None], cells + 1) - np.maximum(edges[:-1, None], cells)
    weights: NDArray[np.float64] = np.clip(overlap, 0, None) * out / size
    return weights


def cubic(size: int, out: int) -> NDArray[np.float64]:
    """Weights (out, size) of cubic convolution with a = -0.75 (Keys 1981); pixels beyond the border repeat it."""
    weights = np.zeros((out, size))
    for row in range(out):
        centre = (row + 0.5) * size / out - 0.5
        for at in range(math.floor(centre) - 1, math.floor(centre) + 3):
            d, a = abs(at - centre), -0.75
            weight = ((a + 2) * d - (a + 3)) * d * d + 1 if d <= 1 else ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
            weights[row, min(max(at, 0), size - 1)] += weight
    return weights


@pytest.mark.parametrize(("height", "width"), [(48, 48), (61, 50), (24, 31), (9, 11), (1, 1), (23, 5)])
def test_apply_crop__averages_where_it_shrinks_and_is_cubic_where_it_grows(height: int, width: int) -> None:
    image = noise(height, width)
    weights = averaging if max(height, width) > SIDE else cubic
    expected = np.einsum("ih,hwc,jw->ijc", weights(height, SIDE), image, weights(width, SIDE))
    crop = apply_crop(image, replace(UNTOUCHED, height=height, width=width))
    assert np.abs(crop - np.clip(expected, 0, 255)).max() <= 1


@given(st.data())
def test_apply_crop__does_one_step_after_the_other(data: st.DataObject) -> None:
    unit = st.floats(0, 1)
    jitter = Jitter(
        order=tuple(data.draw(st.permutations(range(4)))),
        brightness=0.6 + 0.8 * data.draw(unit),
        contrast=0.6 + 0.8 * data.draw(unit),
        saturation=0.8 + 0.4 * data.draw(unit),
        hue=-0.1 + 0.2 * data.draw(unit),
    )
    plan = CropPlan(16, 3, 5, 20, 18, flip=True, jitter=jitter, grey=True, blur_sigma_px=1.3, solarize=True)
    still = replace(UNTOUCHED, px=16, height=16, width=16)
    image = noise(30, 28, seed=1)
    expected = apply_crop(image, replace(still, top=3, left=5, height=20, width=18))
    steps = [replace(still, flip=True)]
    steps += [replace(still, jitter=replace(jitter, order=(one,))) for one in jitter.order]
    steps += [replace(still, grey=True), replace(still, blur_sigma_px=1.3), replace(still, solarize=True)]
    for step in steps:
        expected = apply_crop(expected, step)
    np.testing.assert_array_equal(apply_crop(image, plan), expected)


@given(
    height=st.integers(1, 40), width=st.sampled_from([1, 2, 30, 800]), swap=st.booleans(), position=st.integers(0, 99)
)
def test_all_crops__of_any_image_have_their_size_and_follow_their_plans(
    height: int, width: int, swap: bool, position: int
) -> None:
    if swap:
        height, width = width, height
    config = AugmentationConfig(global_px=20, local_px=8, local_count=3)
    image = noise(height, width)
    whole, local = all_crops(config, 1, position, image)
    assert (whole.shape, local.shape) == ((2, 20, 20, 3), (3, 8, 8, 3))
    for view, crop in enumerate([*whole, *local]):
        np.testing.assert_array_equal(crop, apply_crop(image, plan_crop(config, 1, position, view, height, width)))


@given(height=st.integers(1, 60), width=st.integers(1, 60), position=st.integers(0, 99), seed=st.integers(0, 9))
def test_undistorted_crops__are_the_global_crops_without_changes_of_colour(
    height: int, width: int, position: int, seed: int
) -> None:
    distorting = AugmentationConfig(global_px=20, jitter=1, grey=0.5, solarize=1, blur="official")
    still = distorting.model_copy(update={"jitter": 0, "grey": 0, "solarize": 0, "blur": "none"})
    image = noise(height, width)
    whole, _ = all_crops(still, seed, position, image)
    np.testing.assert_array_equal(undistorted_crops(distorting, seed, position, image, 20), whole)


def test_undistorted_crops__show_the_same_part_at_another_size() -> None:
    """Twice as large, averaged two by two: but for the filter, the crop at the size of the student."""
    config = AugmentationConfig(global_px=24, global_scale=(0.5, 1.0))
    y, x = np.mgrid[:97, :121]
    image = np.stack([2 * y, 2 * x, 250 - y - x], axis=-1).astype(np.uint8)
    for position in range(20):
        small = undistorted_crops(config, 0, position, image, 24).astype(float)
        large = undistorted_crops(config, 0, position, image, 48).astype(float)
        assert np.abs(large.reshape(2, 24, 2, 24, 2, 3).mean((2, 4)) - small).max() <= 2
