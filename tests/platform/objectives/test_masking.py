import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from heliostat.data.draws import Draws
from heliostat.objectives.masking import block_mask, draw_drops, draw_masks


@given(height=st.integers(1, 20), width=st.integers(1, 20), target=st.integers(0, 400), seed=st.integers(0, 10**6))
def test_block_mask__never_exceeds_its_target(height: int, width: int, target: int, seed: int) -> None:
    mask = block_mask(Draws(seed, "mask", 0, 0), height, width, target)
    assert mask.shape == (height, width)
    assert mask.sum() <= target


def test_block_mask__comes_close_to_its_target() -> None:
    for target, least in ((32, 31.5), (128, 127.5)):
        counts = [int(block_mask(Draws(0, "mask", target, trial), 16, 16, target).sum()) for trial in range(200)]
        assert np.mean(counts) >= least  # the published code reaches 31.93 and 127.96


class Script:
    """Draws that are given: areas and aspects in turn, every block in the upper left corner."""

    def __init__(self, *blocks: tuple[float, float]) -> None:
        self._numbers = [number for area, aspect in blocks for number in (area, math.log(aspect))]

    def uniform(self, low: float, high: float, /) -> float:
        return self._numbers.pop(0)

    def randint(self, low: int, high: int, /) -> int:
        return low

    def shuffle(self, items: list[Any], /) -> None:
        raise AssertionError("a single mask is not shuffled")


@pytest.mark.parametrize("aspect", [3.2, 1 / 3.2])
def test_block_mask__no_block_reaches_from_side_to_side(aspect: float) -> None:
    too_long, square = (5.0, aspect), (4.0, 1.0)  # 4 x 1 patches or 1 x 4, then 2 x 2
    mask = block_mask(Script(too_long, square), 4, 4, 4)
    assert np.argwhere(mask).tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]


def test_draw_masks__are_frozen_for_ever() -> None:
    masks = draw_masks(Draws(7, "mask", 3, 1), crops=4, grid=6, probability=0.5, ratio=(0.1, 0.5))
    assert ["".join(map(str, row)) for row in masks.int().tolist()] == [
        "000000000111000111000000000100000100",
        "0" * 36,
        "0" * 36,
        "101100001100001100001100001100000000",
    ]


@given(
    crops=st.integers(1, 24),
    grid=st.integers(2, 16),
    probability=st.floats(0, 1),
    low=st.floats(0, 0.5),
    width=st.floats(0, 0.5),
    seed=st.integers(0, 10**6),
)
def test_draw_masks__spread_ratios_evenly_over_the_masked_crops(
    crops: int, grid: int, probability: float, low: float, width: float, seed: int
) -> None:
    masks = draw_masks(Draws(seed, "mask", 0, 0), crops, grid, probability, (low, low + width))
    assert masks.shape == (crops, grid * grid)
    assert masks.dtype == torch.bool
    masked_crops = int(crops * probability)
    counts = sorted(masks.sum(1).tolist(), reverse=True)
    assert sum(count > 0 for count in counts) <= masked_crops
    # Crop k of the masked ones, lightest first, has at most the patches at the upper edge of its stretch of ratios.
    limits = [grid * grid * (low + width * (k + 1) / max(masked_crops, 1)) + 1e-6 for k in range(masked_crops)]
    assert all(count <= limit for count, limit in zip(counts, reversed(limits), strict=False))


def test_draw_masks__any_crop_may_be_masked() -> None:
    hit = torch.stack([draw_masks(Draws(1, "mask", step, 0), 6, 8, 0.5, (0.2, 0.4)).any(1) for step in range(400)])
    assert hit.sum(1).eq(3).all()
    # 200 expected, standard deviation 10.
    assert all(160 <= count <= 240 for count in hit.sum(0).tolist())


# Stochastic depth


def indices(plan: Any) -> list[list[int]]:
    """All index lists of a plan in order."""
    return [index.tolist() for block in plan for branch in block for index in branch]


def test_draw_drops__are_frozen_for_ever() -> None:
    plan = draw_drops(seed=7, step=3, slot=1, depth=1, group_sizes=(6, 9), probability=0.3)
    assert indices(plan) == [[5, 4, 2, 3], [7, 5, 0, 4, 8, 2], [1, 4, 3, 5], [3, 8, 1, 4, 6, 2]]


@given(
    depth=st.integers(1, 4),
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=3),
    probability=st.floats(0.01, 0.99),
    step=st.integers(0, 10**6),
)
def test_draw_drops__keep_an_exact_share_of_every_group(
    depth: int, sizes: list[int], probability: float, step: int
) -> None:
    plan = draw_drops(0, step, 0, depth, tuple(sizes), probability)
    assert plan is not None
    assert len(plan) == depth
    for block in plan:
        for branch in block:
            for size, index in zip(sizes, branch, strict=True):
                assert len(index) == max(1, int(size * (1 - probability)))
                assert len(set(index.tolist())) == len(index)
                assert set(index.tolist()) <= set(range(size))


def test_draw_drops__without_a_probability_there_is_no_plan() -> None:
    assert draw_drops(0, 0, 0, 12, (4, 4), 0.0) is None


def test_draw_drops__differ_between_blocks_branches_groups_slots_and_steps() -> None:
    drawn = [
        tuple(index)
        for step in range(2)
        for slot in range(2)
        for index in indices(draw_drops(0, step, slot, 3, (30, 30), 0.5))
    ]
    assert len(set(drawn)) == len(drawn) == 2 * 2 * 3 * 2 * 2


def test_draw_drops__keep_every_crop_equally_often() -> None:
    kept = Counter(crop for step in range(2000) for crop in indices(draw_drops(0, step, 0, 1, (8,), 0.25))[0])
    # 1500 expected of each, standard deviation 19.
    assert all(abs(kept[crop] - 1500) < 80 for crop in range(8))
