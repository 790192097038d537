"""Images made smaller while they are ingested: their bytes, and the time to decode them, for good.

The pixels are those of ``decode_rgb``, so what training will see of the small image is what it would have seen of the
large one: upright, without transparency. Metadata (the place and the owner of a camera among it) is gone. Everything
is integer arithmetic of Pillow: the same bytes come out on every machine with the same versions of the libraries.
"""

from PIL import Image

from heliostat.data.decode import decode_rgb
from heliostat.data.encode import encoded_like


def shrunken(data: bytes, short_side_px: int) -> bytes:
    """An accepted image whose shorter side has ``short_side_px``; one that is no larger comes back byte for byte.

    Coded as ``encoded_like`` does.

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
    return encoded_like(image, data)


def _scaled(side_px: int, target_px: int, short_px: int) -> int:
    """``side_px · target_px / short_px``, rounded half up in whole numbers."""
    return (2 * side_px * target_px + short_px) // (2 * short_px)
