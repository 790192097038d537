"""Pixels as files again: images that were changed while they were ingested keep the kind of file they came in."""

from io import BytesIO

from PIL import Image
from PIL.JpegImagePlugin import get_sampling

from heliostat.data.codecs import format_of, open_image

_QUALITY = 95
_FULL_CHROMA = 0


def encoded_like(image: Image.Image, original: bytes) -> bytes:
    """An image as a file of the kind of another one.

    The kind of coding stays: JPEG at quality 95 with the chroma sampling it had, PNG, WebP with or without loss. AVIF
    becomes JPEG with full chroma; TIFF, GIF and BMP become PNG. Grey JPEGs stay grey. Metadata is gone.
    """
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
