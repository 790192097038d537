"""Encoded images from anywhere: what is accepted.

The codec is chosen by the first bytes of the data, never by a name, and only that codec ever sees them. What the header
says is checked before a pixel is decoded. The pixels are decoded by the function that training uses, whole and, where
training may do so (``ImageHeader.shrinks``), at every smaller size, so that no codec path is new to an image later.
JPEGs are baseline, extended sequential or progressive: lossless, hierarchical and arithmetic-coded ones are refused,
because they crash some builds of libjpeg and are unknown to others, as to browsers. Bytes after the end of an image
(the film of a motion photo, a ZIP archive, HTML) are looked at by nobody and kept: an id is the hash of a file as it
was found. Whoever serves images to browsers should know that; training does not.
"""

from dataclasses import dataclass

from heliostat.data.codecs import DEFAULT_FORMATS, KNOWN_FORMATS, foreign_format, format_of
from heliostat.data.decode import SHRINKS, ImageHeader, decode_rgb, read_header
from heliostat.data.headers import Size, check_jpeg_process, check_jpeg_scans, webp_size
from heliostat.data.rejection import Reason as Reason
from heliostat.data.rejection import rejected, undecodable
from heliostat.errors import RejectedImageError


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """The largest image that is decoded, and the formats that are: names of ``codecs.KNOWN_FORMATS``.

    Raises:
        ValueError: a format has no codec here.
    """

    max_bytes: int = 64 * 2**20
    max_side_px: int = 16384
    max_pixels: int = 64 * 10**6
    max_ratio: float = 20.0
    formats: frozenset[str] = DEFAULT_FORMATS

    def __post_init__(self) -> None:
        if unknown := self.formats - KNOWN_FORMATS:
            raise ValueError(f"no codec for {_listed(unknown)}, there are {_listed(KNOWN_FORMATS)}")


DEFAULT_LIMITS = ImageLimits()


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """Size in pixels as decoded, its EXIF orientation applied, and the format (``JPEG``, ``PNG``, ``WEBP``, …)."""

    width: int
    height: int
    format: str


def inspect(data: bytes, limits: ImageLimits = DEFAULT_LIMITS) -> ImageInfo:
    """Decode an untrusted image in every way that training may, and throw the pixels away.

    A codec with a hole can take the process down with it, or all of its memory: ``bounded.BoundedDecoder`` runs this
    where that costs one image.

    Raises:
        RejectedImageError: the bytes are no complete still image of an accepted format within the limits.
    """
    if not data:
        raise rejected(Reason.EMPTY, "the file has 0 bytes")
    if len(data) > limits.max_bytes:
        raise too_many_bytes(len(data), limits)
    kind = _accepted_format(data, limits)
    size = _header_size(data, kind)
    _check_size(size, limits)
    try:
        height, width, _ = decode_rgb(data).shape
        _check_shrunk(data, read_header(data))
    except RejectedImageError:
        raise
    except Exception as error:  # conversions to RGB of what no one foresaw
        raise undecodable(error) from error
    if sorted(size) != sorted((width, height)):
        fact = f"the header says {size.width} x {size.height} px, the pixels are {width} x {height}"
        raise rejected(Reason.UNDECODABLE, fact)
    return ImageInfo(width, height, kind)


def too_many_bytes(size_bytes: int, limits: ImageLimits) -> RejectedImageError:
    """The error for a file that is too large to be read at all."""
    return rejected(Reason.TOO_MANY_BYTES, f"the file has {size_bytes} bytes, the limit is {limits.max_bytes}")


def _accepted_format(data: bytes, limits: ImageLimits) -> str:
    found = format_of(data)
    if found in limits.formats:
        return found
    accepted = _listed(limits.formats)
    if name := found or foreign_format(data):
        raise rejected(Reason.UNSUPPORTED_FORMAT, f"the file is {name}, accepted are {accepted}")
    raise rejected(Reason.NOT_AN_IMAGE, f"the file starts with {data[:8]!r}, which is none of {accepted}")


def _header_size(data: bytes, kind: str) -> Size:
    if kind == "WEBP":
        return webp_size(data)
    if kind == "JPEG":
        check_jpeg_process(data)
        check_jpeg_scans(data)
    header = read_header(data)
    return Size(header.width, header.height)


def _check_shrunk(data: bytes, header: ImageHeader) -> None:
    for shrink in SHRINKS[1:] if header.shrinks else ():
        height, width, _ = decode_rgb(data, shrink).shape
        if (height, width) != (-(-header.height // shrink), -(-header.width // shrink)):
            fact = f"1/{shrink} of {header.width} x {header.height} px is decoded as {width} x {height}"
            raise rejected(Reason.UNDECODABLE, fact)


def _check_size(size: Size, limits: ImageLimits) -> None:
    seen = f"the header says {size.width} x {size.height} px"
    if max(size) > limits.max_side_px:
        raise rejected(Reason.TOO_MANY_PIXELS, f"{seen}, a side may have {limits.max_side_px}")
    if size.width * size.height > limits.max_pixels:
        raise rejected(Reason.TOO_MANY_PIXELS, f"{seen}, an image may have {limits.max_pixels} pixels")
    if max(size) > limits.max_ratio * min(size):
        raise rejected(Reason.EXTREME_RATIO, f"{seen}, one side may be {limits.max_ratio:g} times the other")


def _listed(formats: frozenset[str]) -> str:
    return ", ".join(sorted(formats))
