"""Parameters against the stated distributions, and against a sampler written here from their definition."""

import math
from collections import Counter
from dataclasses import fields
from itertools import permutations
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from heliostat.config.training import AugmentationConfig
from heliostat.data.crop_plan import CropPlans, PhotometricPlan, plan_crops

CONFIG = AugmentationConfig()
MANY = 4000


def plans_of(count: int, height: int, width: int, config: AugmentationConfig = CONFIG, seed: int = 5) -> CropPlans:
    return plan_crops(config, seed, range(count), [(height, width)] * count)


def assert_frequency(hits: int, probability: float, trials: int = MANY) -> None:
    """Within four standard deviations."""
    assert abs(hits - probability * trials) <= 4 * math.sqrt(probability * (1 - probability) * trials)


def largest_gap(one: NDArray[Any], other: NDArray[Any]) -> float:
    """Largest difference between two empirical distribution functions (Kolmogorov and Smirnov)."""
    levels = np.concatenate([one, other])
    return float(
        np.abs(
            np.searchsorted(np.sort(one), levels, "right") / len(one)
            - np.searchsorted(np.sort(other), levels, "right") / len(other)
        ).max()
    )


def assert_same_distribution(one: NDArray[Any], other: NDArray[Any]) -> None:
    """A greater gap has a probability of 1e-5 (Smirnov's limit law)."""
    assert largest_gap(one, other) <= math.sqrt(-math.log(0.5e-5) / 2 * (1 / len(one) + 1 / len(other)))


@pytest.mark.parametrize(
    ("blur", "probabilities"),
    [("paper", (1.0, 0.1, 0.5)), ("official", (0.0, 0.9, 0.5)), ("none", (0.0, 0.0, 0.0))],
)
def test_plan_crops__each_change_happens_as_often_as_stated(blur: str, probabilities: tuple[float, ...]) -> None:
    config = AugmentationConfig.model_validate({"blur": blur, "flip": 0.4, "grey": 0.3})
    plans = plans_of(MANY, 300, 400, config)
    first, second = (slice(view * MANY, (view + 1) * MANY) for view in range(2))
    cases = [(plans.global_photometric, first), (plans.global_photometric, second), (plans.local_photometric, first)]
    for view, (colours, part) in enumerate(cases):
        assert_frequency(int((colours.blur_sigma_px[part] > 0).sum()), probabilities[view])
        assert_frequency(int(colours.jitter[part].sum()), 0.8)
        assert_frequency(int(colours.grey[part].sum()), 0.3)
        assert_frequency(int(colours.solarize[part].sum()), 0.2 if view == 1 else 0.0)
        assert_frequency(int(plans.boxes.flip[view].sum()), 0.4)


def test_plan_crops__strengths_are_those_of_the_published_jitter_and_blur() -> None:
    rng = np.random.default_rng(0)
    colours = plans_of(MANY, 300, 400).local_photometric
    for strengths, low, high in [
        (colours.brightness, 0.6, 1.4),
        (colours.contrast, 0.6, 1.4),
        (colours.saturation, 0.8, 1.2),
        (colours.hue, -0.1, 0.1),
        (colours.blur_sigma_px[colours.blur_sigma_px > 0], 0.1, 2.0),
    ]:
        assert low <= strengths.min() < strengths.max() <= high
        assert_same_distribution(strengths, rng.uniform(low, high, 10**5))
    orders = Counter(map(tuple, colours.order.tolist()))
    assert set(orders) == set(permutations(range(4)))
    for count in orders.values():
        assert_frequency(count, 1 / 24, len(colours.order))


def resized_crop(
    rng: np.random.Generator, scale: tuple[float, float], height: int, width: int
) -> tuple[int, int, int, int]:
    """torchvision's RandomResizedCrop, from its documentation."""
    for _ in range(10):
        area = height * width * rng.uniform(*scale)
        ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1)), h, w
    w, h = width, height
    if width / height < 3 / 4:
        h = round(width / (3 / 4))
    elif width / height > 4 / 3:
        w = round(height * (4 / 3))
    return (height - h) // 2, (width - w) // 2, h, w


@pytest.mark.parametrize(("height", "width"), [(533, 400), (300, 1000), (9, 8)])
def test_plan_crops__boxes_are_distributed_as_those_of_a_random_resized_crop(height: int, width: int) -> None:
    boxes = plans_of(MANY, height, width).boxes
    rng = np.random.default_rng(1)
    for view, scale in [(0, CONFIG.global_scale), (2, CONFIG.local_scale)]:
        expected = np.array([resized_crop(rng, scale, height, width) for _ in range(MANY)]).T
        ours = np.array([boxes.top[view], boxes.left[view], boxes.height[view], boxes.width[view]])
        for mine, theirs in zip(ours, expected, strict=True):
            assert_same_distribution(mine, theirs)
        assert_same_distribution(ours[2] * ours[3], expected[2] * expected[3])
        assert_same_distribution(ours[3] / ours[2], expected[3] / expected[2])


def test_plan_crops__differences_of_distribution_would_be_seen() -> None:
    boxes = plans_of(MANY, 533, 400).boxes
    rng = np.random.default_rng(1)
    larger = np.array([resized_crop(rng, (0.05, 0.36), 533, 400) for _ in range(MANY)]).T
    with pytest.raises(AssertionError):
        assert_same_distribution(boxes.height[2] * boxes.width[2], larger[2] * larger[3])


@given(
    height=st.integers(1, 500),
    width=st.integers(1, 500) | st.sampled_from([1, 16384]),
    swap=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_plan_crops__boxes_lie_within_the_image(height: int, width: int, swap: bool, seed: int) -> None:
    if swap:
        height, width = width, height
    boxes = plan_crops(CONFIG, seed, [0], [(height, width)]).boxes
    assert (boxes.height >= 1).all()
    assert (boxes.width >= 1).all()
    assert ((boxes.top >= 0) & (boxes.top + boxes.height <= height)).all()
    assert ((boxes.left >= 0) & (boxes.left + boxes.width <= width)).all()
    # A shape between 3:4 and 4:3, up to the rounding of each side to whole pixels.
    assert (boxes.width - 0.5 <= 4 / 3 * (boxes.height + 0.5)).all()
    assert (boxes.height - 0.5 <= 4 / 3 * (boxes.width + 0.5)).all()


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [(10, 1000, (0, 493, 10, 13)), (1000, 10, (493, 0, 13, 10)), (1, 50, (0, 24, 1, 1)), (60, 30, (10, 0, 40, 30))],
)
def test_plan_crops__where_nothing_legal_fits_takes_the_largest_central_crop(
    height: int, width: int, expected: tuple[int, int, int, int]
) -> None:
    boxes = plans_of(1, height, width, AugmentationConfig(global_scale=(1.0, 1.0))).boxes
    assert (boxes.top[0, 0], boxes.left[0, 0], boxes.height[0, 0], boxes.width[0, 0]) == expected


def crop_of(plans: CropPlans, view: int, image: int, images: int) -> tuple[object, ...]:
    boxes = plans.boxes
    colours, first = (plans.global_photometric, 0) if view < 2 else (plans.local_photometric, 2)
    at = (view - first) * images + image
    box = [getattr(boxes, field.name)[view, image].item() for field in fields(boxes)]
    return (*box, *(getattr(colours, field.name)[at].tolist() for field in fields(PhotometricPlan)))


def test_plan_crops__are_frozen_for_ever() -> None:
    plans = plan_crops(CONFIG, 7, [1000], [(375, 500)])
    assert crop_of(plans, 5, 0, 1) == (
        186,
        89,
        170,
        191,
        False,
        True,
        [3, 2, 1, 0],
        1.2280035018920898,
        0.8497726917266846,
        1.0425794124603271,
        -0.014139817096292973,
        False,
        0.0,
        False,
    )


@given(seed=st.integers(0, 100), position=st.integers(0, 10**9), view=st.integers(0, 8))
def test_plan_crops__differ_with_seed_position_and_view(seed: int, position: int, view: int) -> None:
    crops = {
        str(crop_of(plan_crops(CONFIG, seed + a, [position + b], [(400, 300)]), view + c, 0, 1))
        for a, b, c in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
    }
    assert len(crops) == 4


@given(
    sizes=st.lists(st.tuples(st.integers(1, 600), st.integers(1, 600)), min_size=1, max_size=6),
    locals_=st.integers(1, 8),
    seed=st.integers(0, 10**6),
)
def test_plan_crops__depend_neither_on_the_company_nor_on_how_many_views_there_are(
    sizes: list[tuple[int, int]], locals_: int, seed: int
) -> None:
    together = plan_crops(CONFIG.model_copy(update={"local_count": locals_}), seed, range(len(sizes)), sizes)
    for image, size in enumerate(sizes):
        alone = plan_crops(CONFIG, seed, [image], [size])
        for view in range(2 + locals_):
            assert crop_of(together, view, image, len(sizes)) == crop_of(alone, view, 0, 1)


def test_plan_crops__colours_do_not_depend_on_what_else_the_recipe_does() -> None:
    plain = plans_of(20, 300, 400).global_photometric
    other = plans_of(20, 40, 900, AugmentationConfig(grey=0.9, blur="paper", flip=0.1)).global_photometric
    np.testing.assert_array_equal(plain.hue, other.hue)
    np.testing.assert_array_equal(plain.solarize, other.solarize)
