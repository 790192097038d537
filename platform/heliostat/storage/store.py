"""What every store of objects promises, wherever it keeps them, and which keys it accepts.

A store maps keys (``runs/a/commits/00000001.json``) to bytes. A reader sees an object whole or not at all; a writer
that must not overwrite says so with ``create`` (only if absent) or ``replace`` (only if unchanged), and exactly one of
any number of such writers wins.
"""

import builtins
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from heliostat.errors import InvalidKeyError

RESERVED_NAME = ".heliostat-"
"""Names that start like this are the stores' own temporary files: no key may hold one, no listing shows one."""
KEY_MAX_BYTES = 900
"""S3 allows 1024 bytes; the rest is left to the prefix that the store itself adds."""
NAME_MAX_BYTES = 200
"""Common file systems allow 255 bytes per name; temporary files need some of them."""
READ_BYTES = 4 * 1024 * 1024

Chunks = Callable[[], Iterable[bytes | memoryview]]
"""Yields the content of an object from its start each time it is called, so that a failed write can begin again."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


@dataclass(frozen=True, slots=True, order=True)
class ObjectInfo:
    """One line of a listing."""

    key: str
    size_bytes: int


class Store(ABC):
    """A place for objects. Picklable, and safe to use from many threads and processes at once.

    Every method raises ``InvalidKeyError`` for a key that is not acceptable (see ``normalise_key``),
    ``StoreUnreachableError``, ``StoreDeniedError`` or ``StoreFailedError`` when the place itself does not cooperate.
    """

    __slots__ = ()

    @property
    @abstractmethod
    def url(self) -> str:
        """What ``open_store`` takes to open this store again; holds no credentials."""

    @abstractmethod
    def get(self, key: str, start: int = 0, end: int | None = None) -> bytes:
        """Bytes [start, end) of an object, cut off at its size as slicing does.

        Raises:
            ObjectNotFoundError: There is no such object.
        """

    @abstractmethod
    def get_versioned(self, key: str) -> tuple[bytes, str]:
        """A whole object and its version, for a later ``replace``.

        Raises:
            ObjectNotFoundError: There is no such object.
        """

    @abstractmethod
    def size(self, key: str) -> int:
        """Size in bytes.

        Raises:
            ObjectNotFoundError: There is no such object.
        """

    @abstractmethod
    def exists(self, key: str) -> bool:
        """Whether there is such an object."""

    @abstractmethod
    def put(self, key: str, data: bytes) -> None:
        """Write an object, or overwrite it, atomically."""

    @abstractmethod
    def put_chunks(self, key: str, chunks: Chunks) -> None:
        """``put`` for what should not be in memory as one piece; multipart on S3."""

    @abstractmethod
    def create(self, key: str, data: bytes) -> str:
        """Write an object only if the key is free; its version.

        An attempt whose answer was lost is settled by comparing bytes, so contents that race for one key must differ
        between their writers (hold a writer's name or a random number), or two may believe that they won.

        Raises:
            ObjectExistsError: The key is taken.
        """

    @abstractmethod
    def replace(self, key: str, data: bytes, version: str) -> str:
        """Overwrite an object only if it still has this version; the new version.

        Contents must differ between writers, as with ``create``.

        Raises:
            VersionConflictError: It has another version by now, or is gone.
        """

    @abstractmethod
    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Objects whose keys start with this text, in the order of their keys (by code point)."""

    @abstractmethod
    def folders(self, prefix: str = "") -> builtins.list[str]:
        """Names one step below a prefix below which there are objects, in order: ``runs/`` gives the names of runs.

        However many objects there are, only the names are read. An empty prefix stands for the whole store. A name may
        outlive the last object below it: some servers of S3 keep folders.
        """

    @abstractmethod
    def delete(self, key: str) -> None:
        """Remove an object; nothing happens if there is none."""

    @abstractmethod
    def sub(self, prefix: str) -> Self:
        """The same store seen from below a prefix: its keys start there."""

    def unfinished(self, prefix: str) -> Iterator[str]:
        """Folders below a prefix (without a slash at the end) that hold something of writes which never finished.

        Of a write that goes on at this moment too. None where the place itself cleans up: S3 has lifecycle rules.
        """
        return iter(())

    def discard_unfinished(self, folder: str) -> int:
        """Remove what ``unfinished`` found in a folder, so that a write that goes on there fails; how many pieces."""
        return 0

    def patient(self, budget_s: float) -> Self:
        """The same store, which tries that long to get an answer, in seconds, before it raises an error.

        For what would rather stall through an outage than die of it. A long wait is logged, and its end. What has
        nothing to wait for, as a folder, returns itself.
        """
        return self

    def upload(self, key: str, path: Path) -> None:
        """``put`` the content of a local file without holding it in memory.

        Raises:
            OSError: The local file cannot be read.
        """
        self.put_chunks(key, lambda: _file_chunks(path))


def _file_chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(READ_BYTES):
            yield chunk


def normalise_key(key: str) -> str:
    """The one spelling of a key: no empty or ``.`` parts. Keys never leave the root.

    Raises:
        InvalidKeyError: Empty, absolute, with ``..``, control characters or reserved names, too long, or not Unicode.
    """
    if fault := _key_fault(key):
        raise _invalid(key, fault)
    parts = _parts(key)
    if not parts:
        raise _invalid(key, "is empty")
    return "/".join(parts)


def normalise_prefix(prefix: str) -> str:
    """The one spelling of the beginning of a key; unlike a key, it may be empty or end inside a name or with ``/``.

    Raises:
        InvalidKeyError: As for a key.
    """
    if fault := _key_fault(prefix):
        raise _invalid(prefix, fault)
    folder, _, name = prefix.rpartition("/")
    return "/".join([*_parts(folder), name])


def is_key(key: str) -> bool:
    """Whether this is a key in its one spelling, thus one that a store can address."""
    return not _key_fault(key) and bool(key) and "/".join(_parts(key)) == key


def check_range(start: int, end: int | None) -> None:
    """Refuse ranges that slicing would read from the end.

    Raises:
        ValueError: Not 0 <= start <= end.
    """
    if start < 0 or (end is not None and end < start):
        raise ValueError(f"byte range [{start}, {end}) is not 0 <= start <= end")


def _parts(key: str) -> tuple[str, ...]:
    return tuple(part for part in key.split("/") if part not in ("", "."))


def _key_fault(key: str) -> str | None:
    if key.startswith("/"):
        return "is absolute"
    if _CONTROL.search(key):
        return "holds a control character"
    parts = _parts(key)
    if ".." in parts:
        return "holds '..'"
    if any(part.startswith(RESERVED_NAME) for part in parts):
        return f"holds a name that starts with the reserved {RESERVED_NAME!r}"
    try:
        lengths = [len(part.encode()) for part in parts]
    except UnicodeEncodeError:
        return "is not Unicode text"
    if max(lengths, default=0) > NAME_MAX_BYTES or sum(lengths) + len(lengths) > KEY_MAX_BYTES:
        return f"is longer than {KEY_MAX_BYTES} bytes, or one of its names than {NAME_MAX_BYTES}"
    return None


def _invalid(key: str, fault: str) -> InvalidKeyError:
    shown = key if len(key) <= 80 else f"{key[:80]}…"
    return InvalidKeyError(f"the object key {shown!r} {fault}", "Use names joined by '/', below the root")
