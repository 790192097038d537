"""From encoded images to the crops of a slot.

Legend: V views, B images of the slot, L local crops per image, P side of a crop.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from heliostat.config.training import AugmentationConfig
from heliostat.data.crop_plan import GLOBAL_CROPS, Boxes, PhotometricPlan, plan_crops
from heliostat.data.decode import SHRINKS, ImageHeader, RgbImage, decode_rgb, read_header
from heliostat.data.photometric import apply_photometric

_SHRINK_MARGIN = 2.0
"""How much larger than its crop a part must stay after shrinking. Shrinking is a coarser filter than the resizing: at 1
it takes 5 to 11 % of the variance of differences between neighbouring pixels, at 2 it takes 1 to 3 % (measured)."""


@dataclass(frozen=True, slots=True)
class SlotCrops:
    """Crops of a slot, crop-major, uint8."""

    global_crops: NDArray[np.uint8]
    """(2 B, P, P, 3)."""
    local_crops: NDArray[np.uint8]
    """(L B, P, P, 3)."""
    gram_crops: NDArray[np.uint8] | None
    """(2 B, P, P, 3): the global crops at another size, their colours as they are; None where nobody needs them."""
    photometric: tuple[PhotometricPlan, PhotometricPlan] | None
    """What is still to be done to the colours of the global and of the local crops; None where it is done."""


def slot_crops(
    config: AugmentationConfig,
    seed: int,
    positions: Sequence[int],
    encoded: Sequence[bytes],
    gram_px: int | None = None,
    *,
    photometric: bool = True,
) -> SlotCrops:
    """Decode and crop the images of a slot.

    Args:
        config: sizes, scales and probabilities.
        seed: of the run.
        positions: places of the images in the run; with ``seed`` they fix every draw.
        encoded: the images, as ``inspect`` accepted them.
        gram_px: side of the undistorted crops, if they are wanted.
        photometric: whether to change colours here; if not, the result says what to do.

    Raises:
        RejectedImageError: an image cannot be decoded.
    """
    headers = [read_header(data) for data in encoded]
    plans = plan_crops(config, seed, positions, [(header.height, header.width) for header in headers])
    images = len(encoded)
    whole = np.empty((GLOBAL_CROPS, images, config.global_px, config.global_px, 3), np.uint8)
    local = np.empty((config.local_count, images, config.local_px, config.local_px, 3), np.uint8)
    gram = None if gram_px is None else np.empty((GLOBAL_CROPS, images, gram_px, gram_px, 3), np.uint8)
    outputs = [*enumerate(whole), *enumerate(local, GLOBAL_CROPS), *enumerate(() if gram is None else gram)]
    cut_crops(outputs, plans.boxes, headers, encoded)
    crops = SlotCrops(
        global_crops=_crop_major(whole),
        local_crops=_crop_major(local),
        gram_crops=None if gram is None else _crop_major(gram),
        photometric=None if photometric else (plans.global_photometric, plans.local_photometric),
    )
    if photometric:
        apply_photometric(crops.global_crops, plans.global_photometric)
        apply_photometric(crops.local_crops, plans.local_photometric)
    return crops


def _crop_major(crops_VBPPC: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return crops_VBPPC.reshape(-1, *crops_VBPPC.shape[2:])


Output = tuple[int, NDArray[np.uint8]]
"""A view, and where its crop of each image goes: (B, P, P, 3)."""


def cut_crops(
    outputs: Sequence[Output], boxes: Boxes, headers: Sequence[ImageHeader], encoded: Sequence[bytes]
) -> None:
    """Decode each image once, at a size that suffices for all of its crops, and cut them."""
    shrinks = _shrinks(outputs, boxes, headers)
    largest = max(
        -(-header.height // shrink) * -(-header.width // shrink)
        for header, shrink in zip(headers, shrinks, strict=True)
    )
    pixels_memory, part_memory = np.empty((2, 3 * largest), np.uint8)  # of all images: fresh memory costs time
    for image, (data, shrink) in enumerate(zip(encoded, shrinks, strict=True)):
        pixels = decode_rgb(data, shrink, pixels_memory)
        for view, out in outputs:
            part = _part(pixels, boxes, view, image, shrink)
            copied = part_memory[: part.size].reshape(part.shape)
            np.copyto(copied, part)
            _resize(copied, out[image])
            if boxes.flip[view, image]:
                cv2.flip(out[image], 1, out[image])


def _shrinks(outputs: Sequence[Output], boxes: Boxes, headers: Sequence[ImageHeader]) -> list[int]:
    """By how much each image may be decoded smaller, as ``largest_shrink``."""
    sides_VB = np.minimum(boxes.height, boxes.width)
    spare_B = np.min([sides_VB[view] / out.shape[1] for view, out in outputs], axis=0)
    return [
        largest_shrink(float(spare)) if header.shrinks else 1 for spare, header in zip(spare_B, headers, strict=True)
    ]


def largest_shrink(spare: float) -> int:
    """The largest decoding factor that keeps the statistics of every crop of an image.

    Args:
        spare: the smallest ratio of the side of what a crop shows, at full size, to the crop's own.
    """
    return max((shrink for shrink in SHRINKS if shrink * _SHRINK_MARGIN <= spare), default=1)


def _part(pixels: RgbImage, boxes: Boxes, view: int, image: int, shrink: int) -> RgbImage:
    """What a crop shows; edges fall on the nearest pixels of the shrunk image."""
    top, left = int(boxes.top[view, image]), int(boxes.left[view, image])
    bottom, right = top + int(boxes.height[view, image]), left + int(boxes.width[view, image])
    if shrink > 1:
        top, left, bottom, right = (round(edge / shrink) for edge in (top, left, bottom, right))
    return pixels[top:bottom, left:right]


def _resize(part_HWC: RgbImage, out_PPC: RgbImage) -> None:
    """Resize by the published recipe's filter (bicubic, antialiased) into ``out_PPC``.

    The operator behind ``torch.nn.functional.interpolate``, which itself would return the channels apart and take half
    as long again to reorder them. Pillow's pixels to within a level (measured 0.1 on average), in a third of its time.
    """
    torch.ops.aten._upsample_bicubic2d_aa.out(
        torch.from_numpy(part_HWC[None]).permute(0, 3, 1, 2),
        out_PPC.shape[:2],
        False,
        None,
        None,
        out=torch.from_numpy(out_PPC[None]).permute(0, 3, 1, 2),
    )
