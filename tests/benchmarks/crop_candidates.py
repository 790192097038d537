"""From encoded photographs to crops, in several ways that bench_ingest.py compares: each takes encoded images.

The crops are those of the default recipe, 2 of 224 and 8 of 98 px, a slot of images at a time.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from heliostat.config.training import AugmentationConfig
from heliostat.data.crop_plan import GLOBAL_CROPS, plan_crops
from heliostat.data.crops import cut_crops, slot_crops
from heliostat.data.decode import read_header
from reference_crops import decode, pillow_crops

CONFIG = AugmentationConfig()
SEED = 0
SLOT_IMAGES = 16

Encoded = Sequence[bytes]


def slots_of(encoded: Encoded) -> Iterator[tuple[range, Encoded]]:
    """Positions and images of each slot."""
    for start in range(0, len(encoded), SLOT_IMAGES):
        slot = encoded[start : start + SLOT_IMAGES]
        yield range(start, start + len(slot)), slot


def crops(encoded: Encoded) -> None:
    """The product on a CPU: all crops and every change of colour."""
    for positions, slot in slots_of(encoded):
        slot_crops(CONFIG, SEED, positions, slot)


def crops_without_colours(encoded: Encoded) -> None:
    """The product beside a GPU that changes the colours."""
    for positions, slot in slots_of(encoded):
        slot_crops(CONFIG, SEED, positions, slot, photometric=False)


class DecodeAndCut:
    """The least that crops cost: decoding, and ten resizes whose parameters are known before."""

    def __init__(self, encoded: Encoded) -> None:
        self._slots = []
        for positions, slot in slots_of(encoded):
            headers = [read_header(data) for data in slot]
            sizes = [(header.height, header.width) for header in headers]
            self._slots.append((headers, plan_crops(CONFIG, SEED, positions, sizes).boxes))

    def __call__(self, encoded: Encoded) -> None:
        """Decode and cut the images of which the parameters are known."""
        for (_, slot), (headers, boxes) in zip(slots_of(encoded), self._slots, strict=True):
            whole, local = (
                np.empty((views, len(slot), side, side, 3), np.uint8)
                for views, side in ((GLOBAL_CROPS, CONFIG.global_px), (CONFIG.local_count, CONFIG.local_px))
            )
            cut_crops([*enumerate(whole), *enumerate(local, GLOBAL_CROPS)], boxes, headers, slot)


def crops_by_pillow(encoded: Encoded) -> None:
    """The reference: all crops and every change of colour by Pillow."""
    for positions, slot in slots_of(encoded):
        pillow_crops(CONFIG, SEED, positions, slot)


def decode_by_pillow(encoded: Encoded) -> None:
    """Pillow's decoder alone, to an array of pixels: what every decoder of a loader is asked for."""
    for data in encoded:
        np.asarray(decode(data))


def load_by_pillow(encoded: Encoded) -> None:
    """Pillow's decoder alone, pixels left in Pillow's own memory, which takes half to two thirds of the time."""
    for data in encoded:
        decode(data)


def candidates(encoded: Encoded) -> dict[str, Callable[[Encoded], None]]:
    """Every way, by name, for these images."""
    return {
        "crops": crops,
        "crops_without_colours": crops_without_colours,
        "decode_and_cut": DecodeAndCut(encoded),
        "pillow_crops": crops_by_pillow,
        "pillow_decode": decode_by_pillow,
        "pillow_load": load_by_pillow,
    }
