"""What is read from the bytes of an image before any codec sees them."""

import re
import struct
from typing import NamedTuple

from heliostat.data.rejection import Reason, rejected

MAX_JPEG_SCANS = 100
"""Every scan of a progressive JPEG is a pass over all of its pixels. Encoders make about ten."""
_WEBP_HEADER_BYTES = 30
_14_BITS = 0x3FFF


class Size(NamedTuple):
    """Width and height in pixels as stored, before any EXIF orientation."""

    width: int
    height: int


def check_jpeg_scans(data: bytes) -> None:
    """Refuse a JPEG that is small and takes minutes: thousands of scans of a few bytes each.

    Raises:
        RejectedImageError: it has more than ``MAX_JPEG_SCANS``.
    """
    if data.count(b"\xff\xda") <= MAX_JPEG_SCANS:  # which is the number of scans or more, and fast to find
        return
    scans = jpeg_scans(data)
    if scans > MAX_JPEG_SCANS:
        raise rejected(Reason.TOO_MANY_SCANS, f"the JPEG has {scans} scans, accepted are {MAX_JPEG_SCANS}")


_END_OF_ENTROPY_DATA = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")


def jpeg_scans(data: bytes) -> int:
    """Scans of the first picture of a JPEG file: those of thumbnails and of what follows its end do not count.

    Source: ITU T.81, annex B: segments have a length, entropy-coded data ends at the first marker that is no restart.
    """
    scans, at = 0, 2
    while found := _END_OF_ENTROPY_DATA.search(data, at):
        at, marker = found.end(), data[found.end() - 1]
        if marker == 0xD9:
            break
        scans += marker == 0xDA
        at += int.from_bytes(data[at : at + 2], "big")
    return scans


def check_webp_is_whole(data: bytes) -> None:
    """Refuse a WebP file that is shorter than it says.

    Raises:
        RejectedImageError: it is.
    """
    promised = int.from_bytes(data[4:8], "little") + 8
    if promised > len(data):
        raise rejected(Reason.TRUNCATED, f"the WebP has {len(data)} of {promised} bytes")


def webp_size(data: bytes) -> Size:
    """Canvas of a whole WebP file, which its codec allocates as soon as it opens one.

    Source: RFC 9649, sections 2.5 to 2.7 (and RFC 6386, section 9.1, for the lossy kind).

    Raises:
        RejectedImageError: the file is cut off, or begins with something else.
    """
    check_webp_is_whole(data)
    header = data[:_WEBP_HEADER_BYTES].ljust(_WEBP_HEADER_BYTES, b"\0")
    match header[12:16]:
        case b"VP8X":
            return Size(1 + int.from_bytes(header[24:27], "little"), 1 + int.from_bytes(header[27:30], "little"))
        case b"VP8L":
            bits = int.from_bytes(header[21:25], "little")
            return Size(1 + (bits & _14_BITS), 1 + (bits >> 14 & _14_BITS))
        case b"VP8 ":
            width, height = struct.unpack("<HH", header[26:30])
            return Size(width & _14_BITS, height & _14_BITS)
        case other:
            raise rejected(Reason.UNDECODABLE, f"the WebP begins with the chunk {other!r}")
