"""Block masks against the published generator, bit by bit."""

import random
import re

import numpy as np
import pytest
from support.golden import GOLDEN

from heliostat.objectives.masking import block_mask

MASKING = GOLDEN["masking"]


@pytest.mark.parametrize("case", MASKING["seeds"])
def test_block_mask__equals_the_published_one(case: str) -> None:
    seed, target = map(int, re.findall(r"\d+", case))
    mask = block_mask(random.Random(seed), 16, 16, target)
    assert [np.packbits(row).tobytes().hex() for row in mask] == MASKING["seeds"][case]["rows_hex"]
    assert int(mask.sum()) == MASKING["seeds"][case]["count"]


def test_block_mask__mean_counts_equal_the_published_ones() -> None:
    draws = random.Random(123)  # one stream for all masks
    for target, mean in MASKING["mean_count_over_200"]:
        counts = [int(block_mask(draws, 16, 16, target).sum()) for _ in range(200)]
        assert sum(counts) / 200 == mean


class RecordedDraws(random.Random):
    """Remembers the upper ends of what was drawn."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.highs: list[float] = []

    def uniform(self, a: float, b: float) -> float:
        self.highs.append(b)
        return super().uniform(a, b)


def test_block_mask__largest_block_is_the_published_one() -> None:
    draws = RecordedDraws(0)
    block_mask(draws, 16, 16, 256)
    assert max(draws.highs) == MASKING["max_num_patches"]
