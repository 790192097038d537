"""Tables that are written once and read later: objects named by what they are and by their hash.

``<folder>/<name>-<sha256>.parquet`` is written whole or not at all and never changes. A listing tells what is done, so
that work that was killed goes on with what is missing; a reader compares the bytes with the hash in the name.
"""

import hashlib
import io
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from heliostat.errors import CorruptResultError, ObjectNotFoundError
from heliostat.storage.store import Store

_END = ".parquet"
_HASH_CHARS = 64


class ResultFolder:
    """Results of one stage, or of one function of images.

    Args:
        store: The root, from below the folder.
    """

    def __init__(self, store: Store) -> None:
        self.store = store

    def found(self) -> dict[str, str]:
        """Keys of the results by their names; of one that was written twice the lowest hash, whoever looks."""
        keys = [info.key for info in self.store.list() if info.key.endswith(_END)]
        return {key[: -_HASH_CHARS - len(_END) - 1]: key for key in sorted(keys, reverse=True)}

    def has(self, name: str) -> bool:
        """Whether there is a result of this name."""
        return any(True for _ in self.store.list(f"{name}-"))

    def write(self, name: str, table: pa.Table) -> str:
        """Store a result; its key."""
        sink = io.BytesIO()
        pq.write_table(table, sink, compression="zstd", write_statistics=False)
        data = sink.getvalue()
        key = f"{name}-{hashlib.sha256(data).hexdigest()}{_END}"
        self.store.put(key, data)
        return key

    def read(self, key: str, columns: Sequence[str] | None = None) -> pa.Table:
        """A result, or some of its columns.

        Raises:
            CorruptResultError: the bytes are not those that were written, or they are gone.
        """
        try:
            data = self.store.get(key)
        except ObjectNotFoundError as error:
            raise self._corrupt(key, "is gone") from error
        if hashlib.sha256(data).hexdigest() != key[-_HASH_CHARS - len(_END) : -len(_END)]:
            raise self._corrupt(key, "does not have the hash in its name")
        return pq.read_table(pa.BufferReader(data), columns=None if columns is None else list(columns))

    def _corrupt(self, key: str, what: str) -> CorruptResultError:
        return CorruptResultError(
            f"{key} under {self.store.url} {what}", "Delete the object: the same command computes it again"
        )
