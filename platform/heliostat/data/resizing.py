"""Images made smaller while they are ingested: their bytes, and the time to decode them, for good.

The pixels are those of ``decode_rgb``, so what training will see of the small image is what it would have seen of the
large one: upright, without transparency. Metadata (the place and the owner of a camera among it) is gone. Everything
is integer arithmetic of Pillow: the same bytes come out on every machine with the same versions of the libraries.
"""

from io import BytesIO

from PIL import Image
from PIL.JpegImagePlugin import get_sampling

from heliostat.data.codecs import format_of, open_image
from heliostat.data.decode import decode_rgb

_QUALITY = 95
_FULL_CHROMA = 0


def shrunken(data: bytes, short_side_px: int) -> bytes:
    """An accepted image whose shorter side has ``short_side_px``; one that is no larger comes back byte for byte.

    The kind of coding stays: JPEG at quality 95 with the chroma sampling it had, PNG, WebP with or without loss. AVIF
    becomes JPEG with full chroma; TIFF, GIF and BMP become PNG. Grey JPEGs stay grey.

    Raises:
        RejectedImageError: the bytes cannot be decoded.
    """
    pixels = decode_rgb(data)
    height, width, _ = pixels.shape
    short = min(height, width)
    if short <= short_side_px:
        return data
    size = (_scaled(width, short_side_px, short), _scaled(height, short_side_px, short))
    image = Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)
    return _encoded(image, data)


def _scaled(side_px: int, target_px: int, short_px: int) -> int:
    """``side_px · target_px / short_px``, rounded half up in whole numbers."""
    return (2 * side_px * target_px + short_px) // (2 * short_px)


def _encoded(image: Image.Image, original: bytes) -> bytes:
    buffer = BytesIO()
    match format_of(original):
        case "JPEG":
            header = open_image(original)
            image = image.convert("L") if header.mode == "L" else image
            sampling = max(get_sampling(header), _FULL_CHROMA)  # negative is one that Pillow cannot write
            image.save(buffer, "JPEG", quality=_QUALITY, subsampling=sampling)
        case "AVIF":
            image.save(buffer, "JPEG", quality=_QUALITY, subsampling=_FULL_CHROMA)
        case "WEBP":
            image.save(buffer, "WEBP", quality=_QUALITY, lossless=_is_lossless_webp(original))
        case _:
            image.save(buffer, "PNG")
    return buffer.getvalue()


def _is_lossless_webp(data: bytes) -> bool:
    """Which of its two codecs a WebP file uses: chunks follow one another, each padded to an even length (RFC 9649)."""
    at = 12
    while (kind := data[at : at + 4]) not in (b"VP8 ", b"VP8L", b""):
        size_bytes = int.from_bytes(data[at + 4 : at + 8], "little")
        at += 8 + size_bytes + size_bytes % 2
    return kind == b"VP8L"
