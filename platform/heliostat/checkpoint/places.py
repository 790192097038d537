"""What writing and reading a shard need of the place where it lies: a store, or the memory of another node."""

from typing import Protocol

from heliostat.storage.store import Chunks


class ShardTarget(Protocol):
    """Takes shards."""

    @property
    def url(self) -> str:
        """For messages."""

    def exists(self, key: str) -> bool:
        """Whether there is such an object."""

    def put_chunks(self, key: str, chunks: Chunks) -> None:
        """Write an object, piece by piece."""


class ShardSource(Protocol):
    """Gives bytes of shards."""

    @property
    def url(self) -> str:
        """For messages."""

    def get(self, key: str, start: int = 0, end: int | None = None) -> bytes:
        """Bytes [start, end) of an object.

        Raises:
            ObjectNotFoundError: There is no such object.
        """
