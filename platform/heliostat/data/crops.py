"""From encoded images to the crops of a slot.

Legend: B images of the slot, L local crops per image, P side of a crop.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from heliostat.config.pretrain import AugmentationConfig
from heliostat.data.augment import Pixels, all_crops
from heliostat.data.images import decode_rgb


@dataclass(frozen=True, slots=True)
class SlotCrops:
    """Crops of a slot, crop-major, uint8."""

    global_crops: Pixels
    """(2 B, P, P, 3)."""
    local_crops: Pixels
    """(L B, P, P, 3)."""


def slot_crops(config: AugmentationConfig, seed: int, positions: Sequence[int], encoded: Sequence[bytes]) -> SlotCrops:
    """Decode and crop the images of a slot; ``positions`` are their places in the run, which fix every draw."""
    crops = [
        all_crops(config, seed, position, decode_rgb(data)) for position, data in zip(positions, encoded, strict=True)
    ]
    whole = np.stack([one for one, _ in crops], axis=1)
    local = np.stack([one for _, one in crops], axis=1)
    return SlotCrops(whole.reshape(-1, *whole.shape[2:]), local.reshape(-1, *local.shape[2:]))
