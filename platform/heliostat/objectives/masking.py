"""Which patches of a slot's global crops are masked, and which crops a branch skips: drawn before the forward pass.

Block masks as in BEiT and DINOv2 (its code, ``data/masking.py`` and ``data/collate.py``): half of the crops are masked,
with ratios spread evenly over a range, by rectangles of random area and shape.

Legend: B crops, N patches of a crop.
"""

import math
from itertools import pairwise
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from heliostat.data.draws import permutation
from heliostat.models.block import DropPlan

Mask = NDArray[np.bool_]

_MIN_BLOCK_PATCHES = 4
_ASPECT = (0.3, 1 / 0.3)
_TRIES_PER_BLOCK = 10


class Randomness(Protocol):
    """What masking needs of a stream of draws; ``random.Random`` has it too."""

    def uniform(self, low: float, high: float, /) -> float:
        """A uniform number."""

    def randint(self, low: int, high: int, /) -> int:
        """A uniform integer, both ends included."""

    def shuffle(self, items: list[Mask], /) -> None:
        """Shuffle in place."""


def draw_masks(draws: Randomness, crops: int, grid: int, probability: float, ratio: tuple[float, float]) -> Tensor:
    """Masks of a slot's global crops, shape (B, N), bool.

    ``int(crops * probability)`` crops are masked. Their ratios lie in equal steps of ``ratio``, one each, so that a
    slot always holds light and heavy masks.
    """
    patches = grid * grid
    masked_crops = int(crops * probability)
    edges = np.linspace(*ratio, masked_crops + 1)
    masks = [
        block_mask(draws, grid, grid, int(patches * draws.uniform(float(low), float(high))))
        for low, high in pairwise(edges)
    ]
    masks += [np.zeros((grid, grid), bool) for _ in range(crops - masked_crops)]
    draws.shuffle(masks)
    return torch.from_numpy(np.stack(masks)).flatten(1)


def block_mask(draws: Randomness, height: int, width: int, target: int) -> Mask:
    """A mask of at most ``target`` patches made of rectangles, shape (height, width); the target is met from below."""
    mask = np.zeros((height, width), bool)
    max_block = (height // 2) * width
    count = 0
    while count < target:
        added = _add_block(draws, mask, min(target - count, max_block))
        if not added:
            break
        count += added
    return mask


def _add_block(draws: Randomness, mask: Mask, cap: int) -> int:
    height, width = mask.shape
    for _ in range(_TRIES_PER_BLOCK):
        area = draws.uniform(_MIN_BLOCK_PATCHES, cap)
        aspect = math.exp(draws.uniform(math.log(_ASPECT[0]), math.log(_ASPECT[1])))
        rows, columns = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if rows >= height or columns >= width:
            continue
        top, left = draws.randint(0, height - rows), draws.randint(0, width - columns)
        block = mask[top : top + rows, left : left + columns]
        new = block.size - int(block.sum())
        if 0 < new <= cap:
            block[:] = True
            return new
    return 0


def draw_drops(
    seed: int, step: int, slot: int, depth: int, group_sizes: tuple[int, ...], probability: float
) -> DropPlan | None:
    """Which crops each branch of each block computes; None where nothing is dropped.

    A branch keeps ``max(1, int(B * (1 - probability)))`` crops of a group (DINOv2, batch-subset stochastic depth).
    """
    if probability == 0:
        return None

    def kept(block: int, branch: int) -> list[Tensor]:
        return [
            torch.from_numpy(
                permutation(size, seed, "drop", step, slot, block, branch, group)[
                    : max(1, int(size * (1 - probability)))
                ]
            )
            for group, size in enumerate(group_sizes)
        ]

    return [(kept(block, 0), kept(block, 1)) for block in range(depth)]
