"""From encoded images to the crops of a slot.

Legend: B images of the slot, L local crops per image, P side of a crop.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from heliostat.config.pretrain import AugmentationConfig
from heliostat.data.augment import Pixels, all_crops, undistorted_crops
from heliostat.data.images import decode_rgb


@dataclass(frozen=True, slots=True)
class SlotCrops:
    """Crops of a slot, crop-major, uint8."""

    global_crops: Pixels
    """(2 B, P, P, 3)."""
    local_crops: Pixels
    """(L B, P, P, 3)."""
    gram_crops: Pixels | None
    """(2 B, P, P, 3): the global crops at another size, their colours as they are; None where nobody needs them."""


def slot_crops(
    config: AugmentationConfig,
    seed: int,
    positions: Sequence[int],
    encoded: Sequence[bytes],
    gram_px: int | None = None,
) -> SlotCrops:
    """Decode and crop the images of a slot; ``positions`` are their places in the run, which fix every draw."""
    whole: list[Pixels] = []
    local: list[Pixels] = []
    gram: list[Pixels] = []
    for position, data in zip(positions, encoded, strict=True):
        image = decode_rgb(data)
        global_crops, local_crops = all_crops(config, seed, position, image)
        whole.append(global_crops)
        local.append(local_crops)
        if gram_px is not None:
            gram.append(undistorted_crops(config, seed, position, image, gram_px))
    return SlotCrops(_crop_major(whole), _crop_major(local), _crop_major(gram) if gram else None)


def _crop_major(by_image: list[Pixels]) -> Pixels:
    stacked = np.stack(by_image, axis=1)
    return stacked.reshape(-1, *stacked.shape[2:])
