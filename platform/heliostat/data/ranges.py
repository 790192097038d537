"""Byte ranges of objects, read and compared with the hash that a manifest names for them."""

import hashlib
from collections.abc import Callable

from heliostat.data.manifest import ByteRange
from heliostat.errors import CorruptShardError, ObjectNotFoundError
from heliostat.storage import Store

Fetched = Callable[[int, bool], None]
"""Told of every answer of a store: its bytes, and whether it repeats a read that had come with another hash."""
_READS = 3
"""How often a range is read before it is called corrupt: what differs only on the way here is right the next time."""


def read_verified(
    store: Store, key: str, part: ByteRange, what: str, fetched: Fetched = lambda size, again: None
) -> bytes:
    """The bytes of a range, which have the hash that the manifest names. ``what`` is its name in messages.

    Raises:
        CorruptShardError: the object is gone, or the bytes are others however often they are read.
    """

    def right(data: bytes) -> bool:
        return len(data) == part.size_bytes and hashlib.sha256(data).hexdigest() == part.sha256

    return read_until(right, store, key, (part.offset, part.end), what, fetched)


def read_until(
    right: Callable[[bytes], bool], store: Store, key: str, span: tuple[int, int], what: str, fetched: Fetched
) -> bytes:
    """The bytes [start, end) of an object once they are right; see ``read_verified``."""
    for attempt in range(_READS):
        data = read_span(store, key, span, what)
        fetched(len(data), attempt > 0)
        if right(data):
            return data
    raise corrupt(store, key, what, "does not have the hash that the manifest names")


def read_span(store: Store, key: str, span: tuple[int, int], what: str) -> bytes:
    """The bytes [start, end) of an object, as they come.

    Raises:
        CorruptShardError: the object is gone.
    """
    try:
        return store.get(key, *span)
    except ObjectNotFoundError as error:
        raise corrupt(store, key, what, "is missing") from error


def corrupt(store: Store, key: str, what: str, fact: str) -> CorruptShardError:
    """The error that names a broken part of an object and what to do about it."""
    return CorruptShardError(
        f"{what} of {key} under {store.url} {fact}",
        "Restore the object from a backup, or ingest the images again under another name",
    )
