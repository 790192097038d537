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


_JPEG_PROCESSES = {0xC0: "baseline", 0xC1: "extended sequential", 0xC2: "progressive"}
_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # tables, a reserved one, conditioning
_STANDS_ALONE = frozenset({0x01, *range(0xD0, 0xD8)})
_MARKER = re.compile(rb"\xff([^\x00\xff])")


def jpeg_process(data: bytes) -> int | None:
    """The start-of-frame marker of a JPEG (0xC0 for SOF0), which says how it is coded; ``None`` if it has none.

    Bytes between segments are skipped as libjpeg does it: what is seen here is the frame that it decodes.
    Source: ITU T.81, annex B.1 and table B.1.
    """
    at = 2
    while found := _MARKER.search(data, at):
        at, marker = found.end(), data[found.end() - 1]
        if marker in _START_OF_FRAME:
            return marker
        if marker in (0xD9, 0xDA):
            return None
        if marker not in _STANDS_ALONE:
            at += max(2, int.from_bytes(data[at : at + 2], "big"))
    return None


def is_common_jpeg(data: bytes) -> bool:
    """Whether a JPEG is coded in one of the three ways that every decoder can read, whole and shrunk alike."""
    return jpeg_process(data) in _JPEG_PROCESSES


def check_jpeg_process(data: bytes) -> None:
    """Refuse a JPEG of a rare kind: lossless ones crash a codec that shrinks, arithmetic coding is an option of builds.

    One without any frame is left to its codec, which says what is wrong with it.

    Raises:
        RejectedImageError: it is of none of ``_JPEG_PROCESSES``.
    """
    process = jpeg_process(data)
    if process is not None and process not in _JPEG_PROCESSES:
        accepted = ", ".join(_JPEG_PROCESSES.values())
        fact = f"the JPEG is coded by the process SOF{process - 0xC0}, accepted are {accepted} (SOF0 to SOF2)"
        raise rejected(Reason.UNSUPPORTED_FORMAT, fact)


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
