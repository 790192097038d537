"""Each change of colour against Pillow, ``colorsys`` and filters written out; the batched version against the other."""

import colorsys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
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
)

from heliostat.config.training import AugmentationConfig
from heliostat.data import photometric, photometric_torch
from heliostat.data.crop_plan import PhotometricPlan, plan_crops

SIDE = 24
EVERY_LEVEL = np.stack(np.broadcast_arrays(np.arange(256)[:, None], np.arange(256), 77), axis=2).astype(np.uint8)


def noise(side: int = SIDE, seed: int = 0) -> Pixels:
    """Colours from black to white with fine and coarse structure."""
    rng = np.random.default_rng(seed)
    coarse = np.kron(rng.integers(0, 256, (-(-side // 4), -(-side // 4), 3)), np.ones((4, 4, 1)))[:side, :side]
    pixels: Pixels = np.clip(coarse + rng.integers(-60, 60, (side, side, 3)), 0, 255).astype(np.uint8)
    return pixels


def by_opencv(crops: Pixels, plan: PhotometricPlan) -> Pixels:
    changed = crops.copy()
    photometric.apply_photometric(changed, plan)
    return changed


def by_torch(crops: Pixels, plan: PhotometricPlan) -> Pixels:
    before = crops.copy()
    changed = photometric_torch.apply_photometric(torch.from_numpy(crops), plan)
    assert changed.dtype == torch.uint8
    assert changed.is_contiguous()
    np.testing.assert_array_equal(crops, before)
    return changed.numpy()


Apply = Callable[[Pixels, PhotometricPlan], Pixels]
both_ways = pytest.mark.parametrize("apply", [by_opencv, by_torch])


def worst(a: NDArray[Any], b: NDArray[Any]) -> int:
    return int(np.abs(a.astype(int) - b.astype(int)).max())


@both_ways
def test_apply_photometric__without_changes_changes_nothing(apply: Apply) -> None:
    crops = np.stack([EVERY_LEVEL] * 2)
    np.testing.assert_array_equal(apply(crops, plan_without_changes(2)), crops)
    strengthless = replace(plan_without_changes(2), jitter=np.ones(2, bool))
    for order in ([0, 1, 2, 0], [2, 1, 0, 1]):
        jitter = replace(strengthless, order=np.array([order] * 2, np.int8))
        np.testing.assert_array_equal(apply(crops, jitter), crops)


@both_ways
@pytest.mark.parametrize("operation", [BRIGHTNESS, CONTRAST, SATURATION])
def test_apply_photometric__brightness_contrast_and_saturation_are_pillows(apply: Apply, operation: int) -> None:
    factors = np.array([0.6, 0.8, 0.93, 1.0, 1.07, 1.21, 1.4], np.float32)
    for crop in (EVERY_LEVEL, noise()):
        # Only this operation: the others are at no strength, and hue is left out, since it rounds.
        plan = replace(jitter_plan(operation, factors), order=np.full((len(factors), 1), operation, np.int8))
        ours = apply(np.stack([crop] * len(factors)), plan)
        theirs = np.stack([enhanced(operation, crop, float(factor)) for factor in factors])
        assert worst(ours, theirs) <= 1
        assert abs(ours.astype(float).mean() - theirs.mean()) < 0.1


@both_ways
def test_apply_photometric__hue_turns_the_colours(apply: Apply) -> None:
    def turned_exactly(pixel: Pixels, turns: float) -> list[float]:
        hue, saturation, value = colorsys.rgb_to_hsv(*(pixel / 255))
        return [255 * channel for channel in colorsys.hsv_to_rgb((hue + turns) % 1, saturation, value)]

    crop = noise()
    turns = np.array([-0.1, -0.037, 0.0, 0.05, 0.1], np.float32)
    plan = replace(jitter_plan(HUE, turns), order=np.full((len(turns), 1), HUE, np.int8))
    ours = apply(np.stack([crop] * len(turns)), plan)
    exact = np.array([[[turned_exactly(p, float(turn)) for p in row] for row in crop] for turn in turns])
    error = np.abs(ours - exact)
    if apply is by_torch:
        assert error.max() <= 0.51
    else:  # hue has 256 steps of 6 levels each, and is rounded twice
        assert error.max() <= 6.5
        assert error.mean() < 0.5


@both_ways
def test_apply_photometric__grey_and_solarize_are_pillows(apply: Apply) -> None:
    still, yes = plan_without_changes(1), np.ones(1, bool)
    for crop in (EVERY_LEVEL, noise()):
        grey = apply(crop[None], replace(still, grey=yes))[0]
        assert worst(grey, greyed(crop)) <= 1
        assert (grey == grey[..., :1]).all()
        np.testing.assert_array_equal(apply(crop[None], replace(still, solarize=yes))[0], solarized(crop))


@both_ways
@pytest.mark.parametrize("side", [5, 9, SIDE])
def test_apply_photometric__blur_is_a_gaussian_of_nine_taps(apply: Apply, side: int) -> None:
    sigmas = np.array([0.1, 0.3, 0.34, 0.5, 0.66, 0.67, 1.0, 1.3, 2.0], np.float32)
    crop = noise(side)
    ours = apply(np.stack([crop] * len(sigmas)), replace(plan_without_changes(len(sigmas)), blur_sigma_px=sigmas))
    exact = np.stack([blurred(crop, float(sigma)) for sigma in sigmas])
    assert worst(ours, exact) <= 1
    assert (ours == exact).mean() > 0.97


def one_crop(data: st.DataObject) -> PhotometricPlan:
    unit = st.floats(0, 1, width=32)
    return PhotometricPlan(
        jitter=np.array([True]),
        order=np.array([data.draw(st.permutations(range(4)))], np.int8),
        brightness=np.array([0.6 + 0.8 * data.draw(unit)], np.float32),
        contrast=np.array([0.6 + 0.8 * data.draw(unit)], np.float32),
        saturation=np.array([0.8 + 0.4 * data.draw(unit)], np.float32),
        hue=np.array([-0.1 + 0.2 * data.draw(unit)], np.float32),
        grey=np.array([data.draw(st.booleans())]),
        blur_sigma_px=np.array([data.draw(st.sampled_from([0.0, 0.4, 1.3]))], np.float32),
        solarize=np.array([data.draw(st.booleans())]),
    )


@both_ways
@given(data=st.data())
def test_apply_photometric__does_one_step_after_the_other(apply: Apply, data: st.DataObject) -> None:
    plan = one_crop(data)
    still = plan_without_changes(1)
    crop = noise(seed=1)[None]
    steps = [
        replace(plan, order=plan.order[:, at : at + 1], grey=still.grey, solarize=still.solarize) for at in range(4)
    ]
    steps = [replace(step, blur_sigma_px=still.blur_sigma_px) for step in steps]
    steps += [replace(still, grey=plan.grey), replace(still, blur_sigma_px=plan.blur_sigma_px)]
    expected = crop
    for step in [*steps, replace(still, solarize=plan.solarize)]:
        expected = apply(expected, step)
    np.testing.assert_array_equal(apply(crop, plan), expected)


@both_ways
def test_apply_photometric__a_crop_looks_the_same_in_any_company(apply: Apply) -> None:
    plan = plan_crops(AugmentationConfig(), 3, range(12), [(50, 50)] * 12).local_photometric
    crops = np.stack([noise(seed=seed) for seed in range(len(plan.jitter))])
    together = apply(crops, plan)
    for at in range(0, len(crops), 7):
        alone = slice(at, at + 1)
        np.testing.assert_array_equal(apply(crops[alone], part_of(plan, alone)), together[alone])


def test_apply_photometric__both_versions_do_the_same_to_whole_plans() -> None:
    """Hues are in 256 steps in one, exact in the other; operations that follow may enlarge the difference."""
    plans = plan_crops(AugmentationConfig(), 0, range(40), [(50, 50)] * 40)
    for plan in (plans.global_photometric, plans.local_photometric):
        crops = np.stack([noise(seed=seed) for seed in range(len(plan.jitter))])
        ours, theirs = by_opencv(crops, plan).astype(float), by_torch(crops, plan)
        difference = np.abs(ours - theirs)
        assert difference.mean() < 0.3
        assert difference.max() <= 12
        assert abs(ours.mean() - theirs.mean()) < 0.05
