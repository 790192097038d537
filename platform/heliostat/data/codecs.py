"""The one codec that the first bytes of the data name, and no other, sees the data.

Pillow's plugins are called directly: ``Image.open`` would report bombs and odd metadata as Python warnings, which can
only be handled by changing the warning filters of the whole process, and decoding happens in threads. Formats that are
in no table here (PostScript, which Pillow would hand to Ghostscript, among them) have no codec at all.
"""

from collections.abc import Callable
from io import BytesIO

from PIL import AvifImagePlugin
from PIL.AvifImagePlugin import AvifImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from heliostat.data.headers import check_webp_is_whole
from heliostat.data.rejection import Reason, rejected, undecodable
from heliostat.errors import RejectedImageError


def format_of(data: bytes) -> str | None:
    """Name of the format whose magic the data begins with, ``None`` if it is none that has a codec here."""
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[4:12] in (b"ftypavif", b"ftypavis") and "AVIF" in _CODECS:
        return "AVIF"
    return next((name for magic, name in _MAGIC.items() if data.startswith(magic)), None)


def foreign_format(data: bytes) -> str | None:
    """Name of a format that is recognised only to say so."""
    if data[4:8] == b"ftyp":
        return "HEIF, AVIF or a film"
    if data.lstrip()[:5] == b"<?xml" and b"<svg" in data[:4096]:
        return "SVG"
    return next((name for magic, name in _FOREIGN_MAGIC.items() if data.startswith(magic)), None)


def open_image(data: bytes) -> ImageFile:
    """Parse the header with the codec that the magic names; no pixel is decoded yet.

    Raises:
        RejectedImageError: no codec has this magic, the header is broken, or there is more than one picture.
    """
    codec = _CODECS.get(format_of(data) or "")
    if codec is None:
        found = foreign_format(data)
        reason = Reason.UNSUPPORTED_FORMAT if found else Reason.NOT_AN_IMAGE
        raise rejected(reason, f"the file is {found or f'no known image: it starts with {data[:8]!r}'}")
    try:
        return codec(data)
    except RejectedImageError:
        raise
    except Exception as error:  # parsers of hostile bytes raise whatever those make them raise
        raise undecodable(error) from error


def load_pixels(image: ImageFile) -> None:
    """Decode what ``open_image`` opened; later, its pixels are there.

    Raises:
        RejectedImageError: the bytes cannot be decoded.
    """
    try:
        image.load()
    except Exception as error:  # as in open_image
        raise undecodable(error) from error


class _Jpeg(JpegImageFile):
    """A JPEG whose EXIF block Pillow does not parse: it warns about broken ones, and the resolution is of no use here.

    Of files that hold several pictures (MPO, as many phones write) this reads the first, which is the photograph.
    """

    def _read_dpi_from_exif(self) -> None:
        pass


def _open_png(data: bytes) -> ImageFile:
    """Refuses animations, of which Pillow would warn, and files without an end, which it would accept."""
    at = 8
    while at + 12 <= len(data):
        kind = data[at + 4 : at + 8]
        if kind == b"IEND":
            return PngImageFile(BytesIO(data))
        if kind == b"acTL":
            raise rejected(Reason.ANIMATED, "the PNG is animated, accepted are still images")
        at += 12 + int.from_bytes(data[at : at + 4], "big")
    raise rejected(Reason.TRUNCATED, "the PNG ends before its IEND chunk")


def _open_webp(data: bytes) -> ImageFile:
    check_webp_is_whole(data)
    return _still(WebPImageFile(BytesIO(data)))


def _open_tiff(data: bytes) -> ImageFile:
    image = _still(TiffImageFile(BytesIO(data)))
    if image.mode in ("I", "F"):
        fact = "the TIFF has samples of 32 bits, whose range nobody states; accepted are 1, 8 and 16"
        raise rejected(Reason.UNSUPPORTED_FORMAT, fact)
    return image


def _still(image: ImageFile) -> ImageFile:
    if getattr(image, "is_animated", False):
        raise rejected(Reason.ANIMATED, f"the {image.format} has several frames or pages, accepted are still images")
    return image


_CODECS: dict[str, Callable[[bytes], ImageFile]] = {
    "JPEG": lambda data: _Jpeg(BytesIO(data)),
    "PNG": _open_png,
    "WEBP": _open_webp,
    "BMP": lambda data: BmpImageFile(BytesIO(data)),
    "GIF": lambda data: _still(GifImageFile(BytesIO(data))),
    "TIFF": _open_tiff,
}
if AvifImagePlugin.SUPPORTED:
    _CODECS["AVIF"] = lambda data: _still(AvifImageFile(BytesIO(data)))

DEFAULT_FORMATS = frozenset({"JPEG", "PNG", "WEBP"})
KNOWN_FORMATS = frozenset(_CODECS)
"""What can be allowed: the defaults, BMP, GIF, TIFF, and AVIF where Pillow was built with it."""

_MAGIC = {
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"GIF87a": "GIF",
    b"GIF89a": "GIF",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"BM": "BMP",
}
_FOREIGN_MAGIC = {
    b"8BPS": "PSD",
    b"<svg": "SVG",
    b"%!PS": "PostScript",
    b"\xc5\xd0\xd3\xc6": "PostScript",
    b"%PDF": "PDF",
    b"\0\0\1\0": "ICO",
    b"icns": "ICNS",
    b"\0\0\0\x0cjP  ": "JPEG 2000",
    b"\xff\x4f\xff\x51": "JPEG 2000",
    b"\0\0\0\x0cJXL ": "JPEG XL",
    b"\xff\x0a": "JPEG XL",
    b"II+\0": "BigTIFF",
    b"MM\0+": "BigTIFF",
    b"PK\3\4": "a ZIP archive",
    b"\x1f\x8b": "gzip",
}
