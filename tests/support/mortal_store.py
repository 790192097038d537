"""A store in which something happens before every write: the process dies, the store fails, or it takes its time."""

import builtins
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol, Self

from heliostat.storage import ObjectInfo, Store
from heliostat.storage.store import Chunks


class BeforeWrite(Protocol):
    """What happens before every write."""

    def burn(self) -> None: ...


class Killed(BaseException):
    """Stands for the end of the process: nothing may catch it."""


@dataclass(slots=True)
class Fuse:
    """How many writes are left to this process."""

    writes_left: int

    def burn(self) -> None:
        if self.writes_left == 0:
            raise Killed
        self.writes_left -= 1


@dataclass(slots=True)
class Refusal:
    """Writes fail with this error once it is set."""

    error: Exception | None = None

    def burn(self) -> None:
        if self.error is not None:
            raise self.error


@dataclass(slots=True)
class Gate:
    """Writes wait while it is shut."""

    is_open: threading.Event = field(default_factory=threading.Event)

    def burn(self) -> None:
        self.is_open.wait()


@dataclass(frozen=True, slots=True)
class MortalStore(Store):
    """With a fuse, its process dies instead of the n-th write; all writes are atomic, so these are all the moments."""

    inner: Store
    fuse: BeforeWrite

    @property
    def url(self) -> str:
        return self.inner.url

    def get(self, key: str, start: int = 0, end: int | None = None) -> bytes:
        return self.inner.get(key, start, end)

    def get_versioned(self, key: str) -> tuple[bytes, str]:
        return self.inner.get_versioned(key)

    def size(self, key: str) -> int:
        return self.inner.size(key)

    def exists(self, key: str) -> bool:
        return self.inner.exists(key)

    def put(self, key: str, data: bytes) -> None:
        self.fuse.burn()
        self.inner.put(key, data)

    def put_chunks(self, key: str, chunks: Chunks) -> None:
        self.fuse.burn()
        self.inner.put_chunks(key, chunks)

    def create(self, key: str, data: bytes) -> str:
        self.fuse.burn()
        return self.inner.create(key, data)

    def replace(self, key: str, data: bytes, version: str) -> str:
        self.fuse.burn()
        return self.inner.replace(key, data, version)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        return self.inner.list(prefix)

    def folders(self, prefix: str = "") -> builtins.list[str]:
        return self.inner.folders(prefix)

    def delete(self, key: str) -> None:
        self.fuse.burn()
        self.inner.delete(key)

    def sub(self, prefix: str) -> Self:
        return type(self)(self.inner.sub(prefix), self.fuse)
