"""Why an image is refused, in one word and in one error."""

from enum import StrEnum

from heliostat.errors import RejectedImageError


class Reason(StrEnum):
    """Why a file is in the quarantine: the words of its ``reason`` column."""

    EMPTY = "empty"
    TOO_MANY_BYTES = "too-many-bytes"
    NOT_AN_IMAGE = "not-an-image"
    UNSUPPORTED_FORMAT = "unsupported-format"
    TOO_MANY_PIXELS = "too-many-pixels"
    EXTREME_RATIO = "extreme-ratio"
    TOO_MANY_SCANS = "too-many-scans"
    ANIMATED = "animated"
    TRUNCATED = "truncated"
    UNDECODABLE = "undecodable"
    DECODER_CRASHED = "decoder-crashed"
    TOO_MUCH_MEMORY = "too-much-memory"
    TOO_SLOW = "too-slow"
    LINK_LEAVES_SOURCE = "link-leaves-source"
    NOT_A_FILE = "not-a-file"
    UNREADABLE = "unreadable"
    UNSAFE_NAME = "unsafe-name"
    BROKEN_ARCHIVE = "broken-archive"
    TOO_MANY_MEMBERS = "too-many-members"
    FORBIDDEN_ADDRESS = "forbidden-address"
    CHANGED = "changed-during-ingest"


def rejected(reason: Reason, fact: str) -> RejectedImageError:
    """The error for one image that cannot be accepted."""
    return RejectedImageError(fact, "Replace or remove the file", reason)


def undecodable(error: Exception) -> RejectedImageError:
    """The error for what a decoder made of an image: how it failed is told by the words of its own error."""
    text = " ".join(str(error).split())[:120]
    if isinstance(error, MemoryError) or "out of memory" in text.lower() or "insufficient memory" in text.lower():
        reason = Reason.TOO_MUCH_MEMORY
    elif "truncated" in text.lower() or "premature end" in text.lower():
        reason = Reason.TRUNCATED
    else:
        reason = Reason.UNDECODABLE
    return rejected(reason, f"the image cannot be decoded: {type(error).__name__} {text}")
