"""Encoded images that were accepted, as pixels: upright, RGB, uint8.

JPEG is decoded by simplejpeg (libjpeg-turbo), which takes half of Pillow's time for the same pixels and, unlike Pillow,
reports damaged data as an error. It can also decode at 1/2, 1/4 or 1/8 of the size for a fraction of the time. Other
formats, and JPEGs for printers (CMYK), are Pillow's.
"""

import struct
from dataclasses import dataclass

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL.ImageFile import ImageFile

from heliostat.data.codecs import load_pixels, open_image
from heliostat.data.headers import is_common_jpeg
from heliostat.data.rejection import undecodable

RgbImage = NDArray[np.uint8]
"""Pixels of one image, shape (height, width, 3)."""

SHRINKS = (1, 2, 4, 8)
"""The factors by which a JPEG can be decoded smaller: divisors of its blocks' 8 pixels."""
SHRINKS_FROM_PX = 896
"""Short side from which a JPEG may be decoded smaller: where global crops of 224 px first leave room for it.

``inspect`` decodes such a one at every factor, in three times the CPU time of once (measured: 31 ms become 95 at 12
megapixels); smaller ones cost no more to check, and are always decoded whole, also for smaller crops."""

_JPEG_MAGIC = b"\xff\xd8\xff"
_SCREEN_COLOURS = ("YCbCr", "RGB", "Gray")


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """What is known of an image before its pixels are decoded."""

    height: int
    """In pixels of the upright image."""
    width: int
    shrinks: bool
    """Whether ``decode_rgb`` may be asked to make it smaller: by any of ``SHRINKS``, all of which were tried."""


def read_header(data: bytes) -> ImageHeader:
    """Size of an image that ``inspect`` has accepted.

    Raises:
        RejectedImageError: the bytes are no image.
    """
    if jpeg := _jpeg_for_screens(data):
        (height, width), orientation = jpeg, exif_orientation(_exif_of_jpeg(data))
    else:
        image = open_image(data)
        (width, height), orientation = image.size, orientation_of(image)
    if orientation in SWAPS_SIDES:
        height, width = width, height
    shrinks = jpeg is not None and min(jpeg) >= SHRINKS_FROM_PX and is_common_jpeg(data)
    return ImageHeader(height, width, shrinks)


def decode_rgb(data: bytes, shrink: int = 1, buffer: NDArray[np.uint8] | None = None) -> RgbImage:
    """Pixels of an image that ``inspect`` has accepted, upright.

    Transparency and colour profiles are ignored, as the loaders of the published recipes do; 16-bit grey keeps its high
    byte, as libpng does for 16-bit colour.

    Args:
        data: the encoded image.
        shrink: one of ``SHRINKS``: each side of a JPEG becomes 1/shrink, rounded up. Other images, and JPEGs that are
            not baseline, extended or progressive, are decoded whole.
        buffer: bytes that the result may lie in, at least those of the result. Memory fresh from the system costs a
            third of the time of decoding (measured 870 us per photograph instead of 565).

    Raises:
        RejectedImageError: the bytes cannot be decoded. Limits are not checked again.
    """
    if size := _jpeg_for_screens(data):
        if shrink > 1 and not is_common_jpeg(data):  # libjpeg-turbo 3 crashes on shrinking a lossless one
            shrink = 1
        return _upright(_decode_jpeg(data, size, shrink, buffer), exif_orientation(_exif_of_jpeg(data)))
    image = open_image(data)
    load_pixels(image)
    orientation = orientation_of(image)
    if image.mode.startswith("I"):
        grey = (np.asarray(image) >> 8).astype(np.uint8)
        pixels = np.repeat(grey[:, :, None], 3, axis=2)
    else:
        image.info.pop("transparency", None)
        pixels = np.array(image if image.mode == "RGB" else image.convert("RGB"))
    return _upright(pixels, orientation)


def _jpeg_for_screens(data: bytes) -> tuple[int, int] | None:
    """Height and width as stored, if this is a JPEG in colours that simplejpeg makes RGB of."""
    if not data.startswith(_JPEG_MAGIC):
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError as error:
        raise undecodable(error) from error
    return (height, width) if colours in _SCREEN_COLOURS else None


def _decode_jpeg(data: bytes, size: tuple[int, int], shrink: int, buffer: NDArray[np.uint8] | None) -> RgbImage:
    height, width = (-(-side // shrink) for side in size)
    try:
        pixels: RgbImage = simplejpeg.decode_jpeg(data, "RGB", min_height=height, min_width=width, buffer=buffer)
    except ValueError as error:
        raise undecodable(error) from error
    return pixels


SWAPS_SIDES = (5, 6, 7, 8)
_ORIENTATION_TAG, _SHORT = 0x0112, 3
_EXIF = b"Exif\0\0"
_APP1, _START_OF_SCAN, _END_OF_IMAGE = 0xE1, 0xDA, 0xD9
_FILL = 0xFF


def _exif_of_jpeg(data: bytes) -> bytes:
    """The EXIF block of a JPEG; empty where there is none. Source: ITU-T T.81, annex B.1."""
    at = 2
    while at + 4 <= len(data) and data[at] == _FILL:
        marker = data[at + 1]
        if marker in (_START_OF_SCAN, _END_OF_IMAGE):
            break
        if marker == _FILL:
            at += 1
            continue
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == _APP1 and data.startswith(_EXIF, at + 4):
            return data[at + 4 : end]
        at = end
    return b""


def orientation_of(image: ImageFile) -> int:
    """EXIF orientation of an image that Pillow opened, as ``exif_orientation``."""
    return exif_orientation(bytes(image.info.get("exif", b"")))


def exif_orientation(block: bytes) -> int:
    """EXIF orientation, 1 to 8; 1 (upright) where there is none or the block is broken.

    Source: Exif 2.32, section 4.6.4; the block is a TIFF file whose first directory holds the tag.
    """
    tiff = block.removeprefix(_EXIF)
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        return 1
    try:
        (directory,) = struct.unpack_from(f"{order}I", tiff, 4)
        (entries,) = struct.unpack_from(f"{order}H", tiff, directory)
        for entry in range(entries):
            tag, kind, _, value = struct.unpack_from(f"{order}HHIH", tiff, directory + 2 + 12 * entry)
            if tag == _ORIENTATION_TAG and kind == _SHORT:
                return value if 1 <= value <= 8 else 1
    except struct.error:  # the directory points outside the block
        pass
    return 1


def _upright(pixels: RgbImage, orientation: int) -> RgbImage:
    if orientation in SWAPS_SIDES:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)
