"""Encoded images from anywhere: what is accepted, and how it becomes pixels.

The codec is chosen by the first bytes of the data, never by a name, and only that codec ever sees them. The size in the
header is checked before a pixel is decoded. Pillow's plugins are called directly: ``Image.open`` would report bombs and
odd metadata as Python warnings, which can only be handled by changing the warning filters of the whole process, and
decoding happens in threads.
"""

import struct
from dataclasses import dataclass
from enum import StrEnum
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from heliostat.errors import RejectedImageError

RgbImage = NDArray[np.uint8]
"""Pixels of one image, shape (height, width, 3)."""


class Reason(StrEnum):
    """Why a file is in the quarantine: the words of its ``reason`` column."""

    EMPTY = "empty"
    TOO_MANY_BYTES = "too-many-bytes"
    NOT_AN_IMAGE = "not-an-image"
    UNSUPPORTED_FORMAT = "unsupported-format"
    TOO_MANY_PIXELS = "too-many-pixels"
    EXTREME_RATIO = "extreme-ratio"
    ANIMATED = "animated"
    TRUNCATED = "truncated"
    UNDECODABLE = "undecodable"
    LINK_LEAVES_SOURCE = "link-leaves-source"
    NOT_A_FILE = "not-a-file"
    UNREADABLE = "unreadable"
    CHANGED = "changed-during-ingest"


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """The largest image that is decoded."""

    max_bytes: int = 64 * 2**20
    max_side_px: int = 16384
    max_pixels: int = 64 * 10**6
    max_ratio: float = 20.0


DEFAULT_LIMITS = ImageLimits()


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """Size in pixels as decoded, its EXIF orientation applied, and the format (``JPEG``, ``PNG``, ``WEBP``)."""

    width: int
    height: int
    format: str


def inspect(data: bytes, limits: ImageLimits = DEFAULT_LIMITS) -> ImageInfo:
    """Decode an untrusted image once and throw the pixels away.

    Raises:
        RejectedImageError: the bytes are no complete still image of an accepted format within the limits.
    """
    if not data:
        raise _rejected(Reason.EMPTY, "the file has 0 bytes")
    if len(data) > limits.max_bytes:
        raise too_many_bytes(len(data), limits)
    image = _open(data)
    _check_size(*image.size, limits)
    _load(image)
    width, height = image.size
    if _orientation(image) in _SWAPS_SIDES:
        width, height = height, width
    return ImageInfo(width, height, str(image.format))


def decode_rgb(data: bytes) -> RgbImage:
    """Pixels of an image that ``inspect`` has accepted, upright.

    Transparency and colour profiles are ignored, as the loaders of the published recipes do; 16-bit grey keeps its high
    byte, as libpng does for 16-bit colour.

    Raises:
        RejectedImageError: the bytes cannot be decoded. Limits are not checked again.
    """
    image = _open(data)
    _load(image)
    orientation = _orientation(image)
    if image.mode.startswith("I"):
        grey = (np.asarray(image) >> 8).astype(np.uint8)
        pixels = np.repeat(grey[:, :, None], 3, axis=2)
    else:
        image.info.pop("transparency", None)
        pixels = np.array(image if image.mode == "RGB" else image.convert("RGB"))
    return _upright(pixels, orientation)


def too_many_bytes(size_bytes: int, limits: ImageLimits) -> RejectedImageError:
    """The error for a file that is too large to be read at all."""
    return _rejected(Reason.TOO_MANY_BYTES, f"the file has {size_bytes} bytes, the limit is {limits.max_bytes}")


class _Jpeg(JpegImageFile):
    """A JPEG whose EXIF block Pillow does not parse: it warns about broken ones, and the resolution is of no use here.

    Of files that hold several pictures (MPO, as many phones write) this reads the first, which is the photograph.
    """

    def _read_dpi_from_exif(self) -> None:
        pass


def _open(data: bytes) -> ImageFile:
    """Parse the header with the one codec that the magic names."""
    try:
        if data.startswith(b"\xff\xd8\xff"):
            return _Jpeg(BytesIO(data))
        if data.startswith(b"\x89PNG\r\n\x1a\n"):
            _check_png_chunks(data)
            return PngImageFile(BytesIO(data))
        if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            return _open_webp(data)
    except RejectedImageError:
        raise
    except Exception as error:  # parsers of hostile bytes raise whatever those make them raise
        raise _undecodable(error) from error
    if name := _foreign_format(data):
        raise _rejected(Reason.UNSUPPORTED_FORMAT, f"the file is {name}, accepted are JPEG, PNG and WebP")
    raise _rejected(Reason.NOT_AN_IMAGE, f"the file starts with {data[:8]!r}, which is no JPEG, PNG or WebP")


def _check_png_chunks(data: bytes) -> None:
    """Refuse animations, of which Pillow would warn, and files without an end, which it would accept."""
    at = 8
    while at + 12 <= len(data):
        kind = data[at + 4 : at + 8]
        if kind == b"IEND":
            return
        if kind == b"acTL":
            raise _rejected(Reason.ANIMATED, "the PNG is animated, accepted are still images")
        at += 12 + int.from_bytes(data[at : at + 4], "big")
    raise _rejected(Reason.TRUNCATED, "the PNG ends before its IEND chunk")


def _open_webp(data: bytes) -> WebPImageFile:
    promised = int.from_bytes(data[4:8], "little") + 8
    if promised > len(data):
        raise _rejected(Reason.TRUNCATED, f"the WebP has {len(data)} of {promised} bytes")
    image = WebPImageFile(BytesIO(data))
    if image.n_frames != 1:
        raise _rejected(Reason.ANIMATED, f"the WebP has {image.n_frames} frames, accepted are still images")
    return image


def _check_size(width: int, height: int, limits: ImageLimits) -> None:
    seen = f"the header says {width} x {height} px"
    if max(width, height) > limits.max_side_px:
        raise _rejected(Reason.TOO_MANY_PIXELS, f"{seen}, a side may have {limits.max_side_px}")
    if width * height > limits.max_pixels:
        raise _rejected(Reason.TOO_MANY_PIXELS, f"{seen}, an image may have {limits.max_pixels} pixels")
    if max(width, height) > limits.max_ratio * min(width, height):
        raise _rejected(Reason.EXTREME_RATIO, f"{seen}, one side may be {limits.max_ratio:g} times the other")


def _load(image: ImageFile) -> None:
    try:
        image.load()
    except Exception as error:  # as in _open
        raise _undecodable(error) from error


_SWAPS_SIDES = (5, 6, 7, 8)
_ORIENTATION_TAG, _SHORT = 0x0112, 3


def _orientation(image: ImageFile) -> int:
    """EXIF orientation, 1 to 8; 1 (upright) where there is none or the block is broken.

    Source: Exif 2.32, section 4.6.4; the block is a TIFF file whose first directory holds the tag.
    """
    tiff = bytes(image.info.get("exif", b"")).removeprefix(b"Exif\0\0")
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
    if orientation in _SWAPS_SIDES:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


_FOREIGN_MAGIC = {b"GIF8": "GIF", b"II*\0": "TIFF", b"MM\0*": "TIFF", b"BM": "BMP", b"8BPS": "PSD", b"<svg": "SVG"}


def _foreign_format(data: bytes) -> str | None:
    if data[4:8] == b"ftyp":
        return "HEIF, AVIF or a film"
    return next((name for magic, name in _FOREIGN_MAGIC.items() if data.startswith(magic)), None)


def _undecodable(error: Exception) -> RejectedImageError:
    text = " ".join(str(error).split())[:120]
    reason = Reason.TRUNCATED if "truncated" in text.lower() else Reason.UNDECODABLE
    return _rejected(reason, f"the image cannot be decoded: {type(error).__name__} {text}")


def _rejected(reason: Reason, fact: str) -> RejectedImageError:
    return RejectedImageError(fact, "Replace or remove the file", reason)
