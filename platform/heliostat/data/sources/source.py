"""What every source of images promises to an ingest.

A source is listed once, on the driver, as a stream of units: some dozens to hundreds of images that one task reads.
The order of units, and of the images in one, is the same each time as long as the source is the same; a unit's
fingerprint tells whether it is. Whatever cannot be an image is an item of its own that says why; only failures that
concern no item in particular (a store that does not answer, credentials that it does not accept) are raised.
"""

import errno
import hashlib
import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Literal, TypeVar

from pydantic import ConfigDict, Field

from heliostat.config.base import Section
from heliostat.data.images import DEFAULT_LIMITS, ImageLimits, Reason, too_many_bytes
from heliostat.storage import Store, open_store

T = TypeVar("T")

UNIT_ITEMS = 256
"""Images of a unit at most: long against the cost of a task, short against the patience of a progress bar."""
UNIT_BYTES = 64 * 2**20
"""A unit is closed when its images have this size together, as far as sizes are known."""
_PATIENCE_S = 600.0


class FilePlace(Section):
    """Bytes of a local file, which need not have a name that is valid in any encoding."""

    model_config = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")

    kind: Literal["file"] = "file"
    path: bytes
    offset: int = Field(default=0, ge=0)
    size: int = Field(ge=0)

    def fetch(self, limits: ImageLimits = DEFAULT_LIMITS) -> bytes:
        """Read the bytes again; fewer if the file is shorter by now.

        Raises:
            OSError: the file is gone, or no regular file any more.
            RejectedImageError: there are more bytes than the limit.
        """
        _check_bytes(self.size, limits)
        with open_regular(self.path) as descriptor:
            return read_range(descriptor, self.offset, self.size)


class ObjectPlace(Section):
    """Bytes of an object in a store. ``store`` is the URL that opens it."""

    kind: Literal["object"] = "object"
    store: str
    key: str
    offset: int = Field(default=0, ge=0)
    size: int = Field(ge=0)

    def fetch(self, limits: ImageLimits = DEFAULT_LIMITS) -> bytes:
        """Read the bytes again; fewer if the object is shorter by now.

        Raises:
            StorageError: the object is gone, or the store does not cooperate.
            RejectedImageError: there are more bytes than the limit.
        """
        _check_bytes(self.size, limits)
        return patient_store_at(self.store).get(self.key, self.offset, self.offset + self.size)


Place = Annotated[FilePlace | ObjectPlace, Field(discriminator="kind")]
"""Where the same bytes can be read again later. A field of this type goes through JSON."""


class Unit(Section):
    """What one task reads. It goes through JSON, so that an ingest can be resumed by another process.

    ``fingerprint`` is the sha256 of all that the source knows of the unit without reading the images: names, labels,
    sizes, times of change. ``items`` counts the images and refusals that ``read`` will yield, ``None`` where that is
    not known. ``skipped`` counts what was left out by name. ``spec`` is the source's own business.
    """

    index: int = Field(ge=0)
    fingerprint: str
    items: int | None
    skipped: int = 0
    spec: str

    @classmethod
    def of(cls, index: int, spec: Section, items: int | None, skipped: int = 0) -> "Unit":
        """A unit whose fingerprint is that of its spec."""
        text = spec.model_dump_json()
        fingerprint = hashlib.sha256(text.encode()).hexdigest()
        return cls(index=index, fingerprint=fingerprint, items=items, skipped=skipped, spec=text)


@dataclass(frozen=True, slots=True)
class Item:
    """The bytes of what may be an image, not looked at yet.

    ``source`` is the name under which it is reported. ``place`` is ``None`` where the bytes cannot be had again at the
    price of reading them: who needs them later has to keep them.
    """

    source: str
    label: str | None
    data: bytes
    place: FilePlace | ObjectPlace | None


@dataclass(frozen=True, slots=True)
class RefusedItem:
    """What is not even an item, with the reason."""

    source: str
    reason: Reason
    detail: str


class Source(ABC):
    """A place full of images. Picklable; holds no credentials."""

    @property
    @abstractmethod
    def description(self) -> str:
        """The source as the user named it, for provenance."""

    @abstractmethod
    def units(self) -> Iterator[Unit]:
        """All units, in an order that depends on the source alone. Listed while the caller consumes them.

        Raises:
            SourceNotFoundError: there is no such source, or it is of another kind. With the first unit.
            NoImagesError: there is nothing in it that may be an image. At the latest after the last unit.
            StorageError: the store does not cooperate.
        """

    @abstractmethod
    def read(self, unit: Unit, limits: ImageLimits = DEFAULT_LIMITS) -> Iterator[Item | RefusedItem]:
        """What is in a unit. Never holds more than a few times ``limits.max_bytes`` at once.

        Raises:
            StorageError: the store does not cooperate.
        """


@lru_cache(maxsize=64)
def store_at(url: str) -> Store:
    """A store, opened once per process: its connections serve all reads."""
    return open_store(url)


def patient_store_at(url: str) -> Store:
    """``store_at`` for reading what is known to be there: an outage of minutes stalls it and no more."""
    return store_at(url).patient(_PATIENCE_S)


@contextmanager
def open_regular(path: bytes) -> Iterator[int]:
    """The descriptor of a regular file, for reading. Never waits for a pipe, never follows a link at the end.

    Raises:
        OSError: there is none, it cannot be read, or it is something else.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "this is no regular file")
        yield descriptor
    finally:
        os.close(descriptor)


def read_range(descriptor: int, offset: int, size: int) -> bytes:
    """Bytes [offset, offset + size) of an open file, fewer at its end."""
    pieces = []
    while size > 0 and (piece := os.pread(descriptor, size, offset)):
        pieces.append(piece)
        offset += len(piece)
        size -= len(piece)
    return b"".join(pieces)


def cut(
    entries: Iterable[T], size_bytes: Callable[[T], int] = lambda entry: 0, most: int = UNIT_ITEMS
) -> Iterator[tuple[T, ...]]:
    """Entries in the groups that become units: ``most`` of them, or what first reaches ``UNIT_BYTES``."""
    group: list[T] = []
    total = 0
    for entry in entries:
        group.append(entry)
        total += size_bytes(entry)
        if len(group) == most or total >= UNIT_BYTES:
            yield tuple(group)
            group, total = [], 0
    if group:
        yield tuple(group)


def _check_bytes(size_bytes: int, limits: ImageLimits) -> None:
    if size_bytes > limits.max_bytes:
        raise too_many_bytes(size_bytes, limits)
